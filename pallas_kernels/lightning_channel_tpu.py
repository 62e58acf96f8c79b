"""Linear attention with a decay for each key channel on TPU: forward and backward.

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

Blocks, chunks and groups of heads are those of `lightning_tiles_tpu`. Within a chunk,
with D_ts the sums of the log decays after s up to t, one for each channel, the weights
are

    A_ts = sum over channels of q_t k_s exp(D_ts) for s <= t.

Halve the chunk again and again: two steps s < t are parted by the middle b of exactly
one of the pieces, and D_ts is D_bs, which goes to k_s, and D_tb, which goes to q_t. A
step is in one half of one piece of each size. So at each size there is one array X of
the decayed queries of the second halves and the decayed keys of the first ones, and one
product X X^T, of which the entries count whose steps that size parts. No exponent is
positive, and none is a difference: the sums for one size give those of the next by one
addition. So decays may be as strong as they like: a reset is a log decay of -inf.

The states are kept transposed, (V, K), so that the channels of the decays lie in lanes.
The backward kernel goes through the blocks in reverse, from the states that the forward
kernel wrote down at their starts. At each size the gradient of X is M X, where M is the
symmetric matrix of the gradients of the weights; X times it is the gradient of the
exponents, which goes back through the sums by as many additions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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

ROWS = 8  # of a register
TILES = CHUNK // ROWS, ROWS, LANES  # a chunk as registers
HALVES = tuple(1 << i for i in range(CHUNK.bit_length() - 1))  # 1 to C / 2 steps


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
    """Runs linear attention with a decay for each key channel, on the TPU.

    `lightning_tpu.lightning_attention` for log_decay (B, T, H, K), any real dtype.
    """
    return attention(_KERNELS, q, k, v, log_decay, s0, reset, composed)


def _decay_input(cut, log_decay, reset):
    del cut
    if log_decay.dtype != jnp.bfloat16:
        log_decay = log_decay.astype(jnp.float32)
    if reset is None:
        return log_decay
    return jnp.where(
        reset[..., None], jnp.full_like(log_decay, -jnp.inf, shape=()), log_decay
    )


def _decay_gradient(cut, gradient, log_decay, reset):
    """Where a decay is zero, so is the gradient: everything that flows there is."""
    del cut, reset
    return gradient.astype(log_decay.dtype)


def _forward(cut, decay, q, k, v, s0, *, keep):
    cut = cut._replace(batch=q.shape[0])
    plane = cut.plane(False)
    starts = cut.batch, cut.blocks, *s0.shape[1:]
    return call(
        _forward_kernel,
        cut,
        "lightning_channel_forward",
        [(decay, plane), (q, plane), (k, plane), (v, plane), (s0, cut.state())],
        [
            (like(v, v.shape, v.dtype), plane),
            (like(s0, s0.shape, s0.dtype), cut.state()),
            *([(like(s0, starts, s0.dtype), cut.starts(False))] if keep else []),
        ],
        [pltpu.VMEM((cut.groups, LANES, LANES), jnp.float32)],
        len(HALVES) + 3,
    )


def _backward(cut, decay, q, k, v, starts, d_o, d_last):
    cut = cut._replace(batch=q.shape[0]).with_groups(cut.groups // 2)
    plane, state = cut.plane(True), (cut.groups, LANES, LANES)
    return call(
        _backward_kernel,
        cut,
        "lightning_channel_backward",
        [
            *((array, plane) for array in (decay, q, k, v, d_o)),
            (starts, cut.starts(True)),
            (d_last, cut.state()),
        ],
        [
            *((like(x, x.shape, x.dtype), plane) for x in (q, k, v, decay)),
            (like(d_last, d_last.shape, d_last.dtype), cut.state()),
        ],
        [
            pltpu.VMEM(state, jnp.float32),
            pltpu.VMEM((cut.steps // CHUNK, *state), jnp.float32),
        ],
        2 * len(HALVES) + 8,
    )


_KERNELS = Kernels(_decay_input, _forward, _backward, _decay_gradient)


def _halves(size, array):
    return array.reshape(-1, 2, size // ROWS, ROWS, LANES)


def _by_half(size, first, second):
    """`first` in the first halves of pieces of twice `size` steps, else `second`."""
    if size < ROWS:
        in_second = (iota(1, TILES) & size) != 0
        return jnp.where(in_second, second, first)
    halves = [_halves(size, first)[:, 0], _halves(size, second)[:, 1]]
    return jnp.stack(halves, axis=1).reshape(TILES)


def _second(size, rows):
    """The rows of second halves; all of them where they do not fill registers."""
    if size < ROWS:
        return rows
    return rows.reshape(-1, 2, size, LANES)[:, 1].reshape(-1, LANES)


def _with_second(size, rows, second):
    """`rows` with those that `_second` returns replaced by `second`."""
    if size < ROWS:
        return second
    first = _halves(size, rows)[:, 0]
    return _rows(jnp.stack([first, second.reshape(first.shape)], axis=1))


def _swapped(size, x):
    """What is at step t xor `size`: the two halves of each piece, exchanged."""
    if size == ROWS // 2:
        return pltpu.roll(x, size, 1)
    if size < ROWS:
        return _by_half(size, pltpu.roll(x, ROWS - size, 1), pltpu.roll(x, size, 1))
    halves = _halves(size, x)
    return jnp.stack([halves[:, 1], halves[:, 0]], axis=1).reshape(TILES)


class _Sums(NamedTuple):
    """Sums of log decays within pieces of a chunk, each (C / 8, 8, 128)."""

    before: jax.Array  # from the start of its piece to each step, with its own
    after: jax.Array  # from after each step to the end of its piece
    whole: jax.Array  # over its piece

    @classmethod
    def of_steps(cls, log_decay):
        return cls(log_decay, jnp.zeros_like(log_decay), log_decay)

    @classmethod
    def of_chunk(cls, log_decay):
        sums = cls.of_steps(log_decay)
        for size in HALVES:
            sums = sums.joined(size)
        return sums

    def to_middle(self, size):
        """For pieces of `size` steps: between each step and the middle of a pair."""
        return _by_half(size, self.after, self.before)

    def joined(self, size):
        """The sums for pairs of pieces of `size` steps."""
        other = _swapped(size, self.whole)
        return _Sums(
            _by_half(size, self.before, self.before + other),
            _by_half(size, self.after + other, self.after),
            self.whole + other,
        )

    def joined_adjoint(self, size, to_middle):
        """From the gradients of `joined` and `to_middle` those of the sums before.

        The sums over a piece are in each of its rows, over which their gradients are
        spread in any way.
        """
        before, after, whole = self
        return _Sums(
            _by_half(size, before, before + to_middle),
            _by_half(size, after + to_middle, after),
            whole + _swapped(size, whole + _by_half(size, after, before)),
        )


def _tiles(array):
    return array.reshape(TILES)


def _rows(tiles):
    return tiles.reshape(CHUNK, LANES)


def _parting():
    """The size of the halves that part steps t > s or t < s: the top bit of t xor s."""
    bits = iota(0) ^ iota(1)
    for shift in (1, 2, 4):
        bits |= bits >> shift
    return bits - (bits >> 1)


def _with_parted(cut, weights, size, of_past, x, dtype):
    """The weights of each head with those between steps that `size` parts."""
    here = _second(size, of_past) == size
    rows = _rows(x)
    keys, queries = rows.astype(dtype), _second(size, rows).astype(dtype)
    by_head = [of_head(cut, queries, h) for h in range(cut.per_group)]
    # One product for all heads, whose keys are loaded into the matrix unit once.
    products = dot(jnp.concatenate(by_head), keys, NT)
    products = products.reshape(cut.per_group, -1, LANES)
    return [
        _with_second(size, old, jnp.where(here, product, _second(size, old)))
        for old, product in zip(weights, products, strict=True)
    ]


def _own_weights(cut, q, k):
    """The weights of each head of the steps to themselves, on the diagonal."""
    out = []
    for h in range(cut.per_group):
        own = jnp.sum(of_head(cut, wide(q) * wide(k), h), axis=1, keepdims=True)
        out.append(jnp.where(iota(0) == iota(1), own, 0.0))
    return out


def _of_heads(cut, array):
    """The sum over the lanes of each head, in all its lanes."""
    out = jnp.zeros_like(array)
    for h in range(cut.per_group):
        total = jnp.sum(of_head(cut, array, h), axis=1, keepdims=True)
        out += of_head(cut, jnp.broadcast_to(total, array.shape), h)
    return out


def _log_decay(cut, ref, block, g, begin):
    """To base 2, as the hardware takes exponentials."""
    log = wide(chunk_of(cut, ref, block, g, begin))
    return _tiles(log * math.log2(math.e))


def _written(cut, keys, v, whole, state):
    """The state (V, K) after a chunk."""
    return jnp.exp2(whole[0, :1]) * state + diagonal(cut, dot(v, keys, TN))


def _forward_kernel(cut, decay, q, k, v, s0, o, last, *starts_and_scratch):
    *starts, state = starts_and_scratch
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        for g in range(cut.groups):
            state[g] = jnp.transpose(s0[0, g])

    for ref in starts:
        ref[0, 0] = state[...]

    of_past = jnp.where(iota(0) > iota(1), _parting(), 0)

    def chunk(i, _):
        begin = pl.multiple_of(i * CHUNK, CHUNK)
        for g in range(cut.groups):
            q_, k_, v_ = (chunk_of(cut, ref, block, g, begin) for ref in (q, k, v))
            dtype = v_.dtype
            queries, keys = _tiles(wide(q_)), _tiles(wide(k_))
            sums = _Sums.of_steps(_log_decay(cut, decay, block, g, begin))
            weights = _own_weights(cut, q_, k_)
            for size in HALVES:
                x = _by_half(size, keys, queries) * jnp.exp2(sums.to_middle(size))
                weights = _with_parted(cut, weights, size, of_past, x, dtype)
                sums = sums.joined(size)
            from_start = _rows(queries * jnp.exp2(sums.before)).astype(dtype)
            out = dot(from_start, state[g].astype(dtype), NT)
            for h, of_pairs in enumerate(weights):
                out += dot(of_pairs.astype(dtype), of_head(cut, v_, h), NN)
            lanes = slice(g * LANES, (g + 1) * LANES)
            o[0, pl.ds(begin, CHUNK), lanes] = out.astype(o.dtype)
            to_end = _rows(keys * jnp.exp2(sums.after)).astype(dtype)
            state[g] = _written(cut, to_end, v_, sums.whole, state[g])

    lax.fori_loop(0, cut.steps // CHUNK, chunk, None)

    @pl.when(block == cut.blocks - 1)
    def _():
        for g in range(cut.groups):
            last[0, g] = jnp.transpose(state[g])


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
):
    step = pl.program_id(2)
    block = cut.blocks - 1 - step
    chunks = cut.steps // CHUNK

    @pl.when(step == 0)
    def _():
        for g in range(cut.groups):
            d_state[g] = jnp.transpose(d_last[0, g])

    states[0] = starts[0, 0]

    def again(i, _):
        """Writes down the states after chunk i."""
        begin = pl.multiple_of(i * CHUNK, CHUNK)
        for g in range(cut.groups):
            k_, v_ = (chunk_of(cut, ref, block, g, begin) for ref in (k, v))
            sums = _Sums.of_chunk(_log_decay(cut, decay, block, g, begin))
            to_end = _rows(_tiles(wide(k_)) * jnp.exp2(sums.after)).astype(v_.dtype)
            states[i + 1, g] = _written(cut, to_end, v_, sums.whole, states[i, g])

    parting = _parting()
    of_past = jnp.where(iota(0) > iota(1), parting, 0)

    def sweep(i, _):
        begin = pl.multiple_of((chunks - 1 - i) * CHUNK, CHUNK)
        for g in range(cut.groups):
            q_, k_, v_, d_o_ = (
                chunk_of(cut, ref, block, g, begin) for ref in (q, k, v, d_o)
            )
            dtype, heads = v_.dtype, range(cut.per_group)
            queries, keys = _tiles(wide(q_)), _tiles(wide(k_))

            d_weights = [
                jnp.where(
                    iota(0) > iota(1),
                    dot(of_head(cut, d_o_, h), v_, NT),
                    dot(of_head(cut, v_, h), d_o_, NT),
                )
                for h in heads
            ]
            weights = _own_weights(cut, q_, k_)
            dq = dk = zeros = jnp.zeros(TILES, jnp.float32)
            d_to_middle = []
            sums = _Sums.of_steps(_log_decay(cut, decay, block, g, begin))
            for size in HALVES:
                decays = jnp.exp2(sums.to_middle(size))
                x = _by_half(size, keys, queries) * decays
                weights = _with_parted(cut, weights, size, of_past, x, dtype)
                narrow_x, here = _rows(x).astype(dtype), parting == size
                dx = zeros
                for h, d_pairs in enumerate(d_weights):
                    d_parted = jnp.where(here, d_pairs, 0.0).astype(dtype)
                    dx += _tiles(dot(d_parted, of_head(cut, narrow_x, h), NN))
                d_to_middle.append(x * dx)
                dq = _by_half(size, dq, dq + dx * decays)
                dk = _by_half(size, dk + dx * decays, dk)
                sums = sums.joined(size)

            from_start, to_end = jnp.exp2(sums.before), jnp.exp2(sums.after)
            state, d_after = states[chunks - 1 - i, g], d_state[g]
            narrow = d_after.astype(dtype)
            kept = jnp.exp2(sums.whole[0, :1]) * d_after
            dq_start = from_start * _tiles(dot(d_o_, state.astype(dtype), NN))
            dk_end = to_end * _tiles(dot(v_, narrow, NN))
            d_sums = _Sums(queries * dq_start, keys * dk_end, _tiles(kept * state))
            for size, gradient in reversed(list(zip(HALVES, d_to_middle, strict=True))):
                d_sums = d_sums.joined_adjoint(size, gradient)

            d_own = _of_heads(cut, wide(d_o_) * wide(v_))
            dq = _rows(dq + dq_start) + d_own * wide(k_)
            dk = _rows(dk + dk_end) + d_own * wide(q_)
            dv = dot(_rows(keys * to_end).astype(dtype), narrow, NT)
            for h in heads:
                dv += dot(weights[h].astype(dtype), of_head(cut, d_o_, h), TN)
            d_log = _rows(d_sums.before + d_sums.whole)

            lanes = slice(g * LANES, (g + 1) * LANES)
            gradients = (d_q, dq), (d_k, dk), (d_v, dv), (d_decay, d_log)
            for ref, gradient in gradients:
                ref[0, pl.ds(begin, CHUNK), lanes] = gradient.astype(ref.dtype)
            from_start = _rows(queries * from_start).astype(dtype)
            d_state[g] = kept + diagonal(cut, dot(d_o_, from_start, TN))

    lax.fori_loop(0, chunks - 1, again, None)
    lax.fori_loop(0, chunks, sweep, None)

    @pl.when(step == cut.blocks - 1)
    def _():
        for g in range(cut.groups):
            d_s0[0, g] = jnp.transpose(d_state[g])
