"""The scan in plain XLA operations: `lax.scan` and `lax.associative_scan`.

Both are differentiated by jax itself, in forward and in reverse mode.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ssm.ops.scan_loop import effective_decay, multiply


def scan_sequential(
    x: jax.Array,
    decay: jax.Array,
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    log: bool,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """`ssm.ops.linear_scan` by `lax.scan`: T steps, each on (B, D)."""
    constant = decay.ndim == 1

    def step(h, inputs):
        x_t, decay_t, reset_t = inputs
        a = effective_decay(decay[None] if constant else decay_t, reset_t, h, log=log)
        h = multiply(a, h) + x_t.astype(h.dtype)
        return h, h.astype(x.dtype)

    by_time = (
        jnp.swapaxes(x, 0, 1),
        None if constant else jnp.swapaxes(decay, 0, 1),
        None if reset is None else jnp.swapaxes(reset, 0, 1),
    )
    h_last, h = lax.scan(step, h0, by_time, reverse=reverse)
    return jnp.swapaxes(h, 0, 1), h_last


def scan_associative(
    x: jax.Array,
    decay: jax.Array,
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    log: bool,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """`ssm.ops.linear_scan` by `lax.associative_scan`: log T parallel steps.

    The pairs (a, x) compose as `(a_1, x_1) then (a_2, x_2) = (a_2 a_1, a_2 x_1 + x_2)`.
    """
    a = effective_decay(decay, None, h0, log=log)
    a = jnp.broadcast_to(a, x.shape)
    if reset is not None:
        a = jnp.where(reset[..., None], jnp.zeros_like(a, shape=()), a)
    first, last = (-1, 0) if reverse else (0, -1)
    inputs = x.astype(h0.dtype)
    inputs = inputs.at[:, first].add(multiply(a[:, first], h0))

    def compose(one, two):
        (a_1, x_1), (a_2, x_2) = one, two
        return a_2 * a_1, multiply(a_2, x_1) + x_2

    _, h = lax.associative_scan(compose, (a, inputs), axis=1, reverse=reverse)
    return h.astype(x.dtype), h[:, last]
