"""The linear scan of a block on TPU by rows: one time step of one sequence at a time.

A row fills a register when it is 1024 channels wide. A sequence alone waits on its own
additions, so several are in flight.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.planes import (
    Planes,
    add,
    decay_gradient,
    multiply,
    multiply_conjugate,
)
from pallas_kernels.scan_tiles_tpu import Cut, Refs

RowOf = Callable[[int, int], Planes]  # from chain n and i to row i of its tile


def read_rows(
    refs: Refs, stages: Refs, n: int, start: Any, rows: int
) -> Callable[[int], Planes]:
    """Returns a function from i to row i of a tile, as float32 planes (1, width)."""
    if refs[0].ndim == 2:  # constant in time
        row = tuple(ref[...] for ref in refs)
        return lambda i: row
    if stages[0] is None:
        return lambda i: tuple(ref[n, pl.ds(start + i, 1), :] for ref in refs)
    for ref, stage in zip(refs, stages, strict=True):
        stage[n, :rows] = ref[n, pl.ds(start, rows), :].astype(jnp.float32)
    return lambda i: tuple(stage[n, i : i + 1, :] for stage in stages)


def write_row(
    refs: Refs, stages: Refs, n: int, start: Any, i: int, row: Planes
) -> None:
    """Writes row i of a tile, to `refs` or to the stages that they have."""
    for ref, stage, plane in zip(refs, stages, row, strict=True):
        if stage is None:
            ref[n, pl.ds(start + i, 1), :] = plane
        else:
            stage[n, i : i + 1, :] = plane


def write_back(refs: Refs, stages: Refs, n: int, start: Any, rows: int) -> None:
    """Narrows a tile that was written by rows."""
    for ref, stage in zip(refs, stages, strict=True):
        if stage is not None:
            ref[n, pl.ds(start, rows), :] = stage[n, :rows].astype(ref.dtype)


def scan_rows(
    cut: Cut,
    start: Any,
    rows: int,
    decay_at: RowOf,
    x_at: RowOf,
    h: Sequence[Planes],
    out: Refs,
    stages: Refs,
) -> tuple[Planes, ...]:
    """Scans a tile from the states `h` of the chains, writes it, returns the last ones.

    `decay_at(n, i)` and `x_at(n, i)` are row i of chain n.
    """
    h = list(h)
    for i in cut.order(rows):
        for n in range(cut.tiles.chains):
            h[n] = add(multiply(decay_at(n, i), h[n]), x_at(n, i))
            write_row(out, stages, n, start, i, h[n])
    for n in range(cut.tiles.chains):
        write_back(out, stages, n, start, rows)
    return tuple(h)


def scan_rows_late(
    cut: Cut,
    rows: int,
    decay_at: RowOf,
    x_at: RowOf,
    c: Sequence[Planes],
    stages: Refs,
) -> tuple[Planes, ...]:
    """The adjoint scan of a tile, g = x + c, c <- conj(a) g: writes g to `stages`."""
    c = list(c)
    for i in cut.order(rows):
        for n in range(cut.tiles.chains):
            g = add(x_at(n, i), c[n])
            for stage, plane in zip(stages, g, strict=True):
                stage[n, i : i + 1, :] = plane
            c[n] = multiply_conjugate(decay_at(n, i), g)
    return tuple(c)


def forward_by_rows(
    log: bool,
    cut: Cut,
    keep: Refs,
    decay: Refs,
    x: Refs,
    h0: Refs,
    out: Refs,
    last: Refs,
    carried: Refs,
    decay_stages: Refs,
    x_stages: Refs,
    out_stages: Refs,
) -> None:
    """The kernel of the scan h_t = a_t h_{t-1} + x_t."""
    chains = range(cut.tiles.chains)

    def tile(start, rows, h):
        stored = [read_rows(decay, decay_stages, n, start, rows) for n in chains]
        x_at = [read_rows(x, x_stages, n, start, rows) for n in chains]

        def decay_at(n, i):
            a = stored[n](i)
            if log:
                a = tuple(map(jnp.exp, a))
            for mask in keep:
                a = tuple(p * mask[n, 0, start + i] for p in a)
            return a

        return scan_rows(
            cut, start, rows, decay_at, lambda n, i: x_at[n](i), h, out, out_stages
        )

    cut.sweep_states(tile, h0, carried, last)


def backward_by_rows(
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
    decay_stages: Refs,
    d_h_stages: Refs,
    h_stages: Refs,
    dx_stages: Refs,
    d_decay_stages: Refs,
) -> None:
    """The kernel of its adjoint, with the gradient of the decay."""
    chains = range(cut.tiles.chains)
    constant = decay[0].ndim == 2
    ahead = -1 if cut.backwards else 1  # from a row to the next one of the sweep

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, state in zip(carried, d_last, strict=True):
            ref[...] = state[...]
        if constant:
            for ref in d_decay:
                ref[...] = jnp.zeros_like(ref)

    def write_late(n, start, i, gradient):
        """Writes the gradient of the row before row i of a tile, in sweep order.

        That of the first row belongs to the tile before. Where there is none it lands
        in a row of this block that is yet to be written.
        """
        before = i - ahead
        for ref, stage, plane in zip(d_decay, d_decay_stages, gradient, strict=True):
            if stage is not None:
                row = before % cut.rows
                stage[n, row : row + 1, :] = plane
            elif isinstance(start, int):
                row = min(max(start + before, 0), cut.steps - 1)
                ref[n, row : row + 1, :] = plane
            else:
                row = jnp.clip(start + before, 0, cut.steps - 1)
                ref[n, pl.ds(row, 1), :] = plane

    def write_back_late(n, start):
        start = start - ahead * cut.rows
        end = cut.steps - cut.rows
        if isinstance(start, int):
            start = min(max(start, 0), end)
        else:
            start = pl.multiple_of(jnp.clip(start, 0, end), cut.rows)
        write_back(d_decay, d_decay_stages, n, start, cut.rows)

    def tile(start, rows, carry):
        c, late, total = map(list, carry)
        decay_at = [read_rows(decay, decay_stages, n, start, rows) for n in chains]
        d_h_at = [read_rows(d_h, d_h_stages, n, start, rows) for n in chains]
        h_at = [read_rows(h, h_stages, n, start, rows) for n in chains]
        for step, i in enumerate(cut.order(rows)):
            for n in chains:
                gradient = decay_gradient(late[n], h_at[n](i), len(decay))
                if constant:
                    total[n] = add(total[n], gradient)
                else:
                    write_late(n, start, i, gradient)
                    if step == 0:
                        write_back_late(n, start)
                g = add(d_h_at[n](i), c[n])
                write_row(dx, dx_stages, n, start, i, g)
                a = decay_at[n](i)
                if log:
                    a = tuple(map(jnp.exp, a))
                kept = g
                for mask in keep:
                    a = tuple(p * mask[n, 0, start + i] for p in a)
                    kept = tuple(p * mask[n, 0, start + i] for p in g)
                c[n] = multiply_conjugate(a, g)
                late[n] = c[n] if log else kept
        for n in chains:
            write_back(dx, dx_stages, n, start, rows)
        return tuple(c), tuple(late), tuple(total)

    row = jnp.zeros((1, cut.tiles.width), jnp.float32)
    zero = (row,) * len(h)
    c = tuple(tuple(ref[n] for ref in carried) for n in chains)
    total = ((row,) * len(decay) if constant else (),) * len(chains)
    c, late, total = cut.sweep(tile, (c, (zero,) * len(chains), total))

    end = 0 if cut.backwards else cut.length() - 1
    for n in chains:
        for ref, plane in zip(carried, c[n], strict=True):
            ref[n] = plane
        gradient = decay_gradient(late[n], edge_state(cut, edges, h0, n), len(decay))
        if constant:
            for ref, sum_, plane in zip(d_decay, total[n], gradient, strict=True):
                ref[...] += sum_ + plane
        else:
            start = _start_of_tile(end, cut.rows)
            for ref, stage, plane in zip(
                d_decay, d_decay_stages, gradient, strict=True
            ):
                if stage is None:
                    ref[n, pl.ds(end, 1), :] = plane
                else:
                    stage[n, pl.ds(end - start, 1), :] = plane
            write_back(d_decay, d_decay_stages, n, start, cut.rows)

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, state in zip(dh0, carried, strict=True):
            ref[...] = state[...]


def _start_of_tile(row, rows):
    if isinstance(row, int):
        return row // rows * rows
    return pl.multiple_of(row - lax.rem(row, rows), rows)


def edge_state(cut: Cut, edges: Refs, h0: Refs, n: int) -> Planes:
    """The state (1, width) before the step at which the sweep leaves this block."""
    first = tuple(ref[n] for ref in h0)
    if not edges:
        return first
    row = cut.rows - 1 if cut.backwards else 0
    rows = tuple(ref[n].astype(jnp.float32)[row : row + 1] for ref in edges)
    at_end = pl.program_id(2) == cut.blocks - 1
    return tuple(jnp.where(at_end, p, q) for p, q in zip(first, rows, strict=True))
