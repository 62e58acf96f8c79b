"""Arithmetic of complex numbers as planes (re, im), and of real ones as one plane."""

import jax
import jax.numpy as jnp

Planes = tuple[jax.Array, ...]


def exponential(log_a: Planes) -> Planes:
    """The exponential of a number, in float32."""
    modulus, *phase = (plane.astype(jnp.float32) for plane in log_a)
    modulus = jnp.exp(modulus)
    if not phase:
        return (modulus,)
    return modulus * jnp.cos(*phase), modulus * jnp.sin(*phase)


def add(a: Planes, b: Planes) -> Planes:
    """The sum of two numbers."""
    return tuple(p + q for p, q in zip(a, b, strict=True))


def multiply(a: Planes, h: Planes) -> Planes:
    """The product of two numbers; `a` may be real."""
    if len(a) == 1:
        return tuple(a[0] * p for p in h)
    (a_re, a_im), (h_re, h_im) = a, h
    return a_re * h_re - a_im * h_im, a_re * h_im + a_im * h_re


def multiply_conjugate(a: Planes, h: Planes) -> Planes:
    """The product of the conjugate of `a` and `h`."""
    return multiply(a if len(a) == 1 else (a[0], -a[1]), h)


def decay_gradient(g: Planes, previous: Planes, planes: int) -> Planes:
    """`g conj(previous)`, or its real part where the decay has one plane only."""
    real = sum(
        (p * q for p, q in zip(g[1:], previous[1:], strict=True)), g[0] * previous[0]
    )
    if planes == 1:
        return (real,)
    return real, g[1] * previous[0] - g[0] * previous[1]
