"""Sums of log decays within chunks, whose differences are as good as sums."""

import jax
import jax.numpy as jnp

ZERO = -1024.0  # the logarithm of a decay that is zero


def decay_sums(
    log_decay: jax.Array,
    reset: jax.Array | None,
    shape: tuple[int, int, int],
    chunk: int,
    padded: int,
) -> jax.Array:
    """Returns what the kernels of lightning attention take for decays.

    Where the decay does not change with time, `log_decay` itself: sums are multiples.
    Otherwise cumulative sums within chunks, in two parts: of the log decays rounded to
    multiples of 2^-6, whose sums are exact, and of the rests below that, whose are
    small. The difference of two such sums is as good as a sum of what lies between. A
    reset is a log decay of which every exponential is 0.

    Args:
      log_decay: (H,) or (B, T, H), any real dtype.
      reset: (B, T) bool.
      shape: (B, T, H).
      chunk: how many steps a chunk has.
      padded: the steps of all chunks together; beyond T nothing decays.

    Returns:
      (H,), if that is all there is to say; else (B, H, 2, `padded`). float32.
    """
    log_decay = jnp.maximum(log_decay.astype(jnp.float32), ZERO)
    if log_decay.ndim == 1 and reset is None and shape[1] % chunk == 0:
        return log_decay
    batch, time, heads = shape
    log_decay = jnp.broadcast_to(log_decay, shape)
    if reset is not None:
        zero = jnp.full_like(log_decay, ZERO, shape=())
        log_decay = jnp.where(reset[..., None], zero, log_decay)
    log_decay = jnp.swapaxes(log_decay, 1, 2)
    log_decay = jnp.pad(log_decay, ((0, 0), (0, 0), (0, padded - time)))
    coarse = jnp.round(log_decay * 64) / 64
    parts = jnp.stack([coarse, log_decay - coarse], axis=2)
    chunks = parts.reshape(batch, heads, 2, -1, chunk)
    return jnp.cumsum(chunks, axis=-1).reshape(parts.shape)
