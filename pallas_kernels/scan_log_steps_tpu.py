"""The linear scan of a block on TPU by log-steps, where rows would be too narrow.

The time steps of a tile are scanned in log2 of their number.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.planes import Planes, add, decay_gradient, multiply
from pallas_kernels.scan_rows_tpu import edge_state
from pallas_kernels.scan_tiles_tpu import Cut, Refs


def read_tile(
    refs: Refs, n: int, start: Any, cut: Cut, rows: int, fill: float
) -> Planes:
    """A tile as float32 planes; past the `rows` that it has, (`fill`, 0)."""
    size, width = cut.rows, cut.tiles.width
    if refs[0].ndim == 2:  # constant in time
        planes = tuple(jnp.broadcast_to(ref[...], (size, width)) for ref in refs)
    else:
        planes = tuple(
            ref[n, pl.ds(start, size), :].astype(jnp.float32) for ref in refs
        )
    if rows == size:
        return planes
    there = row_of(planes[0]) < rows
    return tuple(jnp.where(there, p, fill * (1 - i)) for i, p in enumerate(planes))


def row_of(tile: jax.Array) -> jax.Array:
    """The row that each element of a tile is in."""
    return lax.broadcasted_iota(jnp.int32, tile.shape, 0)


def keep_tile(mask: Any, n: int, start: Any, tile: jax.Array) -> jax.Array:
    """The factors of a reset, from scalars to the rows of a tile."""
    factor, row = jnp.ones_like(tile), row_of(tile)
    for i in range(tile.shape[0]):
        factor = jnp.where(row == i, mask[n, 0, start + i], factor)
    return factor


def shift_rows(planes: Planes, ahead: int, first: Planes) -> Planes:
    """Moves rows one step along the sweep; `first` (planes of one row) comes in."""
    size = planes[0].shape[0]
    entry = 0 if ahead == 1 else size - 1
    return tuple(
        jnp.where(row_of(p) == entry, row, pltpu.roll(p, ahead % size, 0))
        for p, row in zip(planes, first, strict=True)
    )


def _log_steps(a, x, ahead):
    """The scan of some rows from a zero state, and the products of their decays.

    After the step of length s a row holds what s rows up to it add up to.
    """
    size, row = x[0].shape[0], row_of(x[0])
    reach = 1
    while reach < size:
        inside = row >= reach if ahead == 1 else row < size - reach
        roll = functools.partial(pltpu.roll, shift=ahead * reach % size, axis=0)
        before = multiply(a, tuple(map(roll, x)))
        product = multiply(a, tuple(map(roll, a)))
        x = tuple(jnp.where(inside, p + q, p) for p, q in zip(x, before, strict=True))
        a = tuple(jnp.where(inside, q, p) for p, q in zip(a, product, strict=True))
        reach *= 2
    return a, x


def scan_tile(a: Planes, x: Planes, h: Planes, ahead: int) -> Planes:
    """The states of a tile after a state `h`: log-steps on 8 rows at a time.

    More of them at once would take another step, and rolls across registers.
    """
    starts = range(0, x[0].shape[0], 8)
    states = {}
    for start in starts if ahead == 1 else reversed(starts):
        product, state = _log_steps(
            tuple(p[start : start + 8] for p in a),
            tuple(p[start : start + 8] for p in x),
            ahead,
        )
        states[start] = add(state, multiply(product, h))
        h = last_row(states[start], ahead)
    in_order = [states[start] for start in starts]
    return tuple(jnp.concatenate(pieces) for pieces in zip(*in_order, strict=True))


def last_row(planes: Planes, ahead: int) -> Planes:
    """The last row of tiles in sweep order."""
    size = planes[0].shape[0]
    row = size - 1 if ahead == 1 else 0
    return tuple(p[row : row + 1] for p in planes)


def previous_states(
    cut: Cut, h: Refs, edge: Planes, n: int, start: Any, rows: int
) -> Planes:
    """The states one step before those of a tile, in the order of the scan.

    The sweep goes the other way; `edge` is the state before those of the block.
    """
    size, ahead = cut.rows, -1 if cut.backwards else 1
    tile = read_tile(h, n, start, cut, size, 0.0)
    if cut.backwards:
        at_edge, beside = start == 0, start - size
    else:
        at_edge, beside = start + rows == cut.length(), start + size
    beside = jnp.clip(beside, 0, cut.steps - size)
    if cut.steps > size:
        beside = pl.multiple_of(beside, size)
        row = last_row(read_tile(h, n, beside, cut, size, 0.0), -ahead)
        row = tuple(jnp.where(at_edge, p, q) for p, q in zip(edge, row, strict=True))
    else:
        row = edge
    if rows == size or cut.backwards:
        return shift_rows(tile, -ahead, row)
    return tuple(
        jnp.where(row_of(p) == rows - 1, q, p)
        for p, q in zip(shift_rows(tile, -ahead, row), row, strict=True)
    )


def forward_by_log_steps(
    log: bool,
    cut: Cut,
    keep: Refs,
    decay: Refs,
    x: Refs,
    h0: Refs,
    out: Refs,
    last: Refs,
    carried: Refs,
    *unused_stages: Refs,
) -> None:
    """The kernel of the scan h_t = a_t h_{t-1} + x_t."""
    chains = range(cut.tiles.chains)
    ahead = -1 if cut.backwards else 1

    def tile(start, rows, h):
        h = list(h)
        for n in chains:
            a = read_tile(decay, n, start, cut, rows, 0.0 if log else 1.0)
            if log:
                a = tuple(map(jnp.exp, a))
            for mask in keep:
                factor = keep_tile(mask, n, start, a[0])
                a = tuple(p * factor for p in a)
            state = scan_tile(a, read_tile(x, n, start, cut, rows, 0.0), h[n], ahead)
            for ref, plane in zip(out, state, strict=True):
                ref[n, pl.ds(start, cut.rows), :] = plane.astype(ref.dtype)
            h[n] = last_row(state, ahead)
        return tuple(h)

    cut.sweep_states(tile, h0, carried, last)


def backward_by_log_steps(
    log: bool,
    cut: Cut,
    keep: Refs,
    decay: Refs,
    d_h: Refs,
    h: Refs,
    edges: Refs,
    h0: Refs,
    d_last: Refs,
    dx: Refs,
    d_decay: Refs,
    dh0: Refs,
    carried: Refs,
    *unused_stages: Refs,
) -> None:
    """The kernel of its adjoint, with the gradient of the decay."""
    chains = range(cut.tiles.chains)
    constant = decay[0].ndim == 2
    ahead = -1 if cut.backwards else 1
    size = cut.rows

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, state in zip(carried, d_last, strict=True):
            ref[...] = state[...]
        if constant:
            for ref in d_decay:
                ref[...] = jnp.zeros_like(ref)

    edge = [edge_state(cut, edges, h0, n) for n in chains]

    def tile(start, rows, carry):
        c, total = map(list, carry)
        for n in chains:
            a = read_tile(decay, n, start, cut, rows, 0.0 if log else 1.0)
            if log:
                a = tuple(map(jnp.exp, a))
            factor = [keep_tile(mask, n, start, a[0]) for mask in keep]
            for mask in factor:
                a = tuple(p * mask for p in a)
            one = tuple(jnp.full_like(p[:1], 1 - i) for i, p in enumerate(a))
            a = (a[0], -a[1]) if len(a) == 2 else a
            g = read_tile(d_h, n, start, cut, rows, 0.0)
            g = scan_tile(shift_rows(a, ahead, one), g, c[n], ahead)
            for ref, plane in zip(dx, g, strict=True):
                ref[n, pl.ds(start, size), :] = plane.astype(ref.dtype)
            late = multiply(a, g)
            c[n] = last_row(late, ahead)
            if not log:
                late = g
                for mask in factor:
                    late = tuple(p * mask for p in late)
            gradient = decay_gradient(
                late, previous_states(cut, h, edge[n], n, start, rows), len(decay)
            )
            if constant:
                if rows < size:
                    there = row_of(gradient[0]) < rows
                    gradient = tuple(jnp.where(there, p, 0.0) for p in gradient)
                total[n] = add(total[n], gradient)
            else:
                for ref, plane in zip(d_decay, gradient, strict=True):
                    ref[n, pl.ds(start, size), :] = plane.astype(ref.dtype)
        return tuple(c), tuple(total)

    c = tuple(tuple(ref[n] for ref in carried) for n in chains)
    zero = jnp.zeros((size, cut.tiles.width), jnp.float32)
    total = ((zero,) * len(decay) if constant else (),) * len(chains)
    c, total = cut.sweep(tile, (c, total))
    for n in chains:
        for ref, plane in zip(carried, c[n], strict=True):
            ref[n] = plane
        if constant:
            for ref, sum_ in zip(d_decay, total[n], strict=True):
                ref[...] += jnp.sum(sum_, axis=0, keepdims=True)

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, state in zip(dh0, carried, strict=True):
            ref[...] = state[...]
