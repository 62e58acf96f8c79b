"""Sums of exponentials in time: what a diagonal state space is as a convolution.

A table of exp(l log_a) for all steps l would be as large as all the states. Each is a
product of two, for l = i M + j with M about the square root of the length, so that
small tables and matrix products do.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


def exponential_sum(log_a: jax.Array, coefficient: jax.Array, length: int) -> jax.Array:
    """K_l = 2 Re sum_n coefficient_n exp(l log_a_n) for l = 0 ... length - 1.

    The kernel of y = 2 Re sum_n c_n h_n has the coefficients c b; what a state h0 adds
    to the outputs after it has c exp(log_a) h0.

    Shapes: log_a (D, N), coefficient (..., D, N), complex -> (..., D, length) real.
    """
    far, near = _tables(log_a, length)
    far = coefficient[..., None] * jnp.expand_dims(far, range(coefficient.ndim - 2))
    # Re(far near) as one real product.
    real = jnp.concatenate([jnp.real(far), -jnp.imag(far)], axis=-2)
    product = jnp.einsum(
        "...dni,dnj->...dij", real, _real_then_imaginary(near), precision="highest"
    )
    return 2 * product.reshape(*product.shape[:-2], -1)[..., :length]


def weighted_states(log_a: jax.Array, u: jax.Array) -> jax.Array:
    """h_n = sum_t exp((T - 1 - t) log_a_n) u_t: the state after all inputs.

    Shapes: log_a (D, N) complex, u (B, T, D) real -> h (B, D, N) complex.
    """
    batch, time, width = u.shape
    far, near = _tables(log_a, time)
    steps = far.shape[-1], near.shape[-1]
    u = jnp.pad(jnp.flip(u, axis=1), ((0, 0), (0, math.prod(steps) - time), (0, 0)))
    u = u.reshape(batch, *steps, width).astype(jnp.real(near).dtype)
    inner = jnp.einsum(
        "bijd,dnj->bdni", u, _real_then_imaginary(near), precision="highest"
    )
    return jnp.sum(lax.complex(*jnp.split(inner, 2, axis=-2)) * far[None], axis=-1)


def _tables(log_a, length):
    """exp(i M log_a) and exp(j log_a), (D, N, .): of all i M + j below the length."""
    many = 2 ** math.ceil(math.log2(max(length, 1)) / 2)

    def powers(steps):
        steps = steps.astype(jnp.real(log_a).dtype)
        return jnp.exp(log_a[..., None] * steps[None, None])

    return powers(many * jnp.arange(-(-length // many))), powers(jnp.arange(many))


def _real_then_imaginary(table):
    return jnp.concatenate([jnp.real(table), jnp.imag(table)], axis=-2)
