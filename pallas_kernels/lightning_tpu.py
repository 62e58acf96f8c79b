"""Linear attention with decay on TPU: one kernel forward, one backward.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

The heads lie side by side in lanes, as a projection leaves them, (B, T, H K): as many
as 128 lanes hold make a group, and their states the diagonal blocks of one matrix. A
block is a piece of time of some groups. It goes through chunks of C steps,

    A_ts = (q_t . k_s) exp(D_ts) for s <= t,    o = A v + exp(D_t0) q S,
    S <- exp(D_C0) S + (exp(D_Cs) k_s)^T v_s,

on the matrix unit, several groups in one loop so that they can overlap. D_ts is the sum
of the log decays after s up to t; all exponents are of such sums. Where the decay does
not change with time they are multiples, computed once. Otherwise they are differences
of cumulative sums that are as good as sums: the log decays are split into multiples of
2^-6, whose cumulative sums are exact, and rests below that, whose are small. A reset is
a log decay of which every exponential is 0.

The forward kernel writes the state down at the start of each block. The backward kernel
goes through the blocks in reverse: it computes the states of the chunks again, and then
sweeps over them,

    A' = (dO v^T) * exp(D),   dq = A' k + exp(D_t0) dO S^T,   dk = A'^T q + ...
    dS <- exp(D_C0) dS + (exp(D_t0) q)^T dO.

The gradient of D_ts is that of A_ts times A_ts; what belongs to a step is summed over
its row and, negative, over its column, and the log decays get the sums of that from
their step to the end of the chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.decay_sums import ZERO, decay_sums
from pallas_kernels.lightning_tiles_tpu import (
    CHUNK,
    LANES,
    NN,
    NT,
    TN,
    call,
    chunk_of,
    diagonal,
    dot,
    iota,
    like,
    of_head,
    refuse,
    wide,
)
from pallas_kernels.lightning_vjp_tpu import Kernels, attention

__all__ = ["lightning_attention", "refuse"]


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
    *,
    composed: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """Runs linear attention with decay over time, on the TPU.

    Args:
      q: (B, T, H, K), K 32, 64 or 128 and H K a multiple of 128; float32, or bfloat16,
        which then is the precision of the factors of all products; T >= 1.
      k: as q.
      v: as q.
      log_decay: (H,) or (B, T, H), any real dtype.
      s0: (B, H, K, K) float32.
      reset: (B, T) bool; True clears the state before the step.
      composed: the same function of these six arguments in jax operations, of which
        second derivatives are taken.

    Inside a `shard_map` that checks it, all arrays must vary over the same mesh axes.

    Returns:
      o (B, T, H, K) in the dtype of v, and the last state (B, H, K, K) float32.
      Differentiable in q, k, v, log_decay and s0, in reverse mode, any number of times.
    """
    return attention(_KERNELS, q, k, v, log_decay, s0, reset, composed)


def _decay_input(cut, log_decay, reset):
    """What the kernels take: (H,), or cumulative sums (B, H, 2, T) within chunks."""
    shape = cut.batch, cut.time, cut.heads
    return decay_sums(log_decay, reset, shape, CHUNK, padded=cut.padded)


def _decay_gradient(cut, d_decay, log_decay, reset):
    """From those of the sums (B, H, 1, T) to that of `log_decay`."""
    chunks = d_decay.reshape(cut.batch, cut.heads, -1, CHUNK)
    gradient = lax.cumsum(chunks, axis=3, reverse=True)
    gradient = gradient.reshape(cut.batch, cut.heads, -1)[..., : cut.time]
    gradient = jnp.swapaxes(gradient, 1, 2)
    if reset is not None:
        zero = jnp.zeros_like(gradient, shape=())
        gradient = jnp.where(reset[..., None], zero, gradient)
    if log_decay.ndim == 1:
        gradient = gradient.sum((0, 1))
    zeroed = log_decay < ZERO
    gradient = jnp.where(zeroed, jnp.zeros_like(gradient, shape=()), gradient)
    return gradient.astype(log_decay.dtype)


def _rows(cut, count, backwards):
    """Of (B, H, count, steps of all blocks)."""
    shape = 1, cut.in_block, count, cut.steps
    return pl.BlockSpec(shape, lambda b, g, t: (b, g, 0, cut.block(t, backwards)))


def _decay_spec(cut, decay, backwards):
    if decay.ndim == 1:
        return pl.BlockSpec(memory_space=pltpu.SMEM)
    return _rows(cut, 2, backwards)


def _tables(cut, decay):
    """Scratch for the exponentials of a constant decay: see `_Decays`."""
    if decay.ndim > 1:
        return ()
    return (
        pltpu.VMEM((cut.in_block, CHUNK, CHUNK), jnp.float32),
        pltpu.VMEM((cut.groups, CHUNK, LANES), jnp.float32),
        pltpu.VMEM((cut.groups, CHUNK, LANES), jnp.float32),
        pltpu.VMEM((cut.groups, 8, LANES), jnp.float32),
    )


def _forward(cut, decay, q, k, v, s0, *, keep):
    cut = cut._replace(batch=q.shape[0])
    plane = cut.plane(False)
    starts = cut.batch, cut.blocks, *s0.shape[1:]
    return call(
        _forward_kernel,
        cut,
        "lightning_forward",
        [
            (decay, _decay_spec(cut, decay, False)),
            (q, plane),
            (k, plane),
            (v, plane),
            (s0, cut.state()),
        ],
        [
            (like(v, v.shape, v.dtype), plane),
            (like(s0, s0.shape, s0.dtype), cut.state()),
            *([(like(s0, starts, s0.dtype), cut.starts(False))] if keep else []),
        ],
        [pltpu.VMEM((cut.groups, LANES, LANES), jnp.float32), _tables(cut, decay)],
        4,
    )


def _backward(cut, decay, q, k, v, starts, d_o, d_last):
    cut = cut._replace(batch=q.shape[0])
    plane, state = cut.plane(True), (cut.groups, LANES, LANES)
    d_decay = cut.batch, cut.heads, 1, cut.padded
    return call(
        _backward_kernel,
        cut,
        "lightning_backward",
        [
            (decay, _decay_spec(cut, decay, True)),
            (q, plane),
            (k, plane),
            (v, plane),
            (d_o, plane),
            (starts, cut.starts(True)),
            (d_last, cut.state()),
        ],
        [
            (like(q, q.shape, q.dtype), plane),
            (like(k, k.shape, k.dtype), plane),
            (like(v, v.shape, v.dtype), plane),
            (like(d_last, d_decay, jnp.float32), _rows(cut, 1, True)),
            (like(d_last, d_last.shape, d_last.dtype), cut.state()),
        ],
        [
            pltpu.VMEM(state, jnp.float32),
            pltpu.VMEM((cut.steps // CHUNK, *state), v.dtype),
            _tables(cut, decay),
        ],
        10,
    )


_KERNELS = Kernels(_decay_input, _forward, _backward, _decay_gradient)


class _Decays(NamedTuple):
    """The exponentials of one chunk and one group of heads."""

    pairs: list[jax.Array]  # of D_ts for each head, 0 for s > t: (C, C)
    start: jax.Array  # of D_t0, in the lanes of each head: (C, 128)
    end: jax.Array  # of D_Cs, the same
    whole: jax.Array  # of D_C0: (1, 128)


def _masked(pairs):
    """The exponentials of D_ts; `pairs` may be anything where s > t."""
    inside = iota(0, pairs.shape) >= iota(1, pairs.shape)
    return jnp.exp(jnp.where(inside, pairs, -jnp.inf))


def _in_lanes(cut, values):
    """From arrays for each head of a group one that has each in the head's lanes."""
    out = values[0]
    for i, value in enumerate(values[1:], 1):
        out = jnp.where(iota(1, out.shape) >= i * cut.width, value, out)
    return out


