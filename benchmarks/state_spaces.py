"""The state-space layers: both of their forms, and what the liquid terms add.

Also a training step of an S5 classifier beside the same with the recurrence as the
released code of S5 writes it: `jax.lax.associative_scan` over pairs of a decay of every
step and an input, sequence by sequence. That code itself does not run on current JAX.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

import ssm
from benchmarks.harness import at_least, at_most, check_close, interleaved, table
from benchmarks.train_step import Contender, stepper
from ssm.blocks import S4Block
from ssm.layers.base import SequenceLayer

# (B, T, D) and the layers whose forms are timed there.
SHAPES = [(32, 128, 64), (16, 784, 64), (8, 1024, 128), (2, 4096, 128), (1, 16384, 64)]
FORMS = {
    "S4D, N 16": (ssm.S4D, 16),
    "S4D, N 64": (ssm.S4D, 64),
    "S5, N 64": (ssm.S5, 64),
    "S5, N 256": (ssm.S5, 256),
}
LIQUID_SHAPE, LIQUID_STATES = (8, 1024, 64), 16
# Both forms round sums of T terms, in another order.
TOLERANCE = 1e-3

S5_BATCH, S5_LENGTH, S5_LAYERS, S5_WIDTH, S5_STATES, CLASSES = 4, 1024, 6, 128, 256, 10


def gradients(layer: SequenceLayer, x: jax.Array) -> Any:
    """Return the jitted gradient in parameters and inputs, and its arguments."""
    graphdef, params = nnx.split(layer)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        y, _ = nnx.merge(graphdef, params)(x)
        return jnp.sum(jnp.sin(y))

    step = jax.jit(jax.grad(loss, (0, 1)))
    return functools.partial(step, nnx.to_pure_dict(params), x)


def inputs(shape: tuple[int, ...]) -> jax.Array:
    """Return normal inputs (B, T, D)."""
    return jax.random.normal(jax.random.key(0), shape)


def forms(repeats: int, shapes: list[tuple[int, int, int]]) -> str:
    """Return the table of convolution and recurrence, forward and backward."""
    rows = []
    for shape in shapes:
        x = inputs(shape)
        for name, (kind, states) in FORMS.items():
            runs = {
                mode or "None": gradients(
                    kind(shape[2], states, mode=mode, rngs=nnx.Rngs(0)), x
                )
                for mode in ("convolution", "recurrent", None)
            }
            check_close(name, runs["convolution"](), runs["recurrent"](), TOLERANCE)
            seconds = interleaved(runs, repeats)
            best = min(seconds["convolution"], seconds["recurrent"])
            rows.append(
                [
                    name,
                    str(shape),
                    f"{1e3 * seconds['convolution']:.1f}",
                    f"{1e3 * seconds['recurrent']:.1f}",
                    f"{seconds['None'] / best:.2f}x",
                ]
            )
    header = ["layer", "(B, T, D)", "convolution ms", "recurrent ms", "None/best"]
    return table(header, rows)


def liquid(repeats: int, shape: tuple[int, int, int], orders: Sequence[int]) -> str:
    """Return the table of the liquid forms beside S4D."""
    x = inputs(shape)
    make = functools.partial(ssm.LiquidS4, shape[2], LIQUID_STATES, rngs=nnx.Rngs(0))
    runs = {
        "S4D, recurrent": gradients(
            ssm.S4D(shape[2], LIQUID_STATES, mode="recurrent", rngs=nnx.Rngs(0)), x
        ),
        "exact": gradients(make(liquid="exact"), x),
        "none": gradients(make(liquid="none"), x),
    }
    for form in ("order", "kb", "pb"):
        for order in orders:
            runs[f"{form}, P = {order}"] = gradients(make(liquid=form, order=order), x)
    seconds = interleaved(runs, repeats)
    rows = [[name, f"{1e3 * value:.1f}"] for name, value in seconds.items()]
    ratio = seconds["exact"] / seconds["S4D, recurrent"]
    return (
        f"{table(['liquid', 'ms'], rows)}\n\nExact over the recurrence of S4D: "
        f"{at_most(ratio, 1.5, 'times')}."
    )


class AsReleased(ssm.S5):
    """S5 with the recurrence of its released code."""

    def __call__(self, x, carry=None, *, reset=None):  # type: ignore[override]
        log_a, b = self.system()
        b = b[:, None] * lax.complex(self.b_re[...], self.b_im[...])
        c = lax.complex(self.c_re[...], self.c_im[...])

        def combine(one, other):
            a, u = one
            a2, u2 = other
            return a * a2, a2 * u + u2

        def of_sequence(u):
            a = jnp.exp(log_a)[None] * jnp.ones((u.shape[0], log_a.shape[0]))
            driven = jax.vmap(lambda u: b @ u)(u)
            _, h = lax.associative_scan(combine, (a, driven))
            return jax.vmap(lambda h: 2 * (c @ h).real)(h)

        return jax.vmap(of_sequence)(x) + self.d[...][None, None] * x, carry


def classifier(kind: type[ssm.S5], x: jax.Array) -> Contender:
    """Return a classifier of real inputs."""

    def make_block(rngs: nnx.Rngs) -> S4Block:
        mixer = kind(S5_WIDTH, S5_STATES, n_blocks=8, rngs=rngs)
        return S4Block(mixer, S5_WIDTH, glu="half", rngs=rngs)

    model = ssm.SequenceClassifier(
        make_block,
        n_layers=S5_LAYERS,
        d_model=S5_WIDTH,
        n_classes=CLASSES,
        d_input=1,
        rngs=nnx.Rngs(0),
    )
    graphdef, params = nnx.split(model, nnx.Param)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(x)

    return Contender(nnx.to_pure_dict(params), x, apply)


def training_step(repeats: int, batch: int, length: int) -> str:
    """Return the table of S5's training step."""
    x = jax.random.normal(jax.random.key(0), (batch, length, 1))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, CLASSES)
    models = {
        "ours": classifier(ssm.S5, x),
        "associative_scan": classifier(AsReleased, x),
    }
    got, wanted = (
        jax.jit(jax.grad(model.loss))(model.params, x, labels)
        for model in models.values()
    )
    check_close("gradient", got, wanted, TOLERANCE)
    steps = {name: stepper(model, labels) for name, model in models.items()}
    seconds = interleaved(steps, repeats)
    rows = [[name, f"{1e3 * value:.0f}"] for name, value in seconds.items()]
    ratio = seconds["associative_scan"] / seconds["ours"]
    return f"{table(['S5', 'step ms'], rows)}\n\nFaster: {at_least(ratio, 3)}."


def run(
    repeats: int = 5,
    shapes: list[tuple[int, int, int]] = SHAPES,
    liquid_shape: tuple[int, int, int] = LIQUID_SHAPE,
    orders: Sequence[int] = (2, 3, 4, 5),
    batch: int = S5_BATCH,
    length: int = S5_LENGTH,
) -> str:
    """Return all three tables; every time is of a forward and a backward pass."""
    return (
        f"Convolution and recurrence, forward and backward, float32.\n\n"
        f"{forms(repeats, shapes)}\n\nLiquid-S4 at {liquid_shape}, N {LIQUID_STATES}."
        f"\n\n{liquid(repeats, liquid_shape, orders)}\n\n"
        f"Classifier of {S5_LAYERS} layers, d_model {S5_WIDTH}, N {S5_STATES}, "
        f"{batch} x {length}, AdamW.\n\n"
        f"{training_step(repeats, batch, length)}"
    )
