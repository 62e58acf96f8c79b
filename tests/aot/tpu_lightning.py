"""The kernels of `pallas_kernels.lightning_tpu` to be compiled."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import lightning_tpu
from ssm.ops.lightning_chunked import attention_chunked

OP = "lightning"


class Case(NamedTuple):
    """Arguments of `lightning_tpu.lightning_attention`; `shape` is (B, T, H K)."""

    dtype: str = "bfloat16"
    width: int = 128
    by_step: bool = False
    reset: bool = False
    shape: tuple[int, int, int] = (4, 4096, 2048)
    overhead: float = 0.04  # bytes that XLA may move over the ideal ones, in theirs


# XLA lays the states of narrow heads on the diagonal of larger ones, and sums up the
# decays of each step, around the kernel.
AROUND = 0.2
CASES = {
    # For tpu7x it copies the states into the chip's memory and back.
    "bfloat16, K 128": Case(overhead=0.07),
    "bfloat16, K 64": Case(width=64, overhead=AROUND),
    "bfloat16, K 128, decay of each step": Case(by_step=True, overhead=AROUND),
    "float32, K 128": Case(dtype="float32"),
}
RAGGED = {
    "ragged bfloat16, K 64": Case(width=64, shape=(3, 1001, 384), by_step=True),
    "ragged float32, reset": Case(dtype="float32", shape=(2, 300, 256), reset=True),
    "seven steps": Case(shape=(2, 7, 128)),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the op of a case and the shapes of its arguments."""
    batch, time, lanes = case.shape
    heads = lanes // case.width
    array = jax.ShapeDtypeStruct(case.shape, case.dtype)
    decay_shape = (batch, time, heads) if case.by_step else (heads,)
    decay = jax.ShapeDtypeStruct(decay_shape, jnp.float32)
    s0 = jax.ShapeDtypeStruct((batch, heads, case.width, case.width), jnp.float32)
    reset = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case.reset else None

    def run(q, k, v, decay, s0, reset):
        def split(array):
            return array.reshape(batch, time, heads, case.width)

        o, last = lightning_tpu.lightning_attention(
            *map(split, (q, k, v)), decay, s0, reset, composed=attention_chunked
        )
        return o.reshape(case.shape), last

    return run, (array, array, array, decay, s0, reset)


def ideal_bytes(case: Case, backward: bool) -> int:
    """What must be read and written: the arrays, and states.

    There is a state at either end, and for the backward pass one for each 512 steps.
    """
    time = case.shape[1]
    elements = math.prod(case.shape)
    planes = elements * jnp.dtype(case.dtype).itemsize * (7 if backward else 4)
    state = elements // time * case.width * 4
    starts = time // 512 * state if backward else 0
    decays = elements // case.width * 4 if case.by_step else 0
    return planes + 2 * state + starts + decays * (2 if backward else 1)