def _write_tables(cut, decay, tables):
    """The exponentials of a constant decay (H,)."""
    pairs, start, end, whole = tables
    first = pl.program_id(1) * cut.in_block
    for g in range(cut.groups):
        of_heads = [decay[first + g * cut.per_group + i] for i in range(cut.per_group)]
        step = iota(0).astype(jnp.float32)
        apart = (iota(0) - iota(1)).astype(jnp.float32)
        for i, log in enumerate(of_heads):
            pairs[g * cut.per_group + i] = _masked(log * apart)
        log = _in_lanes(cut, [jnp.full((CHUNK, LANES), log) for log in of_heads])
        start[g] = jnp.exp(log * (step + 1))
        end[g] = jnp.exp(log * (CHUNK - 1 - step))
        whole[g] = jnp.exp(log[:8] * CHUNK)


def _decays(cut, decay, tables, g, begin):
    """The exponentials of group g and the chunk that begins at `begin`."""
    heads = range(g * cut.per_group, (g + 1) * cut.per_group)
    if tables:
        pairs, start, end, whole = tables
        return _Decays([pairs[h] for h in heads], start[g], end[g], whole[g, :1])
    pairs, columns, totals = [], [], []
    for h in heads:
        rows = [decay[0, h, i : i + 1, pl.ds(begin, CHUNK)] for i in range(2)]
        rows = [jnp.broadcast_to(row, (LANES, CHUNK)) for row in rows]
        column = [jnp.transpose(row) for row in rows]
        coarse, fine = (c - r for c, r in zip(column, rows, strict=True))
        pairs.append(_masked(coarse + fine))
        columns.append(column)
        totals.append([c[-1:] for c in column])
    coarse, fine = (_in_lanes(cut, part) for part in zip(*columns, strict=True))
    whole, rest = (_in_lanes(cut, part) for part in zip(*totals, strict=True))
    return _Decays(
        pairs,
        jnp.exp(coarse + fine),
        jnp.exp((whole - coarse) + (rest - fine)),
        jnp.exp(whole + rest),
    )


def _written(cut, k, v, decays, state):
    """The state after a chunk."""
    keys = (wide(k) * decays.end).astype(v.dtype)
    return decays.whole * state + diagonal(cut, dot(keys, v, TN))


