"""The LRU as an Equinox module, on the plain functions of `ssm`."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ssm import initializers, ops


class LRU(eqx.Module):
    """h_t = lambda h_{t-1} + gamma B x_t,  y_t = Re(C h_t):  (B, T, D) -> (B, T, D)."""

    nu_log: jax.Array
    theta_log: jax.Array
    b: jax.Array  # (2, N, D): the real and the imaginary part
    c: jax.Array  # (2, D, N)

    def __init__(self, d_model: int, d_state: int, *, key: jax.Array):
        u1, u2, b, c = jax.random.split(key, 4)
        u1, u2 = (jax.random.uniform(u, (d_state,), minval=1e-6) for u in (u1, u2))
        ring = initializers.lru_ring(u1, u2, r_min=0.0, r_max=1.0, max_phase=jnp.pi)
        self.nu_log, self.theta_log = ring
        self.b = jax.random.normal(b, (2, d_state, d_model)) / (2 * d_model) ** 0.5
        self.c = jax.random.normal(c, (2, d_model, d_state)) / d_state**0.5

    def __call__(self, x: jax.Array, h0: jax.Array | None = None):
        """Return the outputs, and the state with which the next chunk goes on."""
        gamma = jnp.exp(initializers.lru_gamma_log(self.nu_log))
        log_a = jax.lax.complex(-jnp.exp(self.nu_log), jnp.exp(self.theta_log))
        gamma_b = gamma[:, None] * jax.lax.complex(*self.b)
        h, h_last = ops.linear_scan(x @ gamma_b.T, log_a=log_a, h0=h0)
        return jnp.real(h @ jax.lax.complex(*self.c).T), h_last


if __name__ == "__main__":
    layer = LRU(16, 32, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 12, 16))
    gradient = eqx.filter_grad(lambda layer: (layer(x)[0] ** 2).sum())(layer)
    print(f"outputs {layer(x)[0].shape}, gradient of nu_log {gradient.nu_log.shape}")
