"""How the TPU scans cut arrays (B, T, D) into blocks, and sweep them along time.

A block is a piece (chains, steps, width) of the arrays as they are: no transpose, no
padding. Blocks follow one another along time, and what is carried waits in VMEM.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import target
from pallas_kernels.planes import Planes

Refs = tuple[Any, ...]  # of one plane each
# Arrays, or the shapes of arrays, and the specs of their blocks: pytrees alike.
Blocked = tuple[Any, Any]


class Tiles(NamedTuple):
    """How the arrays are cut: a block is (chains, steps, width) of (B, T, D)."""

    chains: int  # sequences in flight, a divisor of B
    steps: int  # time steps of a block
    width: int  # channels of a block
    by_rows: bool  # one time step at a time; False: log-steps within a tile


class Limits(NamedTuple):
    """What the choice of tiles may use on one kind of device."""

    width: int = 1024  # channels of a block: a register as one row
    row_channels: int = 2048  # in flight by rows, over all chains
    tile_channels: int = 1024  # in flight by log-steps
    rows_from: int = 512  # channels from which rows are faster than log-steps
    steps: int = 512
    buffers: int = 12 << 20  # bytes of all blocks, twice each, of 16 MiB of VMEM
    cores: int = 1  # that share the blocks of one call


# Found by counting the instructions of the compiled kernels: tests/aot.
LIMITS = {
    "TPU v5 lite": Limits(),
    "TPU v5p": Limits(cores=2),
    "TPU v5": Limits(cores=2),
    "TPU v6 lite": Limits(),
    "TPU7x": Limits(),
}


def choose_tiles(
    shape: tuple[int, int, int], bytes_per_element: int, device_kind: str
) -> Tiles:
    """Returns the tiles for arrays of `shape` (B, T, D).

    `bytes_per_element` sums over all arrays of that shape that a kernel touches.
    """
    batch, time, width = shape
    limits = LIMITS.get(device_kind, Limits())
    if width > limits.width:
        blocks = pl.cdiv(width, limits.width)
        width = pl.cdiv(pl.cdiv(width, blocks), 128) * 128
    by_rows = width >= limits.rows_from or time < 16
    lanes = pl.cdiv(width, 128) * 128
    channels = limits.row_channels if by_rows else limits.tile_channels
    most = max(channels // lanes, 1)
    chains = max(n for n in range(1, most + 1) if batch % n == 0)
    if batch // chains * pl.cdiv(shape[2], width) % limits.cores:
        if chains % 2 == 0:
            chains //= 2
        elif width % 256 == 0:
            width, lanes = width // 2, lanes // 2
    steps = limits.steps
    block = 2 * chains * lanes * bytes_per_element
    while steps > 16 and block * steps > limits.buffers:
        steps //= 2
    return Tiles(chains, steps, width, by_rows)


def refuse(named: dict[str, Planes]) -> str | None:
    """Returns why no scan can run here on these arrays, or None."""
    if target.platform() != "tpu":
        return "it is a kernel for TPU"
    for name, planes in named.items():
        for plane in planes:
            if plane.dtype not in (jnp.float32, jnp.bfloat16):
                return f"{name} is {plane.dtype}, wanted float32, complex64 or bfloat16"
    return None


class Cut(NamedTuple):
    """The grid of one call, and the blocks of its arrays."""

    batch: int
    time: int
    width: int
    tiles: Tiles
    rows: int  # time steps of a tile: what one turn of the loop takes
    steps: int  # of a block, `rows` or a multiple of it
    backwards: bool  # whether the sweep runs from the last time step to the first

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.time, self.steps)

    @property
    def grid(self) -> tuple[int, int, int]:
        batches = self.batch // self.tiles.chains
        return batches, pl.cdiv(self.width, self.tiles.width), self.blocks

    def block(self, step: Any) -> Any:
        """The block of time that the sweep has at a step of the grid."""
        return self.blocks - 1 - step if self.backwards else step

    def plane(self) -> pl.BlockSpec:
        shape = self.tiles.chains, self.steps, self.tiles.width
        return pl.BlockSpec(shape, lambda b, d, t: (b, self.block(t), d))

    def edge(self) -> pl.BlockSpec:
        """The tile that the sweep reaches after a block: of `h`, for its last row."""
        per_block = self.steps // self.rows
        end = pl.cdiv(self.time, self.rows) - 1

        def index(b, d, t):
            if self.backwards:
                return b, jnp.maximum(self.block(t) * per_block - 1, 0), d
            return b, jnp.minimum((self.block(t) + 1) * per_block, end), d

        return pl.BlockSpec((self.tiles.chains, self.rows, self.tiles.width), index)

    def state(self) -> pl.BlockSpec:
        """Of states, given as (B, 1, D)."""
        shape = self.tiles.chains, 1, self.tiles.width
        return pl.BlockSpec(shape, lambda b, d, t: (b, 0, d))

    def constant(self) -> pl.BlockSpec:
        """Of a decay (D,), given as (1, D)."""
        return pl.BlockSpec((1, self.tiles.width), lambda b, d, t: (0, d))

    def total(self) -> pl.BlockSpec:
        """Of the sum over the sequences of a block and time: (B / chains, 1, D)."""
        return pl.BlockSpec((None, 1, self.tiles.width), lambda b, d, t: (b, 0, d))

    def keep(self) -> pl.BlockSpec:
        """Of the factor that a reset puts on the state, one scalar for each step."""
        shape = self.tiles.chains, None, 1, self.steps
        return pl.BlockSpec(
            shape,
            lambda b, d, t: (b, self.block(t), 0, 0),
            memory_space=pltpu.SMEM,
        )

    def restarts(self) -> pl.BlockSpec:
        """Of the steps with a reset, one word for each tile."""
        shape = self.tiles.chains, None, 1, self.steps // self.rows
        return pl.BlockSpec(
            shape,
            lambda b, d, t: (b, self.block(t), 0, 0),
            memory_space=pltpu.SMEM,
        )

    def carried(self) -> Any:
        """Scratch for one row of each chain, kept from block to block."""
        return pltpu.VMEM((self.tiles.chains, 1, self.tiles.width), jnp.float32)

    def scratch(self, planes: int) -> tuple[Any, ...]:
        """Scratch for a tile of each chain, where rows are taken from tiles."""
        if not self.tiles.by_rows:
            return ()
        shape = self.tiles.chains, self.rows, self.tiles.width
        return (pltpu.VMEM(shape, jnp.float32),) * planes

    def total_scratch(self, planes: int) -> tuple[Any, ...]:
        """Scratch for sums over the time of each chain, in 8 parts or one for a row."""
        parts = self.rows if self.rows % 8 else 8
        shape = self.tiles.chains, parts, self.tiles.width
        return (pltpu.VMEM(shape, jnp.float32),) * planes

    def stages(self, planes: Sequence[Any]) -> tuple[Any, ...]:
        """Scratch through which rows of narrow dtypes go; their refs have no rows.

        A packed row cannot be addressed alone, so a tile of it is widened here first.
        """
        shape = self.tiles.chains, self.rows, self.tiles.width
        if not self.tiles.by_rows or planes[0].dtype == jnp.float32:
            return (None,) * len(planes)
        return tuple(pltpu.VMEM(shape, jnp.float32) for _ in planes)

    def sweep(self, tile: Callable, carry: Any) -> Any:
        """Takes `carry` through `tile(start, rows, carry)` over one block, in order.

        The last block of time may be shorter: it has fewer tiles, and a last one of
        fewer rows. `start` is where a tile begins within the block.
        """
        per_block = self.steps // self.rows
        length = self.time - (self.blocks - 1) * self.steps
        tiles, rest = divmod(length, self.rows)
        is_last = self.block(pl.program_id(2)) == self.blocks - 1

        def full(carry):
            if self.blocks == 1 and tiles == 1:
                return tile(0, self.rows, carry)
            ragged = tiles != per_block
            count = jnp.where(is_last, tiles, per_block) if ragged else per_block
            pairs = not self.tiles.by_rows and not ragged and per_block % 2 == 0

            def body(i, carry):
                i = count - 1 - i if self.backwards else i
                return tile(pl.multiple_of(i * self.rows, self.rows), self.rows, carry)

            return lax.fori_loop(0, count, body, carry, unroll=2 if pairs else 1)

        def shorter(carry):
            if rest == 0:
                return carry
            short = functools.partial(tile, tiles * self.rows, rest)
            return lax.cond(is_last, short, lambda carry: carry, carry)

        return full(shorter(carry)) if self.backwards else shorter(full(carry))

    def sweep_states(self, tile: Callable, begin: Any, carried: Any, end: Any) -> None:
        """Takes the states of the chains through all blocks, from `begin` to `end`.

        All three are refs of one plane each; `carried` keeps them between blocks.
        """

        @pl.when(pl.program_id(2) == 0)
        def _():
            for ref, state in zip(carried, begin, strict=True):
                ref[...] = state[...]

        chains = range(self.tiles.chains)
        states = tuple(tuple(ref[n] for ref in carried) for n in chains)
        for n, planes in zip(chains, self.sweep(tile, states), strict=True):
            for ref, plane in zip(carried, planes, strict=True):
                ref[n] = plane

        @pl.when(pl.program_id(2) == self.blocks - 1)
        def _():
            for ref, state in zip(end, carried, strict=True):
                ref[...] = state[...]

    def length(self) -> Any:
        """How many time steps this block has."""
        length = self.time - (self.blocks - 1) * self.steps
        if self.blocks == 1:
            return length
        is_last = self.block(pl.program_id(2)) == self.blocks - 1
        return jnp.where(is_last, length, self.steps)

    def order(self, rows: int) -> Sequence[int]:
        return range(rows)[::-1] if self.backwards else range(rows)


def cut_arrays(
    planes: Sequence[Sequence[Any]], backwards: bool, tiles: Tiles | None
) -> Cut:
    """Cuts arrays of one shape."""
    batch, time, width = planes[0][0].shape
    dtypes = [plane.dtype for some in planes for plane in some]
    if tiles is None:
        tiles = choose_tiles(
            (batch, time, width),
            sum(dtype.itemsize for dtype in dtypes),
            target.device_kind(),
        )
    packed = any(dtype != jnp.float32 for dtype in dtypes)
    alone = tiles.by_rows and tiles.chains == 1  # a longer tile has more to overlap
    rows = min(time, 16 if packed or alone else 8)
    steps = max(min(tiles.steps, time) // rows, 1) * rows
    if rows % 8:  # fewer time steps than a tile has
        tiles = tiles._replace(by_rows=True)
    return Cut(batch, time, width, tiles, rows, steps, backwards)


def call(
    kernel: Callable[..., None],
    name: str,
    cut: Cut,
    inputs: Sequence[Blocked],
    outputs: Sequence[Blocked],
    scratch: Sequence[Any],
    transcendental: int,
) -> Any:
    """`pl.pallas_call` on pairs (arrays, specs), for outputs (shapes, specs)."""
    arrays = jax.tree.leaves(([a for a, _ in inputs], [s for s, _ in outputs]))
    # What appears twice is read twice only at its edges.
    planes = list({id(array): array for array in arrays}.values())
    elements = cut.batch * cut.time * cut.width
    return pl.pallas_call(
        functools.partial(kernel, cut),
        grid=cut.grid,
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * elements * len(planes),
            bytes_accessed=sum(p.size * p.dtype.itemsize for p in planes),
            transcendentals=elements * transcendental,
        ),
        name=name,
    )(*(array for array, _ in inputs))


def shaped(
    planes: Any, shape: tuple[int, ...] | None = None, dtype: Any = None
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The planes of an output like `planes`."""
    return tuple(
        jax.ShapeDtypeStruct(
            p.shape if shape is None else shape,
            p.dtype if dtype is None else dtype,
            manual_axis_type=jax.typeof(p).manual_axis_type,
        )
        for p in planes
    )


