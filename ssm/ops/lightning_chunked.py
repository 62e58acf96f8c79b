"""Decayed linear attention by chunks: matrix products inside, a state between them.

Within a chunk of C steps, with D_ts the sum of the log decays after s up to t,

    o_t = exp(D_t0) q_t S + sum_{s <= t} exp(D_ts) (q_t . k_s) v_s,
    S <- exp(D_C0) S + sum_s exp(D_Cs) k_s^T v_s.

D is never a difference of cumulative sums, and nothing is divided by a decay. Halve the
chunk again and again: two steps s < t are parted by the middle of exactly one of the
pieces, and D_ts is what lies from s to that middle plus what lies from there to t. Both
grow from piece to piece by additions alone. So their errors are relative to themselves,
however strong a decay beside them is; a decay of zero is a logarithm of -inf like any
other; and the gradient of a log decay is a sum over the pairs of steps around it, in
which nothing cancels that does not cancel in the exact one. A decay for each channel of
the key is no number for a pair: there the two parts go to k_s and q_t, whose factors
are at most one where the decays are.

The forward pass keeps the state at the start of each block of some chunks. From there
the backward pass computes the block again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssm.ops.lightning_steps import attention_steps
from ssm.ops.sharding import vary_alike

CHUNK = 64  # steps, a power of two


def attention_chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`ssm.ops.lightning_attention` for checked arguments, T >= 1."""
    return _run(_chunks, q, k, v, log_decay, s0, reset)


