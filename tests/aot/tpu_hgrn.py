"""The kernels of `pallas_kernels.hgrn` on TPU to be compiled."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import gated_scan_tpu, hgrn

OP = "hgrn"


class Case(NamedTuple):
    """Arguments of `hgrn.hgrn_scan`."""

    dtype: str = "bfloat16"
    planes: int = 1  # of x
    rotated: bool = False
    reset: bool = False
    reverse: bool = False
    shape: tuple[int, int, int] = (32, 2048, 1024)


CASES = {
    "bfloat16": Case(),
    "bfloat16, reversed, reset": Case(reset=True, reverse=True),
    "float32": Case(dtype="float32"),
    "complex": Case(dtype="float32", planes=2, rotated=True),
    "complex, reversed": Case(dtype="float32", planes=2, rotated=True, reverse=True),
    "real x, rotated": Case(dtype="float32", rotated=True),
    "complex, D 256": Case(
        dtype="float32", planes=2, rotated=True, shape=(32, 2048, 256)
    ),
}
RAGGED = {
    "ragged bfloat16": Case(shape=(3, 1001, 1500), reset=True, reverse=True),
    "ragged complex, D 96": Case(
        dtype="float32", planes=2, rotated=True, shape=(3, 257, 96), reset=True
    ),
    "seven steps": Case(dtype="float32", planes=2, rotated=True, shape=(2, 7, 600)),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""
    batch, time, width = case.shape
    f = jax.ShapeDtypeStruct(case.shape, case.dtype)
    row = jax.ShapeDtypeStruct((width,), jnp.float32)
    states = 2 if case.rotated else case.planes
    h0 = (jax.ShapeDtypeStruct((batch, width), jnp.float32),) * states
    reset = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case.reset else None

    def run(x, f, bound, theta, h0, reset):
        return hgrn.hgrn_scan(
            gated_scan_tpu.KERNELS, x, f, bound, theta, h0, reset, reverse=case.reverse
        )

    theta = row if case.rotated else None
    return run, ((f,) * case.planes, f, row, theta, h0, reset)


def ideal_bytes(case: Case, backward: bool) -> int:
    """What must be read and written of the arrays (B, T, D), each once."""
    states = 2 if case.rotated else case.planes
    of_inputs = (1 + case.planes) * jnp.dtype(case.dtype).itemsize
    of_states = states * (4 if case.rotated else jnp.dtype(case.dtype).itemsize)
    element = 2 * (of_inputs + of_states) if backward else of_inputs + of_states
    return math.prod(case.shape) * element
