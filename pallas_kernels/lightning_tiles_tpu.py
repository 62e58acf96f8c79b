"""Blocks, chunks and products of the lightning attention kernels for TPU.

The heads lie side by side in lanes, as a projection leaves them, (B, T, H K): as many
as 128 lanes hold make a group, and their states the diagonal blocks of one matrix. A
block is a piece of time of some groups, and a chunk 128 steps of it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels import target

LANES = 128
CHUNK = 128
CHUNKS = 4  # of a block
GROUP_BYTES = 8  # of an element of all groups in one block


def refuse(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
) -> str | None:
    """Returns why `lightning_attention` cannot run here on these arguments, or None."""
    del log_decay, s0, reset
    if target.platform() != "tpu":
        return "it is a kernel for TPU"
    if not q.dtype == k.dtype == v.dtype or v.dtype not in (jnp.float32, jnp.bfloat16):
        return (
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, wanted all float32 or "
            "all bfloat16"
        )
    heads, width = q.shape[2:]
    if v.shape[3] != width or width not in (32, 64, 128) or heads * width % LANES:
        return (
            f"it has {heads} heads of K = {width} and V = {v.shape[3]}, wanted K = V "
            f"of 32, 64 or {LANES}, and H K a multiple of {LANES}"
        )
    return None


class Cut(NamedTuple):
    """How the arrays (B, T, H K) are cut: a block is (1, `steps`, `groups` * 128)."""

    batch: int
    time: int
    heads: int
    width: int
    groups: int
    steps: int

    @classmethod
    def of(cls, q: jax.Array, s0: jax.Array) -> Self:
        batch, time, _ = q.shape
        heads, width = s0.shape[1:3]
        steps = CHUNK * min(CHUNKS, pl.cdiv(time, CHUNK))
        cut = cls(batch, time, heads, width, 1, steps)
        return cut.with_groups(GROUP_BYTES // q.dtype.itemsize)

    def with_groups(self, most: int) -> Self:
        """The same with as many groups in a block as divide all, at most `most`."""
        all_groups = self.heads * self.width // LANES
        counts = range(1, max(most, 1) + 1)
        return self._replace(groups=max(n for n in counts if all_groups % n == 0))

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.time, self.steps)

    @property
    def padded(self) -> int:
        """The time steps that all blocks together have."""
        return self.blocks * self.steps

    @property
    def per_group(self) -> int:
        """The heads of a group."""
        return LANES // self.width

    @property
    def in_block(self) -> int:
        """The heads of a block."""
        return self.groups * self.per_group

    @property
    def lanes(self) -> int:
        return self.groups * LANES

    def block(self, t: Any, backwards: bool) -> Any:
        return self.blocks - 1 - t if backwards else t

    def diagonal(self, states: jax.Array) -> jax.Array:
        """(B, H, K, K) as (B, H K / 128, 128, 128), the heads on the diagonal."""
        n, width = self.per_group, self.width
        states = states.reshape(self.batch, -1, n, width, width)
        rows = [
            jnp.pad(
                states[:, :, i], ((0, 0),) * 3 + ((i * width, (n - 1 - i) * width),)
            )
            for i in range(n)
        ]
        return jnp.concatenate(rows, axis=2)

    def off_diagonal(self, states: jax.Array) -> jax.Array:
        """The inverse of `diagonal`."""
        pieces = []
        for i in range(self.per_group):
            lanes = slice(i * self.width, (i + 1) * self.width)
            pieces.append(states[:, :, lanes, lanes])
        shape = states.shape[0], self.heads, self.width, self.width
        return jnp.stack(pieces, axis=2).reshape(shape)

    def plane(self, backwards: bool) -> pl.BlockSpec:
        """Of an array (B, T, H K)."""
        shape = 1, self.steps, self.lanes
        return pl.BlockSpec(shape, lambda b, g, t: (b, self.block(t, backwards), g))

    def state(self) -> pl.BlockSpec:
        """Of states (B, groups, 128, 128)."""
        shape = 1, self.groups, LANES, LANES
        return pl.BlockSpec(shape, lambda b, g, t: (b, g, 0, 0))

    def starts(self, backwards: bool) -> pl.BlockSpec:
        """Of the states at the starts of the blocks, (B, blocks, groups, 128, 128)."""
        shape = 1, 1, self.groups, LANES, LANES
        return pl.BlockSpec(
            shape, lambda b, g, t: (b, self.block(t, backwards), g, 0, 0)
        )


def like(
    array: jax.Array, shape: tuple[int, ...], dtype: DTypeLike
) -> jax.ShapeDtypeStruct:
    """A result of a kernel, which varies over the mesh axes that `array` does."""
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(array).manual_axis_type
    )


def call(
    kernel: Callable,
    cut: Cut,
    name: str,
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: Sequence[Any],
    products: int,
) -> Any:
    """`pl.pallas_call` on pairs (array, spec), for outputs (shape, spec)."""
    arrays = [array for array, _ in inputs] + [shape for shape, _ in outputs]
    groups = cut.heads * cut.width // LANES
    elements = cut.batch * cut.padded * groups * LANES
    return pl.pallas_call(
        functools.partial(kernel, cut),
        grid=(cut.batch, groups // cut.groups, cut.blocks),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * elements * LANES * products,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in arrays),
            transcendentals=0,
        ),
        name=name,
    )(*(array for array, _ in inputs))


def iota(axis: int, shape: tuple[int, ...] = (CHUNK, LANES)) -> jax.Array:
    """The indices along an axis."""
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def of_head(cut: Cut, array: jax.Array, i: int) -> jax.Array:
    """What is in the lanes of head i of a group, and 0 elsewhere."""
    if cut.per_group == 1:
        return array
    head = iota(1, array.shape) // cut.width
    return jnp.where(head == i, array, jnp.zeros_like(array))


def diagonal(cut: Cut, state: jax.Array) -> jax.Array:
    """The blocks of the heads in a product of 128 by 128 lanes."""
    if cut.per_group == 1:
        return state
    same = iota(0, state.shape) // cut.width == iota(1, state.shape) // cut.width
    return jnp.where(same, state, 0.0)


Contract = tuple[tuple[int], tuple[int]]
NN: Contract = (1,), (0,)
NT: Contract = (1,), (1,)
TN: Contract = (0,), (0,)


def dot(a: jax.Array, b: jax.Array, contract: Contract) -> jax.Array:
    """A product on the matrix unit; factors in float32 are taken as they are."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (contract, ((), ())), precision=exact, preferred_element_type=jnp.float32
    )


def wide(array: jax.Array) -> jax.Array:
    """In float32."""
    return array.astype(jnp.float32)


def chunk_of(cut: Cut, ref: Any, block: Any, g: int, begin: Any) -> jax.Array:
    """A chunk of one group, (C, 128); zeros beyond the end of time."""
    rows = pl.ds(begin, CHUNK)
    array = ref[0, rows, g * LANES : (g + 1) * LANES]
    if ref.shape[1] * cut.blocks == cut.time:
        return array
    step = block * cut.steps + begin + iota(0)
    return jnp.where(step < cut.time, array, jnp.zeros_like(array))
