"""The kernels of `gated_scan` on TPU.

`gates` is a plain function on tiles of float32 planes. The kernels read its inputs,
make decays and drives tile by tile, and write the states alone; the backward kernel
makes them again and pulls the cotangents back through `gates` by `jax.vjp`. How tiles
are cut and scanned is that of `linear_scan_tpu`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import linear_scan_tpu
from pallas_kernels.gated_scan import Kernels
from pallas_kernels.planes import decay_gradient, multiply_conjugate
from pallas_kernels.scan_log_steps_tpu import (
    last_row,
    previous_states,
    read_tile,
    row_of,
    scan_tile,
    shift_rows,
)
from pallas_kernels.scan_rows_tpu import (
    edge_state,
    read_rows,
    scan_rows,
    scan_rows_late,
)
from pallas_kernels.scan_tiles_tpu import (
    call,
    cut_arrays,
    refuse,
    restart_input,
    shaped,
    state_input,
)

PART = 256  # channels whose gradients are made at once


def _parameter_input(parameters, cut):
    return tuple(p[None] for p in parameters), (cut.constant(),) * len(parameters)


def _forward(gates, reverse, dtype, inputs, parameters, h0, reset):
    like = (inputs[0],) * gates.states
    out = shaped(like, dtype=dtype)
    cut = cut_arrays([inputs, out], backwards=reverse, tiles=None)
    h, last = call(
        functools.partial(_forward_kernel, gates),
        f"{gates.name}_forward",
        cut,
        [
            restart_input(reset, cut),
            _parameter_input(parameters, cut),
            (inputs, (cut.plane(),) * len(inputs)),
            state_input(h0, cut),
        ],
        [
            (out, (cut.plane(),) * len(out)),
            (
                shaped(like, (cut.batch, 1, cut.width), jnp.float32),
                (cut.state(),) * len(like),
            ),
        ],
        [
            (cut.carried(),) * len(like),
            cut.scratch(gates.decays),
            cut.scratch(gates.states),
            cut.stages(out),
        ],
        gates.transcendental,
    )
    return h, tuple(p[:, 0] for p in last)


def _backward(gates, reverse, d_h, d_last, inputs, parameters, h, h0, reset):
    cut = cut_arrays([inputs, inputs, h, d_h], backwards=not reverse, tiles=None)
    edges = (h, (cut.edge(),) * len(h)) if cut.blocks > 1 else ((), ())
    state = (cut.batch, 1, cut.width)
    totals = cut.total_scratch(len(parameters))
    d_inputs, d_parameters, dh0 = call(
        functools.partial(_backward_kernel, gates),
        f"{gates.name}_backward",
        cut,
        [
            restart_input(reset, cut),
            _parameter_input(parameters, cut),
            (inputs, (cut.plane(),) * len(inputs)),
            (d_h, (cut.plane(),) * len(h)),
            (h, (cut.plane(),) * len(h)),
            edges,
            state_input(h0, cut),
            state_input(d_last, cut),
        ],
        [
            (shaped(inputs), (cut.plane(),) * len(inputs)),
            (
                shaped((inputs[0],) * len(parameters), state, jnp.float32),
                (cut.state(),) * len(parameters),
            ),
            (shaped(h0, state), (cut.state(),) * len(h0)),
        ],
        [
            (cut.carried(),) * len(h),
            totals,
            cut.scratch(gates.decays),
            cut.stages(d_h),
            cut.scratch(gates.states),
        ],
        2 * gates.transcendental,
    )
    d_parameters, dh0 = (tuple(p[:, 0] for p in ps) for ps in (d_parameters, dh0))
    return d_inputs, d_parameters, dh0


def _read(cut, restarts, parameters, inputs, n, start, rows):
    """What the gates take, for one tile: inputs, parameters and where it restarts."""
    tiles = read_tile(inputs, n, start, cut, rows, 0.0)
    shape = tiles[0].shape
    restart = None
    for words in restarts:
        restart = (words[n, 0, start // cut.rows] >> row_of(tiles[0])) & 1 == 1
    return tiles, tuple(jnp.broadcast_to(p[...], shape) for p in parameters), restart


def _where_there(rows, planes, fill):
    """The planes of a tile that has `rows` rows; past them the number `fill`."""
    if rows == planes[0].shape[0]:
        return planes
    there = row_of(planes[0]) < rows
    return tuple(jnp.where(there, p, fill * (1 - i)) for i, p in enumerate(planes))


def _write(refs, n, start, planes):
    for ref, plane in zip(refs, planes, strict=True):
        ref[n, pl.ds(start, plane.shape[0]), :] = plane.astype(ref.dtype)


def _stage(stages, n, rows, planes):
    for stage, plane in zip(stages, planes, strict=True):
        stage[n, :rows] = plane[:rows]


def _rows_of(stages):
    return lambda n, i: tuple(stage[n, i : i + 1, :] for stage in stages)


def _forward_kernel(
    gates,
    cut,
    restarts,
    parameters,
    inputs,
    h0,
    out,
    last,
    carried,
    decay_stages,
    drive_stages,
    out_stages,
):
    chains = range(cut.tiles.chains)
    ahead = -1 if cut.backwards else 1

    def make(n, start, rows):
        return gates(*_read(cut, restarts, parameters, inputs, n, start, rows))

    def by_rows(start, rows, h):
        for n in chains:
            decay, drive = make(n, start, rows)
            _stage(decay_stages, n, rows, decay)
            _stage(drive_stages, n, rows, drive)
        decay_at, drive_at = _rows_of(decay_stages), _rows_of(drive_stages)
        return scan_rows(cut, start, rows, decay_at, drive_at, h, out, out_stages)

    def by_log_steps(start, rows, h):
        h = list(h)
        for n in chains:
            decay, drive = make(n, start, rows)
            decay = _where_there(rows, decay, 1.0)
            drive = _where_there(rows, drive, 0.0)
            states = scan_tile(decay, drive, h[n], ahead)
            _write(out, n, start, states)
            h[n] = last_row(states, ahead)
        return tuple(h)

    tile = by_rows if cut.tiles.by_rows else by_log_steps
    cut.sweep_states(tile, h0, carried, last)


def _backward_kernel(
    gates,
    cut,
    restarts,
    parameters,
    inputs,
    d_h,
    h,
    edges,
    h0,
    d_last,
    d_inputs,
    d_parameters,
    dh0,
    carried,
    totals,
    decay_stages,
    d_h_stages,
    g_stages,
):
    chains = range(cut.tiles.chains)
    ahead = -1 if cut.backwards else 1
    edge = [edge_state(cut, edges, h0, n) for n in chains]
    # The gates of all channels and their gradients would not stay in registers.
    width = cut.tiles.width
    parts = [slice(k, min(k + PART, width)) for k in range(0, width, PART)]

    def of(part, refs):
        return tuple(ref.at[..., part] for ref in refs)

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in totals:
            ref[...] = jnp.zeros_like(ref)

    def make(n, start, rows, part):
        """The decay, and what takes the cotangents of decay and drive to the inputs."""
        tiles, wide, restart = _read(
            cut, restarts, of(part, parameters), of(part, inputs), n, start, rows
        )
        (decay, _), pull = jax.vjp(lambda i, p: gates(i, p, restart), tiles, wide)
        return decay, pull

    def pull_back(pull, n, start, rows, part, g):
        g = _where_there(rows, g, 0.0)
        first = tuple(p[:, part] for p in edge[n])
        before = previous_states(cut, of(part, h), first, n, start, rows)
        before = _where_there(rows, before, 0.0)
        d_tiles, d_wide = pull((decay_gradient(g, before, gates.decays), g))
        _write(of(part, d_inputs), n, start, d_tiles)
        for ref, plane in zip(of(part, totals), d_wide, strict=True):
            size = ref.shape[1]
            for k in range(0, plane.shape[0], size):
                ref[n] += plane[k : k + size]

    def by_rows(start, rows, c):
        pulls = {}
        for n, part in itertools.product(chains, parts):
            decay, pulls[n, part.start] = make(n, start, rows, part)
            _stage(of(part, decay_stages), n, rows, decay)
        d_h_at = [read_rows(d_h, d_h_stages, n, start, rows) for n in chains]
        c = scan_rows_late(
            cut, rows, _rows_of(decay_stages), lambda n, i: d_h_at[n](i), c, g_stages
        )
        for n, part in itertools.product(chains, parts):
            g = tuple(stage[n, :, part] for stage in g_stages)
            pull_back(pulls[n, part.start], n, start, rows, part, g)
        return c

    def by_log_steps(start, rows, c):
        return tuple(
            tuple(
                jnp.concatenate(pieces, axis=1)
                for pieces in zip(
                    *(part_by_log_steps(n, start, rows, part, c[n]) for part in parts),
                    strict=True,
                )
            )
            for n in chains
        )

    def part_by_log_steps(n, start, rows, part, c):
        decay, pull = make(n, start, rows, part)
        decay = _where_there(rows, decay, 1.0)
        one = tuple(jnp.full_like(p[:1], 1 - i) for i, p in enumerate(decay))
        a = shift_rows((decay[0], *(-p for p in decay[1:])), ahead, one)
        g = read_tile(of(part, d_h), n, start, cut, rows, 0.0)
        g = scan_tile(a, g, tuple(p[:, part] for p in c), ahead)
        pull_back(pull, n, start, rows, part, g)
        return last_row(multiply_conjugate(decay, g), ahead)

    tile = by_rows if cut.tiles.by_rows else by_log_steps
    cut.sweep_states(tile, d_last, carried, dh0)

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, total in zip(d_parameters, totals, strict=True):
            ref[...] = jnp.sum(total[...], axis=1, keepdims=True)


KERNELS = Kernels(refuse, _forward, _backward, linear_scan_tpu.linear_scan)
