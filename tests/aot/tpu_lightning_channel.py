"""The kernels of `pallas_kernels.lightning_channel_tpu` to be compiled."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import lightning_channel_tpu
from ssm.ops.lightning_chunked import attention_chunked

OP = "lightning_channel"


class Case(NamedTuple):
    """Arguments of the kernels; `shape` is (B, T, H K)."""

    dtype: str = "bfloat16"
    decay_dtype: str = "float32"
    width: int = 128
    reset: bool = False
    shape: tuple[int, int, int] = (4, 4096, 2048)
    # Bytes that XLA may move over the ideal ones, in theirs: on tpu7x it fetches the
    # first states into VMEM ahead of the kernel, and counts those four times.
    overhead: float = 0.05


# XLA lays the states of narrow heads on the diagonal of larger ones.
CASES = {
    "bfloat16, K 128": Case(),
    "bfloat16 and decay, K 128": Case(decay_dtype="bfloat16"),
    "bfloat16, K 64": Case(width=64, overhead=0.2),
    "float32, K 128": Case(dtype="float32"),
}
RAGGED = {
    "ragged bfloat16, K 64": Case(width=64, shape=(3, 1001, 384)),
    "ragged float32, reset": Case(dtype="float32", shape=(2, 300, 256), reset=True),
    "seven steps": Case(shape=(2, 7, 128)),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the op of a case and the shapes of its arguments."""
    batch, time, lanes = case.shape
    heads = lanes // case.width
    array = jax.ShapeDtypeStruct(case.shape, case.dtype)
    decay = jax.ShapeDtypeStruct(case.shape, case.decay_dtype)
    s0 = jax.ShapeDtypeStruct((batch, heads, case.width, case.width), jnp.float32)
    reset = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case.reset else None

    def run(q, k, v, decay, s0, reset):
        def split(array):
            return array.reshape(batch, time, heads, case.width)

        o, last = lightning_channel_tpu.lightning_attention(
            *map(split, (q, k, v, decay)), s0, reset, composed=attention_chunked
        )
        return o.reshape(case.shape), last

    return run, (array, array, array, decay, s0, reset)


def ideal_bytes(case: Case, backward: bool) -> int:
    """What must be read and written: the arrays, and states.

    There is a state at either end, and for the backward pass one for each 512 steps.
    """
    time = case.shape[1]
    elements = math.prod(case.shape)
    planes = jnp.dtype(case.dtype).itemsize * (7 if backward else 4)
    decays = jnp.dtype(case.decay_dtype).itemsize * (2 if backward else 1)
    state = elements // time * case.width * 4
    starts = time // 512 * state if backward else 0
    return elements * (planes + decays) + 2 * state + starts
