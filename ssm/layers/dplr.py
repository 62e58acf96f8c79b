"""State spaces whose matrix is diagonal plus low rank, one for each channel.

    x'(t) = A x(t) + B u(t),    A = diag(lambda) - sum_i p_i p_i*

Vectors come in conjugate pairs, of which one of each is held: inner products are twice
the real part of those over the half.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssm.ops.sharding import vary_alike


class System(NamedTuple):
    """In continuous time: lambda and b (D, n), p (r, D, n), complex; dt (D,) real."""

    eigenvalues: jax.Array
    p: jax.Array
    b: jax.Array
    dt: jax.Array


class Step(NamedTuple):
    """One step of length dt: x_t = Abar x_{t-1} + b u_t.

        Abar x = a x - sum_i left_i (right_i x)

    Shapes: a, b (1, D, n), left, right (r, 1, D, n), complex, for states (B, D, n).
    """

    a: jax.Array
    left: jax.Array
    right: jax.Array
    b: jax.Array


def inner(row: jax.Array, x: jax.Array) -> jax.Array:
    """The inner product of two halves, real: (..., n) and (..., n) -> (...)."""
    return 2 * jnp.sum(jnp.real(row * x), axis=-1)


@jax.jit
def bilinear(system: System) -> Step:
    """The trapezoid rule, whose inverse a rank of r corrects (Woodbury).

        Abar = (I - dt A / 2)^-1 (I + dt A / 2),    b = (I - dt A / 2)^-1 dt B

    Source: Gu et al. 2022, S4 (2111.00396), eq. 3 and appendix C.2.
    """
    eigenvalues, p, b = system.eigenvalues[None], system.p, system.b[None]
    dt = system.dt[None, :, None]
    half = dt * eigenvalues / 2
    inverse = 1 / (1 - half)  # of the diagonal part
    right = jnp.conj(p) * inverse
    gram = jnp.moveaxis(inner(right[:, None], p[None]), -1, 0)  # (D, r, r)
    small = jnp.linalg.inv(jnp.eye(len(p))[None] + jnp.swapaxes(dt, 0, 1) / 2 * gram)
    left = dt * jnp.einsum("idn,dij->jdn", p * inverse, small, precision="highest")
    step = Step((1 + half) * inverse, left[:, None], right[:, None], dt * inverse * b)
    return step._replace(b=step.b - _low_rank(step, dt / 2 * b))


def advance(step: Step, x: jax.Array) -> jax.Array:
    """Abar x, for x (B, D, n)."""
    return step.a * x - _low_rank(step, x)


def _driven(step, x, u_t):
    return advance(step, x) + step.b * u_t[..., None]


def _low_rank(step, x):
    projections = (inner(right, x)[..., None] for right in step.right)
    return sum(left * s for left, s in zip(step.left, projections, strict=True))


@functools.partial(jax.jit, static_argnames="length")
def kernel(system: System, c: jax.Array, length: int) -> jax.Array:
    """K_j = C Abar^j b for j < length, of c = C (I - Abar^length).

    Shapes: c (K, D, n) -> (K, D, length) real.
    """

    def part(nodes):
        return _spectrum(system, c, nodes)

    again = jax.checkpoint(part, prevent_cse=False)
    parts = lax.map(again, _nodes(system, length))
    spectrum = jnp.moveaxis(parts, 0, -2).reshape(*c.shape[:2], -1)
    return jnp.fft.irfft(spectrum[..., : length // 2 + 1], length)


@functools.partial(jax.jit, static_argnames="length")
def output_map(system: System, c: jax.Array, length: int) -> jax.Array:
    """C of c = C (I - Abar^length), (D, n) -> (D, n).

    The first tap of the kernel, the mean of its spectrum, is C b = C (I - dt A / 2)^-1
    dt B. So C is its derivative by B, but for a factor; no power of Abar is rounded on
    the way.
    """

    def first_taps(b, nodes):
        spectrum = _spectrum(system._replace(b=b), c[None], nodes)
        return jnp.sum(jnp.real(spectrum) * nodes.share[None, None])

    def add(row, nodes):
        return row + jax.grad(first_taps)(system.b, nodes), None

    row, _ = vary_alike((jnp.zeros_like(system.b), (system, c)))
    nodes = _nodes(system, length)
    row, _ = lax.scan(jax.checkpoint(add, prevent_cse=False), row, nodes)
    dt = system.dt[:, None]
    row = row / (2 * dt)  # jax.grad is twice the derivative of a real part
    out = row * (1 - dt * system.eigenvalues / 2)
    for p in system.p:
        out = out + dt / 2 * inner(row, p)[:, None] * jnp.conj(p)
    return out


class _Nodes(NamedTuple):
    """Roots of unity exp(-i theta), theta up to pi, in parts: each (parts, size)."""

    sine: jax.Array  # of theta / 2
    cosine: jax.Array
    share: jax.Array  # of a root and its conjugate in the mean of a spectrum


def _nodes(system, length, most=2**18):
    """As many at once as make a table of at most so many denominators.

    In float64: nodes from powers of a float32 root are off by 1e-3 at 2^14 steps.
    """
    count = length // 2 + 1
    half = np.pi * np.arange(count) / length
    share = np.full(count, 2 / length)
    share[0] = 1 / length
    if length % 2 == 0:
        share[-1] = 1 / length
    parts = -(-count * 2 * system.eigenvalues.size // most)
    size = -(-count // parts)

    def cut(values, filler):
        values = np.pad(values, (0, parts * size - count), constant_values=filler)
        return jnp.asarray(values.reshape(parts, size), system.dt.dtype)

    return _Nodes(cut(np.sin(half), 1), cut(np.cos(half), 0), cut(share, 0))


def _spectrum(system, c, nodes):
    """The transform of the kernels of c (K, D, n) at some nodes: (K, D, size) complex.

    It is c (I - w Abar)^-1 b at w = exp(-i theta): a sum of 1 / (z - dt lambda) with
    z = 2i tan(theta / 2), corrected for each p. Multiplied by cos(theta / 2), that is
    finite at theta = pi too:

        R = (2i sin(theta / 2) - dt cos(theta / 2) A)^-1
        K^ = dt exp(i theta / 2) c R B

    Source: Gu et al. 2022, S4 (2111.00396), section 3.2 and appendix C.3.
    """
    eigenvalues, p, b, dt = system
    dt, sine, cosine = dt[:, None], nodes.sine[None], nodes.cosine[None]
    rows = jnp.concatenate([c, jnp.conj(p)])[:, None]
    columns = jnp.concatenate([b[None], p])[None]
    products = _cauchy_sums(dt * eigenvalues, rows * columns, 2 * sine, cosine)
    strength = dt * cosine
    for _ in range(len(p)):  # Sherman-Morrison, for the last p that is left
        pivot = (strength / (1 + strength * products[-1, -1]))[None, None]
        products = products[:-1, :-1] - pivot * products[:-1, -1:] * products[-1:, :-1]
    return (dt * lax.complex(cosine, sine))[None] * products[:, 0]


def _cauchy_sums(z, weights, sine, cosine):
    """sum_n weights_n / (i sine - cosine z_n), over both of each conjugate pair.

    Shapes: z (D, n), weights (..., D, n), sine and cosine (1, size) -> (..., D, size).
    """
    z = jnp.concatenate([z, jnp.conj(z)], axis=-1)[:, None]
    weights = jnp.concatenate([weights, jnp.conj(weights)], axis=-1)
    sine, cosine = sine[..., None], cosine[..., None]
    real, imaginary = -cosine * jnp.real(z), sine - cosine * jnp.imag(z)
    table = lax.complex(real, -imaginary) / (real**2 + imaginary**2)
    return jnp.einsum("dfn,...dn->...df", table, weights, precision="highest")


@jax.jit
def run(
    step: Step,
    c: jax.Array,
    u: jax.Array,
    state: jax.Array,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y_t = C x_t step by step: u (B, T, D), state (B, D, n) -> y, the last state.

    The gradient keeps about sqrt(T) states and makes the others again.
    """

    def one(x, inputs):
        u_t, reset_t = inputs
        if reset_t is not None:
            x = jnp.where(reset_t[:, None, None], 0, x)
        x = _driven(step, x, u_t)
        return x, inner(c[None], x)

    def many(x, inputs):
        return lax.scan(one, x, inputs)

    state, _ = vary_alike((state, (step, c, u, reset)))
    near = _near(u.shape[1])
    rest = u.shape[1] % near
    inputs = jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), (u, reset))
    state, head = many(state, jax.tree.map(lambda v: v[:rest], inputs))
    chunks = jax.tree.map(lambda v: v[rest:].reshape(-1, near, *v.shape[1:]), inputs)
    state, tail = lax.scan(jax.checkpoint(many, prevent_cse=False), state, chunks)
    y = jnp.concatenate([head, tail.reshape(-1, *head.shape[1:])])
    return jnp.moveaxis(y, 0, 1), state


