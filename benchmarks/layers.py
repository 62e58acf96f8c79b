"""Forward and backward of the layers, beside themselves on the parallel prefix."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import ssm
from benchmarks.harness import at_least, check_close, interleaved, table
from ssm.layers.base import SequenceLayer

Shape = tuple[int, int, int]


class Case(NamedTuple):
    """A layer, and the implementation of its op that it is measured beside."""

    make: Callable[..., SequenceLayer]  # of the width, implementation= and rngs=
    beside: str = "associative"
    shape: Shape = (8, 1024, 256)  # on CPU
    goal: float | None = None  # on CPU, times faster


LAYERS = {
    "LRU": Case(lambda width, **kw: ssm.LRU(width, width, r_max=0.999, **kw)),
    "RGLRU": Case(lambda width, **kw: ssm.RGLRU(width, 4, **kw)),
    "GriffinRecurrence": Case(
        lambda width, **kw: ssm.GriffinRecurrence(width, 4, **kw)
    ),
    "HGRU": Case(ssm.HGRU),
    "HGRU, real": Case(functools.partial(ssm.HGRU, real=True)),
    "HGRN2": Case(
        lambda width, **kw: ssm.HGRN2(width, width // 64, **kw),
        beside="scan",
        shape=(2, 2048, 256),
        goal=5.0,
    ),
    "LightningAttention": Case(
        lambda width, **kw: ssm.LightningAttention(width, width // 64, **kw),
        beside="scan",
        shape=(2, 2048, 256),
    ),
}
ON_DEVICE = (16, 4096, 1024)
# Sums over at most 2**16 time steps and channels, in another order.
TOLERANCE = 1e-3


def measure(name: str, case: Case, shape: Shape, repeats: int = 9) -> list[str]:
    """Check and time one layer; return its row of the table."""
    x = jax.random.normal(jax.random.key(0), shape)

    def gradient(implementation: str | None) -> tuple[jax.stages.Compiled, Any, float]:
        layer = case.make(shape[-1], implementation=implementation, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(layer)

        def loss(params, x):
            return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)[0]))

        began = time.perf_counter()
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
        return compiled, params, time.perf_counter() - began

    jax.config.update("jax_enable_compilation_cache", False)
    ours, params, our_compile = gradient(None)
    other, _, other_compile = gradient(case.beside)
    jax.config.update("jax_enable_compilation_cache", True)
    check_close(name, ours(params, x), other(params, x), TOLERANCE)
    seconds = interleaved(
        {"ours": lambda: ours(params, x), "other": lambda: other(params, x)}, repeats
    )
    steps = shape[0] * shape[1]
    ratio = seconds["other"] / seconds["ours"]
    return [
        name,
        str(shape),
        f"{1e3 * seconds['ours']:.3g}",
        f"{steps / seconds['ours'] / 1e6:.3g}",
        f"{ratio:.1f}x" if case.goal is None else at_least(ratio, case.goal),
        f"{our_compile:.2f}",
        f"{other_compile / our_compile:.1f}x",
        case.beside,
    ]


def run() -> str:
    """Return the table."""
    on_cpu = jax.default_backend() == "cpu"
    header = ["layer", "(B, T, D)", "ms", "million steps/s", "times faster"]
    header += ["compiles in s", "times faster", "than implementation="]
    rows = [
        measure(name, case, case.shape if on_cpu else ON_DEVICE)
        for name, case in LAYERS.items()
    ]
    return "Gradients in all parameters and in x, float32.\n\n" + table(header, rows)
