"""One training step of an LRU classifier, beside minimal-LRU's at the same shape.

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

BATCH, LENGTH, VOCABULARY, CLASSES = 4, 1024, 20, 10
N_LAYERS, D_MODEL, D_STATE, R_MAX = 6, 128, 256, 0.99


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


def ours(tokens: jax.Array, implementation: str | None = None) -> Contender:
    """Build our classifier."""

    def make_block(rngs: nnx.Rngs) -> S4Block:
        mixer = ssm.LRU(
            D_MODEL, D_STATE, r_max=R_MAX, implementation=implementation, rngs=rngs
        )
        return S4Block(mixer, D_MODEL, rngs=rngs)

    model = SequenceClassifier(
        make_block,
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_classes=CLASSES,
        vocab_size=VOCABULARY,
        rngs=nnx.Rngs(0),
    )
    graphdef, params = nnx.split(model, nnx.Param)

    def apply(params, tokens):
        return nnx.merge(graphdef, params)(tokens)

    return Contender(nnx.to_pure_dict(params), tokens, apply)


def minimal_lru(tokens: jax.Array, checkout: Path) -> Contender:
    """Build the peer's classifier, which takes one-hot tokens."""
    sys.path.insert(0, str(checkout))
    from lru.model import LRU, BatchClassificationModel

    model = BatchClassificationModel(
        lru=functools.partial(LRU, d_hidden=D_STATE, d_model=D_MODEL, r_max=R_MAX),
        d_output=CLASSES,
        d_model=D_MODEL,
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


def compile_seconds(model: Contender, labels: jax.Array) -> float:
    """Trace and compile a step, from empty caches."""
    step, arguments = make_step(model, labels)
    jax.clear_caches()
    start = time.perf_counter()
    step.lower(*arguments).compile()
    return time.perf_counter() - start


def stepper(model: Contender, labels: jax.Array) -> Callable[[], jax.Array]:
    """Return a function that makes the next training step and returns its loss."""
    step, (state, *batch) = make_step(model, labels)

    def next_step() -> jax.Array:
        nonlocal state
        state, loss = step(state, *batch)
        return loss

    return next_step


def run(peer: Path | None) -> str:
    """Return the table; without a checkout of the peer, only our own line."""
    token_key, label_key = jax.random.split(jax.random.key(0))
    tokens = jax.random.randint(token_key, (BATCH, LENGTH), 0, VOCABULARY)
    labels = jax.random.randint(label_key, (BATCH,), 0, CLASSES)

    got, wanted = (
        jax.jit(jax.grad(model.loss))(model.params, tokens, labels)
        for model in (ours(tokens), ours(tokens, implementation="scan"))
    )
    # Sums over BATCH * LENGTH rows in another order: 4096 * 6e-8 at the very worst.
    check_close("gradient", got, wanted, tolerance=3e-4)

    models = {"ours": ours(tokens)}
    if peer:
        models["minimal-LRU"] = minimal_lru(tokens, peer)
    compiling: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(3):
        for name, model in models.items():
            compiling[name].append(compile_seconds(model, labels))
    compiled = {name: statistics.median(values) for name, values in compiling.items()}
    steppers = {name: stepper(model, labels) for name, model in models.items()}
    seconds = interleaved(steppers, repeats=7)

    rows = [
        [
            name,
            f"{1e3 * seconds[name]:.0f}",
            f"{compiled[name]:.1f}",
            f"{sum(leaf.size for leaf in jax.tree.leaves(models[name].params)):,}",
        ]
        for name in models
    ]
    if peer:
        step_ratio, compile_ratio = (
            values["minimal-LRU"] / values["ours"] for values in (seconds, compiled)
        )
        rows.append(["ratio", at_least(step_ratio, 3), at_least(compile_ratio, 2), ""])
    source = "was read from" if peer else "was not measured: it needs"
    return (
        f"LRU classifier, {N_LAYERS} layers, d_model {D_MODEL}, d_state {D_STATE}, "
        f"batch {BATCH}, length {LENGTH}, vocabulary {VOCABULARY},\nlayer norm, full "
        "GLU, mean pooling, AdamW, float32.\n\n"
        + table(["model", "step ms", "compile s", "parameters"], rows)
        + f"\n\nminimal-LRU {source} `--peer CHECKOUT`."
    )
