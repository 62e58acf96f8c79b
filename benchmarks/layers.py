"""Forward and backward of the layers, beside themselves on the parallel prefix."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import ssm
from benchmarks.harness import check_close, interleaved, table
from ssm.layers.base import SequenceLayer

Make = Callable[[int, str | None], SequenceLayer]  # (width, implementation)
# Each with the implementation that it is measured beside.
LAYERS: dict[str, tuple[Make, str]] = {
    "LRU": (
        lambda width, name: ssm.LRU(
            width, width, r_max=0.999, implementation=name, rngs=nnx.Rngs(0)
        ),
        "associative",
    ),
}
SHAPES = {"cpu": (8, 1024, 256)}
# Sums over at most 2**16 time steps and channels, in another order.
TOLERANCE = 1e-3


def case(
    name: str, made: tuple[Make, str], shape: tuple[int, int, int], repeats: int = 9
) -> list[str]:
    """Check and time one layer; return its row of the table."""
    make, plain = made
    x = jax.random.normal(jax.random.key(0), shape)

    def gradient(implementation: str | None) -> tuple[jax.stages.Compiled, Any, float]:
        graphdef, params = nnx.split(make(shape[-1], implementation))

        def loss(params, x):
            return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)[0]))

        began = time.perf_counter()
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
        return compiled, params, time.perf_counter() - began

    jax.config.update("jax_enable_compilation_cache", False)
    ours, params, our_compile = gradient(None)
    other, _, other_compile = gradient(plain)
    jax.config.update("jax_enable_compilation_cache", True)
    check_close(name, ours(params, x), other(params, x), TOLERANCE)
    seconds = interleaved(
        {"ours": lambda: ours(params, x), "other": lambda: other(params, x)}, repeats
    )
    steps = shape[0] * shape[1]
    return [
        name,
        str(shape),
        f"{1e3 * seconds['ours']:.3g}",
        f"{steps / seconds['ours'] / 1e6:.3g}",
        f"{seconds['other'] / seconds['ours']:.1f}x",
        f"{our_compile:.2f}",
        f"{other_compile / our_compile:.1f}x",
        plain,
    ]


def run() -> str:
    """Return the table."""
    shape = SHAPES.get(jax.default_backend(), (16, 4096, 1024))
    header = ["layer", "(B, T, D)", "ms", "million steps/s", "times faster"]
    header += ["compiles in s", "times faster", "than implementation="]
    rows = [case(name, made, shape) for name, made in LAYERS.items()]
    return "Gradients in all parameters and in x, float32.\n\n" + table(header, rows)
