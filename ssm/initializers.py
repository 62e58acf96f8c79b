"""Initial values of recurrence parameters, as pure functions."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

SlopeKind = Literal["transnormer", "minimax", "paper"]
DiagonalKind = Literal["lin", "inv", "legs", "real"]


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


def chrono(u: jax.Array, *, t_max: float) -> jax.Array:
    """Biases of forget gates, from uniform draws in [0, 1).

        b = log(1 + u (t_max - 2))

    With nothing but its bias a gate sigmoid(b) forgets over T = 1 + exp(b) steps, which
    are uniform between 2 and t_max.

    Any shape. Raises ValueError unless t_max > 2.

    Source: Tallec and Ollivier 2018 (1804.11188), section 2.
    """
    if not t_max > 2:
        raise ValueError(f"chrono={t_max}, wanted above 2: the longest memory in steps")
    return jnp.log1p(u * (t_max - 2))


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


def hippo_legs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The state and input matrices of HiPPO-LegS, which remember all of the past.

        A_jk = -sqrt(2 j + 1) sqrt(2 k + 1)    j > k
               -(j + 1)                        j = k        B_j = sqrt(2 j + 1)
               0                               j < k

    Shapes: A (N, N), B (N,), float64.

    Source: Gu et al. 2020, HiPPO (2008.07669); Gu et al. 2022, S4 (2111.00396), eq. 2.
    """
    b = np.sqrt(2 * np.arange(n, dtype=np.float64) + 1)
    return -np.tril(np.outer(b, b), -1) - np.diag(np.arange(1.0, n + 1)), b


def legs_dplr(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """HiPPO-LegS as a diagonal plus a matrix of rank one: lambda, p, b and V.

        A = V (diag(lambda) - p p*) V*        B = V b        Re(lambda) = -1/2

    in ascending order of the imaginary parts: the first half has the negative ones, the
    second their conjugates in reverse, and an odd N a real one between. V is unitary;
    its columns have arbitrary phases, and so have the entries of p and b.

    Shapes: lambda, p, b (N,), V (N, N), complex128.

    Source: Gu et al. 2022, S4 (2111.00396), theorem 1 and appendix C.1.
    """
    a, b = hippo_legs(n)
    p = np.sqrt(np.arange(n) + 0.5)
    normal = a + np.outer(p, p)
    imaginary, v = np.linalg.eigh(-1j * (normal - np.diag(np.diag(normal))))
    to_diagonal = v.conj().T
    return (
        -0.5 + 1j * imaginary,
        to_diagonal @ p,
        to_diagonal @ b,
        v,
    )


def s4d(n: int, *, kind: DiagonalKind) -> np.ndarray:
    """The eigenvalues of diagonal state matrices, one of each conjugate pair.

        lambda_j = -1/2 + i pi j                                      "lin"
        lambda_j = -1/2 + i (N / pi) (N / (2 j + 1) - 1)              "inv"
        lambda_j = those of the normal part of HiPPO-LegS             "legs"
        lambda_j = -(j + 1)                                           "real"

    for j = 0 ... N / 2 - 1, where N = `n` counts both of a pair.

    Shape (N / 2,) complex128. Raises ValueError for another kind or an odd N.

    Source: Gu et al. 2022, S4D (2206.11893), section 4.
    """
    if n % 2 or n < 2:
        raise ValueError(f"S4D: {n} states, wanted an even number: conjugate pairs")
    j = np.arange(n // 2)
    if kind == "lin":
        return -0.5 + 1j * np.pi * j
    if kind == "inv":
        return -0.5 + 1j * (n / np.pi) * (n / (2 * j + 1) - 1)
    if kind == "legs":
        return np.conj(legs_dplr(n)[0][: n // 2])
    if kind == "real":
        return -(j + 1.0).astype(np.complex128)
    raise ValueError(
        f"S4D: kind={kind!r} is unknown, wanted 'lin', 'inv', 'legs' or 'real'"
    )


def s5_legs(n: int, *, n_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of S5 and the basis in which they are diagonal.

        A = V diag(lambda) V^-1

    where A is made of `n_blocks` equal blocks, each the normal part of HiPPO-LegS. One
    of each conjugate pair is kept, that with the negative imaginary part: N / 2 columns
    of V.

    Shapes: lambda (N / 2,), V (N, N / 2), complex128. Raises ValueError unless the
    blocks divide N into even sizes.

    Source: Smith et al. 2023, S5 (2208.04933), section 3.3 and appendix B.1.1.
    """
    if n_blocks < 1 or n % n_blocks or (n // n_blocks) % 2:
        raise ValueError(
            f"S5: {n} states in {n_blocks} blocks, wanted blocks of an even number of "
            "states: conjugate pairs"
        )
    size = n // n_blocks
    eigenvalues, _, _, v = legs_dplr(size)
    half = size // 2
    blocks = np.kron(np.eye(n_blocks), v[:, :half])
    return np.tile(eigenvalues[:half], n_blocks), blocks


def log_dt(u: jax.Array, *, dt_min: float, dt_max: float) -> jax.Array:
    """The logarithm of step sizes, from uniform draws in [0, 1).

        log dt = log dt_min + u (log dt_max - log dt_min)

    Any shape. Raises ValueError unless 0 < dt_min <= dt_max.

    Source: Gu et al. 2022, S4 (2111.00396), appendix C.3.
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(
            f"dt_min={dt_min}, dt_max={dt_max}, wanted 0 < dt_min <= dt_max: the "
            "shortest and the longest step"
        )
    return u * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
