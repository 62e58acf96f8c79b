"""Initial values of recurrence parameters, as pure functions."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

SlopeKind = Literal["transnormer", "minimax", "paper"]


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


def alibi_slopes(n_heads: int) -> np.ndarray:
    """The slopes of ALiBi: a geometric sequence over the heads.

        s_h = 2^(-8 (h + 1) / H),    h = 0 ... H - 1

    for a power of two; else those of the next smaller power P, then every other one of
    2 P. Shape (H,) float64.

    Source: Press et al. 2022, ALiBi (2108.12409), section 3 and its released code.
    """
    power = 2 ** (n_heads.bit_length() - 1)
    slopes = _geometric_slopes(power)
    if power == n_heads:
        return slopes
    between = _geometric_slopes(2 * power)[::2]
    return np.concatenate([slopes, between[: n_heads - power]])


def decay_slopes(n_heads: int, n_layers: int, *, kind: SlopeKind) -> np.ndarray:
    """The slopes s of lightning attention's decays exp(-s), for all layers.

        s_{l,h} = alibi_slopes(H)_h (1 - l / (L - 1) + 1e-5)              "transnormer"
        s_{l,h} = 2^(-8 (h + 1) / H) (1 - l / (L - 1 + 1e-5) + 1e-5)      "minimax"
        s_{l,h} = (8 h / H) (1 - l / L)                                   "paper"

    "transnormer" is what its released models were trained with, "minimax" what released
    MiniMax-Text-01 runs with, and the two differ by little for powers of two. "paper"
    is the printed formula with h from 0, whose first head never decays.

    Shape (L, H) float64. Raises ValueError for another kind.

    Source: Qin et al. 2024, TransNormerLLM (2307.14995), section 3.1; MiniMax 2025
    (2501.08313), section 2.2.
    """
    layer = np.arange(n_layers, dtype=np.float64)[:, None]
    if kind == "transnormer":
        slopes = alibi_slopes(n_heads)
        rest = 1 - layer / max(n_layers - 1, 1) + 1e-5
    elif kind == "minimax":
        slopes = _geometric_slopes(n_heads)
        rest = 1 - layer / (n_layers - 1 + 1e-5) + 1e-5
    elif kind == "paper":
        slopes = np.arange(n_heads) * (8 / n_heads)
        rest = 1 - layer / n_layers
    else:
        raise ValueError(
            f"slopes: kind={kind!r} is unknown, wanted 'transnormer', 'minimax' or "
            "'paper'"
        )
    return slopes[None] * rest


def _geometric_slopes(n_heads):
    return 2.0 ** (-8 * np.arange(1, n_heads + 1) / n_heads)
