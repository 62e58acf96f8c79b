"""From continuous to discrete time, for diagonal state matrices."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Discretization = Literal["zoh", "bilinear"]


def zoh(eigenvalues: jax.Array, dt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zero-order hold: the input is constant during a step.

        log a = dt lambda            b = (exp(dt lambda) - 1) / lambda

    of x_k = a x_{k-1} + b B u_k, which takes the place of x' = lambda x + B u. Shapes:
    whatever broadcasts; complex. The factor is dt in the limit of a small dt lambda.

    Source: Gu et al. 2022, S4D (2206.11893), section 3.1.
    """
    z = dt * eigenvalues
    return z, dt * _expm1_over(z)


def bilinear(eigenvalues: jax.Array, dt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bilinear transform: the trapezoid rule, which is exact in second order.

        a = (1 + dt lambda / 2) / (1 - dt lambda / 2)
        b = dt / (1 - dt lambda / 2)

    Shapes: whatever broadcasts; complex.

    Source: Gu et al. 2022, S4 (2111.00396), eq. 3.
    """
    half = 0.5 * dt * eigenvalues
    return 2 * jnp.arctanh(half), dt / (1 - half)


def _expm1_over(z):
    """(exp(z) - 1) / z, which no rounding spoils near zero, where it is one."""
    zero = z == 0
    safe = jnp.where(zero, 1, z)
    return jnp.where(zero, 1 + z / 2, jnp.expm1(safe) / safe)


DISCRETIZATIONS: dict[
    Discretization, Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
] = {"zoh": zoh, "bilinear": bilinear}
"""By name: of eigenvalues and dt the logarithm of the decay, and the factor of B."""
