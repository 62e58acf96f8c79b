"""Initial values of recurrence parameters, as pure functions."""

import jax
import jax.numpy as jnp


def lru_ring(
    u1: jax.Array, u2: jax.Array, *, r_min: float, r_max: float, max_phase: float
) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues on a ring, from two uniform draws in (0, 1), as (nu_log, theta_log).

        nu = -1/2 log(u1 (r_max^2 - r_min^2) + r_min^2)        theta = max_phase * u2

    `exp(-nu + i theta)` is then uniform on the part of the ring `r_min <= |z| <= r_max`
    with phase below `max_phase` (radians).

    Shapes: u1, u2 (N,) -> nu_log, theta_log (N,). Source: Orvieto et al. 2023
    (2303.06349), lemma 3.2.
    """
    nu = -0.5 * jnp.log(u1 * (r_max**2 - r_min**2) + r_min**2)
    return jnp.log(nu), jnp.log(max_phase * u2)


def lru_gamma_log(nu_log: jax.Array) -> jax.Array:
    """The logarithm of the normaliser that keeps the state's variance at one.

        gamma = sqrt(1 - |lambda|^2),    |lambda| = exp(-exp(nu_log))

    Computed by `expm1`, which stays exact for |lambda| close to one.

    Shapes: (N,) -> (N,). Source: Orvieto et al. 2023 (2303.06349), section 3.4.
    """
    return 0.5 * jnp.log(-jnp.expm1(-2.0 * jnp.exp(nu_log)))


def rg_lru_ring(u: jax.Array, *, r_min: float, r_max: float) -> jax.Array:
    """The RG-LRU's `a_param` for decays on a ring, from a uniform draw in [0, 1).

        a^2 = u (r_max^2 - r_min^2) + r_min^2 + 1e-8        a_param = log(1 / a - 1)

    so that exp(-softplus(a_param)) = a, uniform on the ring r_min <= |z| <= r_max.

    Shapes: (D,) -> (D,). Source: the released RecurrentGemma, for De et al. 2024
    (2402.19427), section 2.4.
    """
    log_a = 0.5 * jnp.log(u * (r_max**2 - r_min**2) + r_min**2 + 1e-8)
    return jnp.log(jnp.expm1(-log_a))
