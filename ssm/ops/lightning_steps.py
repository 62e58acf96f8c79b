"""Decayed linear attention step by step, as its equations are written."""

import jax
import jax.numpy as jnp
from jax import lax


def attention_steps(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`ssm.ops.lightning_attention` for checked arguments, T >= 1, by `lax.scan`."""
    constant = log_decay.ndim == 1

    def step(state, inputs):
        *arrays, decay, reset = inputs
        q, k, v = (array.astype(s0.dtype) for array in arrays)
        decay = log_decay[None] if constant else decay
        decay = widened(jnp.exp(decay.astype(s0.dtype)))
        if reset is not None:
            reset = reset[:, None, None, None]
            decay = jnp.where(reset, jnp.zeros_like(decay, shape=()), decay)
        state = decay * state + k[..., :, None] * v[..., None, :]
        o = jnp.einsum("bhk,bhkv->bhv", q, state, precision=lax.Precision.HIGHEST)
        return state, o

    arrays = q, k, v, None if constant else log_decay, reset
    by_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), arrays)
    last, o = lax.scan(step, s0, by_time)
    return jnp.swapaxes(o, 0, 1).astype(v.dtype), last


def widened(decay: jax.Array) -> jax.Array:
    """A decay (B, H) or (B, H, K) with the axes of the state (B, H, K, V)."""
    return decay.reshape(*decay.shape, *(1,) * (4 - decay.ndim))