@functools.partial(jax.jit, static_argnames="length")
def free_response(step: Step, c: jax.Array, state: jax.Array, length: int) -> jax.Array:
    """C Abar^j x for j < length: state (B, D, n) -> (B, length, D)."""
    state, _ = vary_alike((state, step))
    near = _near(length)
    transposed = jnp.swapaxes(matrix(step), 1, 2)
    rows, jump = _powers(transposed, _to_row(c), near)

    def far(x, _):
        return jnp.einsum("dnm,bdn->bdm", jump, x, precision="highest"), x

    _, starts = lax.scan(far, _to_real(state), length=-(-length // near))
    y = jnp.einsum("djn,ibdn->bijd", rows, starts, precision="highest")
    return y.reshape(len(state), -1, y.shape[-1])[:, :length]


@jax.jit
def last_state(step: Step, u: jax.Array, state: jax.Array) -> jax.Array:
    """The state after inputs u (B, T, D): (B, D, n) -> (B, D, n)."""
    state, _ = vary_alike((state, (step, u)))
    batch, time, width = u.shape
    near = _near(time)
    rest = time % near
    head = jnp.moveaxis(u[:, :rest], 1, 0)
    state, _ = lax.scan(lambda x, u_t: (_driven(step, x, u_t), None), state, head)
    columns, jump = _powers(matrix(step), _to_real(step.b[0]), near)
    chunks = u[:, rest:].reshape(batch, -1, near, width)
    driven = jnp.einsum(
        "bijd,djn->ibdn", jnp.flip(chunks, 2), columns, precision="highest"
    )

    def far(x, added):
        x = jnp.einsum("dnm,bdm->bdn", jump, x, precision="highest")
        return x + added, None

    last, _ = lax.scan(far, _to_real(state), driven)
    return lax.complex(*jnp.split(last, 2, axis=-1))


def matrix(step: Step) -> jax.Array:
    """Abar on real and imaginary parts, (D, N, N) real."""
    n = step.a.shape[-1]
    basis = jnp.concatenate([jnp.eye(n), 1j * jnp.eye(n)]).astype(step.a.dtype)
    return jnp.moveaxis(_to_real(advance(step, basis[:, None])), 0, -1)


@functools.partial(jax.jit, static_argnames="length")
def truncated(system: System, c: jax.Array, length: int) -> jax.Array:
    """C (I - Abar^length), (D, n) -> (D, n): what `kernel` takes."""
    row = _to_row(c)
    power = jnp.linalg.matrix_power(matrix(bilinear(system)), length)
    row = row - jnp.einsum("dn,dnm->dm", row, power, precision="highest")
    real, imaginary = jnp.split(row / 2, 2, axis=-1)
    return lax.complex(real, -imaginary)


def _to_real(x):
    return jnp.concatenate([jnp.real(x), jnp.imag(x)], axis=-1)


def _to_row(c):
    """What multiplies such an x in C x."""
    return 2 * jnp.concatenate([jnp.real(c), -jnp.imag(c)], axis=-1)


def _powers(matrix, vector, count):
    """M^j v for j < count, a power of two, (D, count, N), and M^count."""
    vectors = vector[:, None]
    while vectors.shape[1] < count:
        more = jnp.einsum("dnm,djm->djn", matrix, vectors, precision="highest")
        vectors = jnp.concatenate([vectors, more], axis=1)
        matrix = jnp.matmul(matrix, matrix, precision="highest")
    return vectors, matrix


def _near(length):
    """About the square root of it, a power of two."""
    return 2 ** math.ceil(math.log2(max(length, 1)) / 2)