def _forward_kernel(cut, decay, q, k, v, s0, o, last, *starts_and_scratch):
    *starts, state, tables = starts_and_scratch
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        state[...] = s0[0]
        if tables:
            _write_tables(cut, decay, tables)

    for ref in starts:
        ref[0, 0] = state[...]

    def chunk(begin, states):
        after = []
        for g in range(cut.groups):
            decays = _decays(cut, decay, tables, g, begin)
            q_, k_, v_ = (chunk_of(cut, ref, block, g, begin) for ref in (q, k, v))
            out = dot(q_, states[g].astype(v_.dtype), NN) * decays.start
            for i, pairs in enumerate(decays.pairs):
                weights = dot(of_head(cut, q_, i), k_, NT) * pairs
                out += dot(weights.astype(v_.dtype), of_head(cut, v_, i), NN)
            lanes = slice(g * LANES, (g + 1) * LANES)
            o[0, pl.ds(begin, CHUNK), lanes] = out.astype(o.dtype)
            after.append(_written(cut, k_, v_, decays, states[g]))
        return after

    # All chunks of a block in one piece: the more of them, the more can overlap.
    states = [state[g] for g in range(cut.groups)]
    for begin in range(0, cut.steps, CHUNK):
        states = chunk(begin, states)
    for g in range(cut.groups):
        state[g] = states[g]

    @pl.when(block == cut.blocks - 1)
    def _():
        last[0] = state[...]


def _backward_kernel(
    cut,
    decay,
    q,
    k,
    v,
    d_o,
    starts,
    d_last,
    d_q,
    d_k,
    d_v,
    d_decay,
    d_s0,
    d_state,
    states,
    tables,
):
    step = pl.program_id(2)
    block = cut.blocks - 1 - step

    @pl.when(step == 0)
    def _():
        d_state[...] = d_last[0]
        if tables:
            _write_tables(cut, decay, tables)

    def again(begin, before):
        """Writes down the states before a chunk and returns those after it."""
        after = []
        for g in range(cut.groups):
            states[begin // CHUNK, g] = before[g].astype(states.dtype)
            k_, v_ = (chunk_of(cut, ref, block, g, begin) for ref in (k, v))
            decays = _decays(cut, decay, tables, g, begin)
            after.append(_written(cut, k_, v_, decays, before[g]))
        return after

    def sweep(begin, d_after):
        d_before = []
        for g in range(cut.groups):
            decays = _decays(cut, decay, tables, g, begin)
            q_, k_, v_, d_o_ = (
                chunk_of(cut, ref, block, g, begin) for ref in (q, k, v, d_o)
            )
            dtype, before = v_.dtype, states[begin // CHUNK, g]
            narrow = d_after[g].astype(dtype)
            dq = dot(d_o_, before, NT) * decays.start
            dk = dot(v_, narrow, NT) * decays.end
            dv = dot(k_, narrow, NN) * decays.end
            of_start, of_end = wide(q_) * dq, wide(k_) * dk
            to_last = of_end + decays.whole * d_after[g] * wide(before)
            for h, pairs in enumerate(decays.pairs):
                q_h, k_h, d_o_h = (of_head(cut, x, h) for x in (q_, k_, d_o_))
                products = dot(q_h, k_, NT)
                d_weights = dot(d_o_h, v_, NT) * pairs
                weights = (products * pairs).astype(dtype)
                narrow_d = d_weights.astype(dtype)
                dq += dot(narrow_d, k_h, NN)
                dk += dot(narrow_d, q_h, TN)
                dv += dot(weights, d_o_h, TN)
                by_pair = jnp.where(iota(0) > iota(1), products * d_weights, 0.0)
                by_step = of_head(cut, of_start - of_end, h) + by_pair
                row = jnp.sum(jnp.transpose(by_step), axis=0, keepdims=True)
                row -= jnp.sum(by_pair, axis=0, keepdims=True)
                total = jnp.sum(of_head(cut, to_last, h), axis=0, keepdims=True).sum(
                    axis=1, keepdims=True
                )
                row += jnp.where(iota(1, row.shape) == CHUNK - 1, total, 0.0)
                d_decay[0, g * cut.per_group + h, :, pl.ds(begin, CHUNK)] = row
            lanes = slice(g * LANES, (g + 1) * LANES)
            for ref, gradient in ((d_q, dq), (d_k, dk), (d_v, dv)):
                ref[0, pl.ds(begin, CHUNK), lanes] = gradient.astype(ref.dtype)
            queries = (wide(q_) * decays.start).astype(dtype)
            d_before.append(
                decays.whole * d_after[g] + diagonal(cut, dot(queries, d_o_, TN))
            )
        return d_before

    begins = range(0, cut.steps, CHUNK)
    before = [starts[0, 0, g] for g in range(cut.groups)]
    for begin in begins:
        before = again(begin, before)
    d_states = [d_state[g] for g in range(cut.groups)]
    for begin in reversed(begins):
        d_states = sweep(begin, d_states)
    for g in range(cut.groups):
        d_state[g] = d_states[g]

    @pl.when(step == cut.blocks - 1)
    def _():
        d_s0[0] = d_state[...]
