"""The kernels of `pallas_kernels.rg_lru` on TPU to be compiled."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import gated_scan_tpu, rg_lru

OP = "rg_lru"


class Case(NamedTuple):
    """Arguments of `rg_lru.rg_lru_scan`."""

    dtype: str = "bfloat16"
    reset: bool = False
    shape: tuple[int, int, int] = (32, 2048, 1024)


CASES = {
    "bfloat16": Case(),
    "bfloat16, reset": Case(reset=True),
    "float32": Case(dtype="float32"),
    "bfloat16, one sequence": Case(shape=(1, 32768, 1024)),
    "bfloat16, D 256": Case(shape=(32, 2048, 256)),
    "float32, D 256": Case(dtype="float32", shape=(32, 2048, 256)),
}
RAGGED = {
    "ragged bfloat16": Case(shape=(3, 1001, 1500), reset=True),
    "ragged float32, D 96": Case(dtype="float32", shape=(3, 257, 96), reset=True),
    "seven steps": Case(dtype="float32", shape=(2, 7, 600), reset=True),
    "twelve steps": Case(shape=(2, 12, 600)),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""
    batch, time, width = case.shape
    plane = jax.ShapeDtypeStruct(case.shape, case.dtype)
    rate = jax.ShapeDtypeStruct((width,), jnp.float32)
    h0 = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    reset = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case.reset else None
    return functools.partial(rg_lru.rg_lru_scan, gated_scan_tpu.KERNELS), (
        plane,
        plane,
        plane,
        rate,
        h0,
        reset,
    )


def ideal_bytes(case: Case, backward: bool) -> int:
    """What must be read and written of the arrays (B, T, D), each once."""
    planes = 8 if backward else 4
    return math.prod(case.shape) * jnp.dtype(case.dtype).itemsize * planes
