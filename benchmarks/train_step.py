"""One training step of an LRU classifier, beside minimal-LRU's at the same shapes.

The shapes are those of the LRU in each task of Long Range Arena, and a small one. Ours
looks back only, as the peer does; of Retrieval it is one of the two texts.

The peer is a checkout of github.com/NicolasZucchet/minimal-LRU, given by `--peer`.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.stages import Wrapped

import ssm
from benchmarks.harness import at_least, check_close, interleaved, table
from ssm.blocks import S4Block
from ssm.models import SequenceClassifier

VOCABULARY, CLASSES, N_LAYERS, R_MAX = 20, 10, 6, 0.99


class Shape(NamedTuple):
    """How large a step is."""

    batch: int
    length: int
    d_model: int
    d_state: int


SHAPES = {
    "small": Shape(4, 1_024, 128, 256),
    "listops": Shape(2, 2_000, 128, 256),
    "text": Shape(1, 4_096, 256, 192),
    "retrieval": Shape(1, 4_000, 128, 256),
    "image": Shape(4, 1_024, 512, 384),
    "pathfinder": Shape(4, 1_024, 192, 256),
    "pathx": Shape(1, 16_384, 128, 256),
}


class Contender(NamedTuple):
    """A model to time: its parameters, its input and its logits."""

    params: Any
    inputs: jax.Array
    apply: Callable[[Any, jax.Array], jax.Array]

    def loss(self, params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the mean cross entropy, in nats."""
        logits = self.apply(params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()


def ours(
    shape: Shape, tokens: jax.Array, implementation: str | None = None
) -> Contender:
    """Build our classifier."""

    def make_block(rngs: nnx.Rngs) -> S4Block:
        mixer = ssm.LRU(
            shape.d_model,
            shape.d_state,
            r_max=R_MAX,
            implementation=implementation,
            rngs=rngs,
        )
        return S4Block(mixer, shape.d_model, rngs=rngs)

    model = SequenceClassifier(
        make_block,
        n_layers=N_LAYERS,
        d_model=shape.d_model,
        n_classes=CLASSES,
        vocab_size=VOCABULARY,
        rngs=nnx.Rngs(0),
    )
    graphdef, params = nnx.split(model, nnx.Param)

    def apply(params, tokens):
        return nnx.merge(graphdef, params)(tokens)

    return Contender(nnx.to_pure_dict(params), tokens, apply)


def minimal_lru(shape: Shape, tokens: jax.Array, checkout: Path) -> Contender:
    """Build the peer's classifier, which takes one-hot tokens."""
    sys.path.insert(0, str(checkout))
    from lru.model import LRU, BatchClassificationModel

    model = BatchClassificationModel(
        lru=functools.partial(
            LRU, d_hidden=shape.d_state, d_model=shape.d_model, r_max=R_MAX
        ),
        d_output=CLASSES,
        d_model=shape.d_model,
        n_layers=N_LAYERS,
        norm="layer",
        prenorm=True,
        pooling="mean",
        dropout=0.0,
        training=True,
    )
    one_hot = jax.nn.one_hot(tokens, VOCABULARY)
    key = jax.random.key(0)

    def apply(params, inputs):
        return model.apply({"params": params}, inputs, rngs={"dropout": key})

    params = model.init({"params": key, "dropout": key}, one_hot)["params"]
    return Contender(params, one_hot, apply)


def make_step(model: Contender, labels: jax.Array) -> tuple[Wrapped, tuple]:
    """Return one jitted step of AdamW and its first arguments."""
    adamw = optax.adamw(1e-3)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, inputs, labels):
        params, opt_state = state
        loss, gradient = jax.value_and_grad(model.loss)(params, inputs, labels)
        updates, opt_state = adamw.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state = jax.tree.map(jnp.copy, (model.params, adamw.init(model.params)))
    return step, (state, model.inputs, labels)


class Compiled(NamedTuple):
    """What the compiler took and says."""

    seconds: float
    temporary: int  # bytes, besides state and batch


def compile_step(model: Contender, labels: jax.Array) -> Compiled:
    """Trace and compile a step, from empty caches."""
    step, arguments = make_step(model, labels)
    jax.clear_caches()
    start = time.perf_counter()
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory is not None
    return Compiled(time.perf_counter() - start, memory.temp_size_in_bytes)


def stepper(model: Contender, labels: jax.Array) -> Callable[[], jax.Array]:
    """Return a function that makes the next training step and returns its loss."""
    step, (state, *batch) = make_step(model, labels)

    def next_step() -> jax.Array:
        nonlocal state
        state, loss = step(state, *batch)
        return loss

    return next_step


def run(peer: Path | None) -> str:
    """Return the table; without a checkout of the peer, only our own lines."""
    rows = [row for name, shape in SHAPES.items() for row in measure(name, shape, peer)]
    header = ["shape of", "B, T, d_model, d_state", "model", "step ms", "temporary MB"]
    source = "was read from" if peer else "was not measured: it needs"
    return (
        f"LRU classifier, {N_LAYERS} layers, vocabulary {VOCABULARY}, layer norm, full "
        "GLU, mean pooling,\nAdamW, float32.\n\n"
        + table([*header, "compile s", "parameters"], rows)
        + f"\n\nminimal-LRU {source} `--peer CHECKOUT`."
    )


def measure(name: str, shape: Shape, peer: Path | None) -> list[list[str]]:
    """Return the rows of a shape."""
    token_key, label_key = jax.random.split(jax.random.key(0))
    tokens = jax.random.randint(token_key, (shape.batch, shape.length), 0, VOCABULARY)
    labels = jax.random.randint(label_key, (shape.batch,), 0, CLASSES)

    got, wanted = (
        jax.jit(jax.grad(model.loss))(model.params, tokens, labels)
        for model in (ours(shape, tokens), ours(shape, tokens, "scan"))
    )
    # Sums over B * T rows in another order: 16,384 * 6e-8 at the very worst.
    check_close("gradient", got, wanted, tolerance=1e-3)

    models = {"ours": ours(shape, tokens)}
    if peer:
        models["minimal-LRU"] = minimal_lru(shape, tokens, peer)
    compiling: dict[str, list[Compiled]] = {model: [] for model in models}
    for _ in range(3):
        for model, contender in models.items():
            compiling[model].append(compile_step(contender, labels))
    taken = {
        model: statistics.median(c.seconds for c in values)
        for model, values in compiling.items()
    }
    temporary = {model: values[0].temporary for model, values in compiling.items()}
    steppers = {model: stepper(models[model], labels) for model in models}
    seconds = interleaved(steppers, repeats=7)

    sizes = ", ".join(map(str, shape))
    rows = [
        [
            name,
            sizes,
            model,
            f"{1e3 * seconds[model]:.0f}",
            f"{temporary[model] / 1e6:,.0f}",
            f"{taken[model]:.1f}",
            f"{sum(leaf.size for leaf in jax.tree.leaves(contender.params)):,}",
        ]
        for model, contender in models.items()
    ]
    if peer:
        step, memory, compiling_ratio = (
            values["minimal-LRU"] / values["ours"]
            for values in (seconds, temporary, taken)
        )
        ratios = [at_least(step, 3), f"{memory:.1f}x", at_least(compiling_ratio, 2)]
        rows.append([name, "", "ratio", *ratios, ""])
    return rows
