"""A recurrence along time on GPU: a ring of blocks in shared memory.

A thread block of 128 threads owns `width` channels of one sequence, or of a segment of
it, and every thread one or two of these channels. Blocks of `steps` rows are copied
into a ring of `stages` slots, so that the next ones arrive while one is worked on. What
lies outside the arrays the copy engine reads as zeros, and does not write. A thread
takes its channels from row to row, with the state in its registers.

Where sequences and channels are too few to occupy the device, time is cut into segments
that run at once. A first kernel gives for each of them how it maps the state, a second
one starts each segment from the state that the segments before it lead to.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mg

from pallas_kernels import target
from pallas_kernels.planes import Planes, add, multiply
from pallas_kernels.varying import vary_as

THREADS = 128
ROWS = 8  # that are read before the first of them is used: loads do not pass stores
OUT_SLOTS = 2
MARKS = 32  # resets that are copied, at least: 128 bytes


class Tiles(NamedTuple):
    """How the arrays (B, T, D) are cut."""

    width: int  # channels of a thread block: 128 or 256
    steps: int  # time steps of a slot, a multiple of 8
    stages: int  # slots
    segments: int  # of time, that run at once


class Limits(NamedTuple):
    """What the choice of tiles may use on one kind of device."""

    processors: int = 132
    shared: int = 224 << 10  # bytes for one thread block
    steps: int = 32
    stages: int = 4
    shortest: int = 256  # time steps of a segment


# The first pattern that is found in the name of the device.
LIMITS = {
    r"H100 PCIe": Limits(processors=114),
    r"\bH20\b": Limits(processors=78),
    r"\bG?B[123]00\b": Limits(processors=148),
    r"\bGB10\b": Limits(processors=48, shared=96 << 10),
    r"RTX": Limits(processors=170, shared=96 << 10),
    r"": Limits(),
}


def limits(device_kind: str) -> Limits:
    """Returns what tiles may use on a kind of device."""
    return next(v for name, v in LIMITS.items() if re.search(name, device_kind))


def choose_tiles(
    shape: tuple[int, int, int],
    bytes_in: int,
    bytes_out: int,
    narrow: bool,
    device_kind: str,
) -> Tiles:
    """Returns the tiles for arrays of `shape` (B, T, D).

    `bytes_in` and `bytes_out` sum over the arrays that a kernel reads and writes, for
    one element of each. `narrow`: some of them have 2 bytes, and two channels for each
    thread make its accesses 4 bytes wide.
    """
    batch, time, channels = shape
    most = limits(device_kind)
    width = THREADS
    if narrow and 2 * batch * pl.cdiv(channels, 2 * THREADS) >= most.processors:
        width = 2 * THREADS
    steps, stages = most.steps, most.stages

    def size():
        of_slot = width * (steps + 1) * bytes_in + 4 * MARKS
        return stages * of_slot + OUT_SLOTS * width * steps * bytes_out

    while size() > most.shared and steps > ROWS:
        steps //= 2
    while size() > most.shared and stages > 2:
        stages -= 1
    blocks = batch * pl.cdiv(channels, width)
    segments = 1
    if 3 * blocks <= most.processors:  # the memory would not be busy
        segments = max(min(most.processors // blocks, time // most.shortest), 1)
    return Tiles(width, steps, stages, segments)


def refuse(named: dict[str, Planes]) -> str | None:
    """Returns why no kernel of this kind can run here on these arrays, or None."""
    if target.platform() != "gpu":
        return "it is a kernel for GPU"
    if not _capable(target.device_kind()):
        return (
            f"{target.device_kind()!r} is no GPU known to have compute capability 9.0 "
            "or more (Hopper, Blackwell)"
        )
    for name, planes in named.items():
        for plane in planes:
            if plane.dtype not in (jnp.float32, jnp.bfloat16):
                return f"{name} is {plane.dtype}, wanted float32, complex64 or bfloat16"
    return None


def _capable(device_kind: str) -> bool:
    """Whether a device has the copy engine: asked if it is here, else by its name."""
    for device in jax.devices():
        if device.device_kind == device_kind and device.platform == "gpu":
            capability = str(getattr(device, "compute_capability", ""))
            return bool(re.fullmatch(r"\d+\.\d+", capability)) and (
                int(capability.split(".")[0]) >= 9
            )
    names = r"\b(G?H[12]00|H800|H20|G?B[123]00|GB10)\b|RTX 50[5-9]0|RTX.*Blackwell"
    return re.search(names, device_kind) is not None


class Cut(NamedTuple):
    """The thread blocks of one call."""

    batch: int
    time: int
    width: int
    tiles: Tiles
    backwards: bool  # whether the sweep runs from the last time step to the first

    @property
    def blocks(self) -> int:
        """Of `steps` rows, the last one maybe shorter."""
        return pl.cdiv(self.time, self.tiles.steps)

    @property
    def segment_blocks(self) -> int:
        """Of a segment; the last one in time may have fewer."""
        return pl.cdiv(self.blocks, self.tiles.segments)

    @property
    def segments(self) -> int:
        return pl.cdiv(self.blocks, self.segment_blocks)

    @property
    def marks(self) -> int:
        """Resets of a slot."""
        return max(self.tiles.steps, MARKS)

    @property
    def columns(self) -> int:
        return pl.cdiv(self.width, self.tiles.width)


def cut_arrays(
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
    backwards: bool,
    tiles: Tiles | None,
) -> Cut:
    """Cuts a kernel that reads and writes arrays of these types, of one shape."""
    batch, time, width = inputs[0].shape
    if tiles is None:
        sizes_in, sizes_out = ([a.dtype.itemsize for a in b] for b in (inputs, outputs))
        tiles = choose_tiles(
            (batch, time, width),
            sum(sizes_in),
            sum(sizes_out),
            min(sizes_in + sizes_out) < 4,
            target.device_kind(),
        )
    return Cut(batch, time, width, tiles, backwards)


def select(flag: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """A row where a scalar is true, else another: kernels broadcast no scalar."""
    return jnp.where(jnp.broadcast_to(flag, a.shape), a, b)


def clear(reset: jax.Array | None, planes: Planes) -> Planes:
    """Zeros at a reset, else the planes."""
    if reset is None:
        return planes
    return tuple(select(reset, jnp.zeros_like(p), p) for p in planes)


def identity(decays: int, state: Planes) -> Planes:
    """The summary of no time step: a decay of one, of some planes, and a zero state."""
    one = tuple(jnp.full_like(state[0], 1 - i) for i in range(decays))
    return (*one, *map(jnp.zeros_like, state))


def fold_segments(decays: int, summary: Planes, carry: Planes) -> Planes:
    """The state after a segment, from its summary and the state before it."""
    product, state = summary[:decays], summary[decays:]
    before = carry[: len(state)]
    # A product that overflows does not reach a state whose planes are all zero.
    moved = []
    for plane in multiply(product, before):
        kept = jnp.zeros_like(plane)
        for part in before:
            kept = jnp.where(part == 0, kept, plane)
        moved.append(kept)
    return add(tuple(moved), state)


# row(constants, carry, values, previous, reset) -> carry, outputs: one time step. All
# are tuples of float32 rows, with those of `planes` and of `previous`; but `reset` is a
# scalar, or None.
Row = Callable[..., tuple[Planes, Planes]]


def sweep(
    row: Row,
    name: str,
    cut: Cut,
    *,
    constants: Planes,
    carry: Planes,
    planes: Planes,
    previous: Planes = (),
    first: Planes = (),
    reset: jax.Array | None,
    outputs: Sequence[jax.Array],
    summaries: Planes = (),
    fold: Callable[..., Planes] | None = None,
) -> tuple[Planes, Planes]:
    """Takes a carry through `row` over all time steps, or over those of each segment.

    Args:
      row: one time step.
      name: of the kernel.
      cut: its thread blocks.
      constants: (D,) float32.
      carry: (B, D) float32, what the sweep starts from.
      planes: (B, T, D), of which a row sees its time step.
      previous: (B, T, D), of which a row sees the time step that comes next.
      first: (B, D), what it sees there at the last one, for each of `previous`.
      reset: (B, T) bool.
      outputs: arrays like those (B, T, D) that are written.
      summaries: (B, segments, D), what a segment does to the carry.
      fold: fold(summaries, carry) -> carry after the segment, for the leading part of
        the carry that it returns.

    Returns:
      The outputs (B, T, D), and the carry at the end of each segment, (B, segments, D).
    """
    tiles, batch = cut.tiles, cut.batch
    wide = cut.columns * tiles.width
    itemsize = min(p.dtype.itemsize for p in (*planes, *previous, *outputs))
    aligned = pl.cdiv(cut.width * itemsize, 16) * 16 // itemsize

    def pad(array, width):
        missing = [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])]
        return jnp.pad(array, missing) if missing[-1][1] else array

    marks: Planes = ()
    if reset is not None:
        marks = (pad(reset, pl.cdiv(cut.time, 4) * 4).astype(jnp.int32),)
    states = constants, carry, first, summaries
    inputs = (
        *(tuple(pad(p, aligned) for p in some) for some in (planes, previous)),
        marks,
        *(tuple(pad(p, wide) for p in some) for some in states),
    )
    ends = (batch, cut.segments, wide)
    out_types = (
        tuple(
            jax.ShapeDtypeStruct((batch, cut.time, aligned), p.dtype) for p in outputs
        ),
        tuple(jax.ShapeDtypeStruct(ends, p.dtype) for p in carry),
    )

    def slots(count, arrays, more=0):
        shape = count, tiles.steps + more, tiles.width
        return tuple(mg.SMEM(shape, p.dtype) for p in arrays)

    copies = len(planes) + len(previous) + len(marks)
    scratch = (
        slots(tiles.stages, planes),
        slots(tiles.stages, previous, more=1),
        tuple(mg.SMEM((tiles.stages, cut.marks), jnp.int32) for _ in marks),
        slots(OUT_SLOTS, outputs),
        mg.Barrier(num_arrivals=copies, num_barriers=tiles.stages),
    )
    trees = jax.tree.structure((inputs, out_types, scratch))

    def body(*refs):
        _kernel(row, fold, cut, *jax.tree.unflatten(trees, refs))

    out = mg.kernel(
        body,
        out_type=jax.tree.leaves(out_types),
        scratch_types=jax.tree.leaves(scratch),
        grid=(batch * cut.segments * cut.columns,),
        grid_names=("block",),
        # Every thread reads and writes its own channels only, but where memory is
        # committed.
        compiler_params=mg.CompilerParams(unsafe_no_auto_barriers=True),
        kernel_name=name,
    )(*jax.tree.leaves(inputs))
    out = [vary_as(p, carry[0])[..., : cut.width] for p in out]
    return tuple(out[: len(outputs)]), tuple(out[len(outputs) :])


def _kernel(row, fold, cut, inputs, outputs, scratch):
    planes, previous, marks, constants, carry, first, summaries = inputs
    written, ended = outputs
    plane_slots, previous_slots, mark_slots, out_slots, ready = scratch
    width, steps, stages, _ = cut.tiles
    segments, per_segment = cut.segments, cut.segment_blocks

    index = lax.axis_index("block")
    column, index = lax.rem(index, cut.columns), lax.div(index, cut.columns)
    place, b = lax.rem(index, segments), lax.div(index, segments)
    channels = pl.ds(column * width, width)
    segment = segments - 1 - place if cut.backwards else place
    count = jnp.minimum(cut.blocks - segment * per_segment, per_segment)

    def block(i):
        """The block of time that is the i-th one of this sweep."""
        return segment * per_segment + (count - 1 - i if cut.backwards else i)

    def copy(i):
        slot, start = lax.rem(i, stages), block(i) * steps

        def fetch(source, destination):
            mg.copy_gmem_to_smem(source, destination.at[slot], ready.at[slot])

        for ref, slots in zip(planes, plane_slots, strict=True):
            fetch(ref.at[b, pl.ds(start, steps), channels], slots)
        for ref, slots in zip(previous, previous_slots, strict=True):
            ahead, row = start + 1, 0
            if cut.backwards:  # nothing can be copied from before the array
                ahead, row = jnp.maximum(start - 1, 0), (start == 0).astype(jnp.int32)
            mg.copy_gmem_to_smem(
                ref.at[b, pl.ds(ahead, steps), channels],
                slots.at[slot, pl.ds(row, steps)],
                ready.at[slot],
            )
        for ref, slots in zip(marks, mark_slots, strict=True):
            fetch(ref.at[b, pl.ds(start, cut.marks)], slots)

    def rows(slot, out_slot, start, number, carry):
        """Takes the carry through some rows of a slot."""
        order = [start + j for j in range(number)]
        order = order[::-1] if cut.backwards else order

        def read(slots):
            return [
                tuple(ref[slot, r].astype(jnp.float32) for ref in slots) for r in order
            ]

        values, nexts = read(plane_slots), read(previous_slots)
        resets = [ref[slot, r] != 0 for ref in mark_slots for r in order]
        for j, r in enumerate(order):
            reset = resets[j] if resets else None
            carry, out = row(constant, carry, values[j], nexts[j], reset)
            for ref, value in zip(out_slots, out, strict=True):
                ref[out_slot, r] = value.astype(ref.dtype)
        return carry

    def step(i, carry):
        slot, out_slot = lax.rem(i, stages), lax.rem(i, OUT_SLOTS)
        mg.barrier_wait(ready.at[slot])
        if written:
            mg.wait_smem_to_gmem(OUT_SLOTS - 1, wait_read_only=True)
        edge = 0 if cut.backwards else cut.blocks - 1
        last_row = 0 if cut.backwards else cut.time - 1 - edge * steps
        if first:

            @pl.when(block(i) == edge)
            def _():
                for ref, slots in zip(first, previous_slots, strict=True):
                    slots[slot, last_row] = ref[b, channels].astype(slots.dtype)
                mg.commit_smem()

        carry = _rows_of_block(
            cut,
            block(i) == cut.blocks - 1,
            lambda start, number, carry: rows(slot, out_slot, start, number, carry),
            carry,
        )
        mg.commit_smem()  # also the barrier after which the slot is free
        for n, (ref, slots) in enumerate(zip(written, out_slots, strict=True)):
            mg.copy_smem_to_gmem(
                slots.at[out_slot],
                ref.at[b, pl.ds(block(i) * steps, steps), channels],
                commit_group=n == len(written) - 1,
            )

        @pl.when(i + stages < count)
        def _():
            copy(i + stages)

        return carry

    for i in range(min(stages, per_segment)):
        pl.when(i < count)(functools.partial(copy, i))
    # The products forget over which axes of a mesh an array varies: within the kernel
    # nothing else knows.
    constant = tuple(ref[channels] * 1.0 for ref in constants)
    state = tuple(ref[b, channels] * 1.0 for ref in carry)
    if summaries:
        state = _fold(fold, summaries, segments, place, b, channels, state)
    state = lax.fori_loop(0, count, step, state)
    for ref, value in zip(ended, state, strict=True):
        ref[b, place, channels] = value
    mg.wait_smem_to_gmem(0)


def _rows_of_block(cut, is_last, rows, carry):
    """Takes the carry through the rows of a block, some at a time.

    The last block of time may be shorter: fewer turns, and a last one of fewer rows.
    """
    turns = cut.tiles.steps // ROWS
    last_turns, rest = divmod(cut.time - (cut.blocks - 1) * cut.tiles.steps, ROWS)
    count = turns if turns == last_turns else jnp.where(is_last, last_turns, turns)

    def full(carry):
        def turn(i, carry):
            return rows((count - 1 - i if cut.backwards else i) * ROWS, ROWS, carry)

        return lax.fori_loop(0, count, turn, carry)

    def short(carry):
        return rows(last_turns * ROWS, rest, carry)

    def unchanged(carry):
        return carry

    def shorter(carry):
        if rest == 0:
            return carry
        return lax.cond(is_last, short, unchanged, carry)

    return full(shorter(carry)) if cut.backwards else shorter(full(carry))


def _fold(fold, summaries, segments, place, b, channels, state):
    """The state at the start of a segment, through the summaries of those before it."""

    def some(i, state):
        places = [i * ROWS + j for j in range(ROWS)]
        maps = [
            tuple(ref[b, jnp.minimum(p, segments - 1), channels] for ref in summaries)
            for p in places
        ]
        for p, summary in zip(places, maps, strict=True):
            after = fold(summary, state)
            after = tuple(
                select(p < place, q, r)
                for q, r in zip(after, state[: len(after)], strict=True)
            )
            state = after + state[len(after) :]
        return state

    return lax.fori_loop(0, lax.div(place + ROWS - 1, ROWS), some, state)