def attention_loop(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The same with a forward pass step by step.

    On CPU the state stays in the cache, and a step costs less there than the small
    products of a chunk with a decay of each channel. The backward pass of a step costs
    more: that is by chunks.
    """
    return _run(_steps, q, k, v, log_decay, s0, reset)


def _run(block, q, k, v, log_decay, s0, reset):
    if log_decay.ndim == 1:
        return _attention(block, (q, k, v, None, reset), log_decay, s0)
    return _attention(block, (q, k, v, log_decay, reset), None, s0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(block, arrays, constant, s0):
    """The op; `arrays` (B, T, ...) are q, k, v, log_decay, reset, or None.

    `block(arrays, constant, state)` computes o of some steps and the state after them.
    """
    return _attention_forward(block, arrays, constant, s0)[0]


def _attention_forward(block, arrays, constant, s0):
    steps = _block_steps(arrays)

    def one(i, size, carry):
        o, starts, state = carry
        o_here, after = block(_piece(arrays, i * steps, size), constant, state)
        starts = lax.dynamic_update_index_in_dim(starts, state, i, axis=0)
        return _write(o, o_here, i * steps), starts, after

    v = arrays[2]
    count = -(-v.shape[1] // steps)
    starts = jnp.zeros_like(s0, shape=(count, *s0.shape))
    carry = vary_alike((jnp.zeros_like(v), starts, s0))
    o, starts, last = _sweep(one, carry, v.shape[1], steps)
    return (o, last), (arrays, constant, starts)


def _attention_backward(block, residuals, cotangents):
    del block
    arrays, constant, starts = residuals
    d_o, d_last = cotangents
    *inputs, reset = arrays
    steps = _block_steps(arrays)

    def pull(i, size, carry):
        """The gradients with those of block i, which has `size` steps."""
        gradients, d_constant, d_state = carry
        begin = i * steps
        *here, reset_here, d_o_here = _piece((*arrays, d_o), begin, size)
        state = lax.dynamic_index_in_dim(starts, i, axis=0, keepdims=False)

        def run(here, constant, state):
            return _chunks((*here, reset_here), constant, state)

        d_here, d_constant_here, d_state = jax.vjp(run, here, constant, state)[1](
            (d_o_here, d_state)
        )
        gradients = jax.tree.map(
            lambda whole, part: _write(whole, part, begin), gradients, d_here
        )
        return gradients, jax.tree.map(jnp.add, d_constant, d_constant_here), d_state

    zeros = jax.tree.map(jnp.zeros_like, (inputs, constant))
    carry = vary_alike((*zeros, d_last, d_o))[:3]
    gradients, d_constant, d_s0 = _sweep(
        pull, carry, d_o.shape[1], steps, backwards=True
    )
    return (*gradients, None), d_constant, d_s0


_attention.defvjp(_attention_forward, _attention_backward)


def _block_steps(arrays):
    """The steps of a block: few large products, whose factors stay in the cache."""
    batch, _, heads, _ = arrays[0].shape
    decay = arrays[3]
    # A decay of each channel has more of them.
    factors = 32 if decay is not None and decay.ndim == 4 else 128
    return CHUNK * min(max(factors // (batch * heads), 4), 16)


def _sweep(one, carry, time, steps, backwards=False):
    """Runs `one(i, size, carry)` on all blocks; the last in time may be shorter."""
    count, rest = divmod(time, steps)

    def full(k, carry):
        return one(count - 1 - k if backwards else k, steps, carry)

    if rest and backwards:
        carry = one(count, rest, carry)
    if count:
        carry = lax.fori_loop(0, count, full, carry)
    if rest and not backwards:
        carry = one(count, rest, carry)
    return carry


def _piece(arrays, start, size):
    """Some time steps of each array (B, T, ...)."""
    return tuple(
        None if x is None else lax.dynamic_slice_in_dim(x, start, size, axis=1)
        for x in arrays
    )


def _write(array, part, start):
    return lax.dynamic_update_slice_in_dim(array, part, start, axis=1)


def _steps(arrays, constant, state):
    """A block step by step."""
    q, k, v, decay, reset = arrays
    decay = constant if decay is None else decay
    return attention_steps(q, k, v, decay, state, reset)


def _chunks(arrays, constant, state):
    """A block of T steps by chunks: o (B, T, H, V), and the state after them."""
    q, k, v, decay, reset = arrays
    batch, time, heads, _ = q.shape
    chunk = min(CHUNK, 1 << (time - 1).bit_length())
    padding = -time % chunk
    multiply = functools.partial(
        jnp.einsum, precision=None if v.dtype.itemsize < 4 else lax.Precision.HIGHEST
    )

    if constant is not None:
        alike = padding == 0 and reset is None
        decay = jnp.broadcast_to(constant, (1, chunk if alike else time, heads))
    decay = decay.astype(state.dtype)
    if reset is not None:
        reset = reset.reshape(batch, time, *(1,) * (decay.ndim - 2))
        decay = jnp.where(reset, jnp.full_like(decay, -jnp.inf, shape=()), decay)

    def chunks(array):
        """(B, T, H, ...) as (B, H, R, C, ...): R chunks of C steps."""
        if array.shape[1] % chunk:  # steps that leave the state as it is
            zero = jnp.zeros((), array.dtype)
            pads = [(0, padding if axis == 1 else 0, 0) for axis in range(array.ndim)]
            array = lax.pad(array, zero, pads)
        shape = array.shape[0], -1, chunk, *array.shape[2:]
        return jnp.moveaxis(array.reshape(shape), 3, 1)

    q, k, v = (chunks(array.astype(state.dtype)) for array in (q, k, v))
    decay = chunks(decay)
    sums = _sums(decay)
    if decay.ndim == 5:
        weights = _weights_by_channel(q, k, sums, multiply)
        from_start, to_end = sums.from_start, sums.to_end
    else:
        weights = multiply("bhrtk,bhrsk->bhrts", q, k) * _decays_by_head(sums)
        from_start, to_end = sums.from_start[..., None], sums.to_end[..., None]

    def over_chunk(state, chunk):
        kept, written = chunk
        return kept * state + written, state

    written = multiply("bhrsk,bhrsv->rbhkv", k * jnp.exp(to_end), v)
    kept = jnp.moveaxis(jnp.exp(from_start[:, :, :, -1, :, None]), 2, 0)
    kept = jnp.broadcast_to(kept, (q.shape[2], *kept.shape[1:]))
    state, starts = lax.scan(over_chunk, state, (kept, written))
    o = multiply("bhrts,bhrsv->bhrtv", weights, v)
    o += multiply("bhrtk,rbhkv->bhrtv", q * jnp.exp(from_start), starts)
    o = jnp.moveaxis(o, 1, 3).reshape(batch, time + padding, heads, -1)
    return o[:, :time].astype(arrays[2].dtype), state


class _Sums(NamedTuple):
    """Sums of log decays within chunks, (..., C) or (..., C, K).

    `halves` has for each size m, from 1 to C / 2, the pieces of 2 m steps (..., n, m):
    for a step of the second half the sum from the middle to it, with its own, and for
    one of the first half the sum after it to the middle.
    """

    halves: list[tuple[jax.Array, jax.Array]]
    from_start: jax.Array  # with that of the step
    to_end: jax.Array  # without


def _sums(decay):
    shape = decay.shape[:3]
    before = decay.reshape(*shape, -1, 1, *decay.shape[4:])
    after = jnp.zeros_like(before)
    halves = []
    while before.shape[3] > 1:
        (first, second), (first_after, second_after) = map(_pairs, (before, after))
        halves.append((second, first_after))
        before = jnp.concatenate([first, second + first[:, :, :, :, -1:]], axis=4)
        after = jnp.concatenate(
            [first_after + second[:, :, :, :, -1:], second_after], axis=4
        )
    return _Sums(halves, before[:, :, :, 0], after[:, :, :, 0])


def _pairs(pieces):
    """The first and the second ones of neighbouring pieces (B, H, R, n, ...)."""
    return pieces[:, :, :, 0::2], pieces[:, :, :, 1::2]


def _decays_by_head(sums):
    """exp(D_ts) for s <= t and 0 elsewhere, (..., C, C)."""
    lead = sums.from_start.shape
    log = jnp.zeros((*lead, 1, 1), sums.from_start.dtype)
    for from_middle, to_middle in sums.halves:
        low = from_middle[..., :, None] + to_middle[..., None, :]
        log = _grow(log, low, -jnp.inf)
    return jnp.exp(log[:, :, :, 0])


def _weights_by_channel(q, k, sums, multiply):
    """The sum over channels of q_t k_s exp(D_ts) for s <= t, and 0 elsewhere."""
    weights = jnp.sum(q * k, axis=-1)[..., None, None]
    for from_middle, to_middle in sums.halves:
        shape = *q.shape[:3], -1, from_middle.shape[4], q.shape[4]
        queries = _pairs(q.reshape(shape))[1] * jnp.exp(from_middle)
        keys = _pairs(k.reshape(shape))[0] * jnp.exp(to_middle)
        if shape[4] == 1:
            low = jnp.sum(queries * keys, axis=-1, keepdims=True)
        else:
            low = multiply("bhrntk,bhrnsk->bhrnts", queries, keys)
        weights = _grow(weights, low, 0.0)
    return weights[:, :, :, 0]


def _grow(squares, low, empty):
    """Joins pairs of squares (..., n, m, m) on the diagonal, with `low` below it."""
    first, second = _pairs(squares)
    high = jnp.full_like(low, empty)
    return jnp.concatenate(
        [
            jnp.concatenate([first, high], axis=-1),
            jnp.concatenate([low, second], axis=-1),
        ],
        axis=-2,
    )
