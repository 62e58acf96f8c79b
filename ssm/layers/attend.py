"""Attention over the keys that each query sees, as pure functions.

Time is counted from the first query of a call: 0 ... T - 1 are its own steps, negative
ones those before. A causal query at t sees the keys from its earliest to t, where the
earliest is the start of its document, or the oldest one in its window.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Implementation = Literal["xla", "cudnn"]


def document_starts(
    reset: jax.Array | None, length: jax.Array | None, time: int
) -> jax.Array:
    """When the document of each step started, (B, T) or (1, T) int32.

    `reset` (B, T) marks starts; before the first of them goes on a document that has
    `length` (B,) steps already, 0 for None.
    """
    before = jnp.zeros(1, jnp.int32) if length is None else -length
    if reset is None:
        return jnp.broadcast_to(before[:, None], (before.shape[0], time))
    steps = jnp.arange(time, dtype=jnp.int32)[None]
    return lax.cummax(jnp.where(reset, steps, before[:, None]), axis=1)


def dot_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    is_causal: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention: softmax(q k^T / sqrt(H) where seen) v, softmax in float32.

    Shapes: q (B, T, N, H); k, v (B, S, K, H), where K divides N; mask (B or 1, T, S)
    bool, True where a query sees a key -> (B, T, N, H).
    """
    mask = None if mask is None else mask[:, None]
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=is_causal, implementation=implementation
        )
    # The same in float64, where jax rounds to float32 before the softmax.
    heads, kv_heads = q.shape[2], k.shape[2]
    k, v = (jnp.repeat(array, heads // kv_heads, axis=2) for array in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5
    if is_causal:
        mask = jnp.tril(jnp.ones(scores.shape[2:], bool))[None, None]
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v)


def attend_in_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    earliest: jax.Array,
    *,
    block: int,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Attention that looks back no further than `block`, in memory linear in T.

    The sequence is cut into blocks, and the queries of each see the keys of their own
    block and of the one before. Nothing of size (T, T) is made.

    Shapes: q (B, T, N, H); k, v (B, block + T, K, H), those of the `block` steps before
    the first query, then their own; earliest (B or 1, T) int32 -> (B, T, N, H).
    """
    time = q.shape[1]
    count = -(-time // block)
    missing = count * block - time

    def cut(array, axis=1):
        """(B, n * block, ...) -> (B, n, block, ...), zeros after the end."""
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, missing)
        array = jnp.pad(array, padding)
        return array.reshape(array.shape[0], -1, block, *array.shape[2:])

    def with_block_before(array):
        """(B, block + T, K, H) -> (B, n, 2 * block, K, H)."""
        blocks = cut(array)
        return jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)

    first = block * jnp.arange(count, dtype=jnp.int32)[None, :, None]
    at_query = first + jnp.arange(block, dtype=jnp.int32)[None, None]
    at_key = first + jnp.arange(-block, block, dtype=jnp.int32)[None, None]
    mask = seen(at_query, at_key, cut(earliest))

    def one_block(q, k, v, mask):
        return dot_product(q, k, v, mask, implementation=implementation)

    y = jax.vmap(one_block, in_axes=1, out_axes=1)(
        cut(q), with_block_before(k), with_block_before(v), mask
    )
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :time]


def seen(at_query: jax.Array, at_key: jax.Array, earliest: jax.Array) -> jax.Array:
    """Which keys each query sees: times (..., T), (..., S) -> (..., T, S) bool."""
    at_key = at_key[..., None, :]
    return (at_key <= at_query[..., None]) & (at_key >= earliest[..., None])


def slot_times(length: jax.Array, size: int) -> jax.Array:
    """When what each slot of a ring of keys was written, (B,) -> (B, size) int32.

    The slot of a step is its place in its document modulo `size`, so slot s holds the
    last such step of the `length` ones so far, as a time before the next one; a time
    before the document is that of an empty slot.
    """
    newest = length[:, None] - 1
    slots = jnp.arange(size, dtype=jnp.int32)[None]
    return -1 - (newest - slots) % size


def from_ring(ring: jax.Array, length: jax.Array, count: int) -> jax.Array:
    """The last `count` entries of a ring, oldest first; any value where it has none.

    Shapes: ring (B, S, K, H), length (B,) -> (B, count, K, H).
    """
    times = jnp.arange(-count, 0, dtype=jnp.int32)[None]
    slots = (length[:, None] + times) % ring.shape[1]
    return jnp.take_along_axis(ring, slots[..., None, None], axis=1)


def into_ring(ring: jax.Array, chunk: jax.Array, start: jax.Array) -> jax.Array:
    """The ring after the steps of a chunk; zeros where it holds nothing.

    Shapes: ring (B, S, K, H); chunk (B, T, K, H); start (B,), when the document of the
    last step started -> (B, S, K, H).
    """
    size, time = ring.shape[1], chunk.shape[1]
    times = time + slot_times(time - start, size)
    index = jnp.clip(times, 0, time - 1)[..., None, None]
    new = jnp.take_along_axis(chunk.astype(ring.dtype), index, axis=1)
    ring = jnp.where((times >= 0)[..., None, None], new, ring)
    empty = (times < start[:, None])[..., None, None]
    return jnp.where(empty, jnp.zeros((), ring.dtype), ring)
