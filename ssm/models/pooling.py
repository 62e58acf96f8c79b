"""From a sequence to one vector, without looking at padding."""

from typing import Literal

import jax
import jax.numpy as jnp

Pooling = Literal["mean", "last"]


def valid_steps(lengths: jax.Array, time: int) -> jax.Array:
    """Turn (B,) lengths into (B, T) bool, True before the end of each sequence."""
    return jnp.arange(time)[None] < lengths[:, None]


def pool(x: jax.Array, lengths: jax.Array | None, kind: Pooling) -> jax.Array:
    """The mean over time, or the last step, of x (B, T, D) -> (B, D) float32.

    `lengths` (B,) int counts the valid steps of each sequence, None means all. A
    sequence of length 0 gives zeros ("mean") or its first step ("last").
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if kind == "last":
        if lengths is None:
            return x[:, -1].astype(dtype)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        return jnp.take_along_axis(x, last, axis=1)[:, 0].astype(dtype)
    if lengths is None:
        return jnp.mean(x, axis=1, dtype=dtype)
    valid = valid_steps(lengths, x.shape[1])
    total = jnp.sum(x, axis=1, dtype=dtype, where=valid[..., None])
    return total / jnp.maximum(lengths, 1)[:, None].astype(dtype)
