"""The kernels of `pallas_kernels.linear_scan_tpu` to be compiled."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import linear_scan_tpu

OP = "linear_scan"


class Case(NamedTuple):
    """Arguments of `linear_scan_tpu.linear_scan`."""

    planes: int = 1
    dtype: str = "float32"
    decay_planes: int = 1
    decay_dtype: str = "float32"
    constant: bool = False
    log: bool = False
    reset: bool = False
    reverse: bool = False
    shape: tuple[int, int, int] = (32, 2048, 1024)


CASES = {
    "float32": Case(),
    "float32, reversed": Case(reverse=True),
    "float32, reset": Case(reset=True),
    "float32 log_a": Case(log=True),
    "bfloat16 x, float32 a": Case(dtype="bfloat16"),
    "bfloat16 x, bfloat16 log_a": Case(
        dtype="bfloat16", decay_dtype="bfloat16", log=True
    ),
    "float32, constant a": Case(constant=True),
    "complex": Case(planes=2, decay_planes=2),
    "complex, constant a": Case(planes=2, decay_planes=2, constant=True),
    "complex, real a": Case(planes=2),
    "float32, one sequence": Case(shape=(1, 32768, 1024)),
    "float32, D 512": Case(shape=(32, 2048, 512)),
    "float32, D 256": Case(shape=(32, 2048, 256)),
    "float32, D 128": Case(shape=(32, 2048, 128)),
    "bfloat16 x, bfloat16 log_a, D 256": Case(
        dtype="bfloat16", decay_dtype="bfloat16", log=True, shape=(32, 2048, 256)
    ),
}

# Whose last blocks are not full: a loop of theirs turns as often as its block is long,
# so that there are no cycles to count.
RAGGED = {
    "ragged float32": Case(shape=(3, 257, 1000), reset=True, reverse=True),
    "ragged bfloat16": Case(
        dtype="bfloat16",
        decay_dtype="bfloat16",
        log=True,
        shape=(3, 1001, 1500),
        reverse=True,
    ),
    "ragged bfloat16, D 96": Case(dtype="bfloat16", shape=(3, 257, 96), reset=True),
    "ragged complex": Case(planes=2, decay_planes=2, shape=(5, 1001, 1000), reset=True),
    "ragged complex, constant a": Case(
        planes=2, decay_planes=2, constant=True, shape=(5, 1001, 130), reverse=True
    ),
    "seven steps": Case(shape=(2, 7, 600), reverse=True),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""
    batch, time, width = case.shape
    x = (jax.ShapeDtypeStruct(case.shape, case.dtype),) * case.planes
    decay_shape = (width,) if case.constant else case.shape
    decay = (jax.ShapeDtypeStruct(decay_shape, case.decay_dtype),) * case.decay_planes
    h0 = (jax.ShapeDtypeStruct((batch, width), jnp.float32),) * case.planes
    reset = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case.reset else None

    def run(x, decay, h0, reset):
        return linear_scan_tpu.linear_scan(
            x, decay, h0, reset, log=case.log, reverse=case.reverse
        )

    return run, (x, decay, h0, reset)


def ideal_bytes(case: Case, backward: bool) -> int:
    """What must be read and written of the arrays (B, T, D), each once."""
    element = jnp.dtype(case.dtype).itemsize * case.planes * (3 if backward else 2)
    if not case.constant:
        of_decay = jnp.dtype(case.decay_dtype).itemsize * case.decay_planes
        element += of_decay * (2 if backward else 1)
    return math.prod(case.shape) * element