def decay_input(decay: Planes, cut: Cut) -> Blocked:
    """A decay, of every step or one for all."""
    if decay[0].ndim == 1:
        return tuple(p[None] for p in decay), (cut.constant(),) * len(decay)
    return decay, (cut.plane(),) * len(decay)


def keep_input(reset: jax.Array | None, cut: Cut) -> Blocked:
    """The factor that a reset puts on the state, in memory for scalars.

    A block there has the length of a block, so the mask is padded.
    """
    if reset is None:
        return (), ()
    missing = cut.blocks * cut.steps - cut.time
    keep = 1 - jnp.pad(reset, ((0, 0), (0, missing))).astype(jnp.float32)
    return (keep.reshape(cut.batch, cut.blocks, 1, cut.steps),), (cut.keep(),)


def restart_input(reset: jax.Array | None, cut: Cut) -> Blocked:
    """The resets of a tile as the bits of a word."""
    if reset is None:
        return (), ()
    missing = cut.blocks * cut.steps - cut.time
    rows = jnp.pad(reset, ((0, 0), (0, missing))).reshape(-1, cut.rows)
    bit = jnp.left_shift(1, jnp.arange(cut.rows, dtype=jnp.int32))
    words = jnp.sum(jnp.where(rows, bit[None], 0), axis=1, dtype=jnp.int32)
    return (words.reshape(cut.batch, cut.blocks, 1, -1),), (cut.restarts(),)


def state_input(state: Planes, cut: Cut) -> Blocked:
    """States (B, D), with the axis of time that their blocks have."""
    return tuple(p[:, None] for p in state), (cut.state(),) * len(state)
