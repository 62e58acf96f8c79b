"""The derivatives of a linear scan, from the two kernels that a device brings.

They are the scan h_t = a_t h_{t-1} + x_t, and its adjoint: one sweep against the
direction of the scan,

    g_t = dh_t + c_t,    c_{t-1} = conj(a_t) g_t,
    dx_t = g_t,          da_t = g_t conj(h_{t-1}),

where c starts as the cotangent of the last state and ends as that of h0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.planes import Planes, decay_gradient, exponential, multiply
from pallas_kernels.vmap import fold_vmap


class Kernels(NamedTuple):
    """The two kernels of a device; both are also told `log`, `reverse` and `tiles`."""

    forward: Callable[..., Any]  # (x, decay, h0, reset) -> h, last
    backward: Callable[..., Any]  # (d_h, d_last, decay, h, h0, reset) -> dx, da, dh0


def linear_scan(
    kernels: Kernels,
    x: Planes,
    decay: Planes,
    h0: Planes,
    reset: jax.Array | None,
    *,
    log: bool,
    reverse: bool,
    tiles: Any,
) -> tuple[Planes, Planes]:
    """The scan by `kernels`, differentiable any number of times.

    The kernels see the logarithm of a decay only where it is real and varies in time.
    """
    constant = decay[0].ndim == 1
    if log and (constant or len(decay) == 2):
        decay, log = exponential(decay), False
    if constant:
        decay = tuple(plane.astype(jnp.float32) for plane in decay)
    return _scan(kernels, x, decay, h0, reset, log, reverse, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6, 7))
def _scan(kernels, x, decay, h0, reset, log, reverse, tiles):
    call = functools.partial(kernels.forward, log=log, reverse=reverse, tiles=tiles)
    return fold_vmap(call, one_by_one=decay[0].ndim == 1)(x, decay, h0, reset)


def _scan_forward(kernels, x, decay, h0, reset, log, reverse, tiles):
    h, last = _scan(kernels, x, decay, h0, reset, log, reverse, tiles)
    return (h, last), (decay, h, h0, reset)


def _scan_backward(kernels, log, reverse, tiles, residuals, cotangents):
    gradients = _adjoint(kernels, *cotangents, *residuals, log, reverse, tiles)
    return *gradients, None


_scan.defvjp(_scan_forward, _scan_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 7, 8, 9))
def _adjoint(kernels, d_h, d_last, decay, h, h0, reset, log, reverse, tiles):
    call = functools.partial(kernels.backward, log=log, reverse=reverse, tiles=tiles)
    mapped = fold_vmap(call, one_by_one=decay[0].ndim == 1)
    return mapped(d_h, d_last, decay, h, h0, reset)


def _adjoint_forward(kernels, d_h, d_last, decay, h, h0, reset, log, reverse, tiles):
    arguments = d_h, d_last, decay, h, h0, reset
    return _adjoint(kernels, *arguments, log, reverse, tiles), arguments


def _adjoint_backward(kernels, log, reverse, tiles, arguments, cotangents):
    *differentiable, reset = arguments

    def composed(d_h, d_last, decay, h, h0):
        arguments = d_h, d_last, decay, h, h0, reset
        return _adjoint_by_scan(kernels, *arguments, log, reverse, tiles)

    return *jax.vjp(composed, *differentiable)[1](cotangents), None


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _adjoint_by_scan(kernels, d_h, d_last, decay, h, h0, reset, log, reverse, tiles):
    """What `_adjoint` computes, from a scan and products: only to be differentiated.

    The sweep g_t = dh_t + conj(a_{t+1}) g_{t+1} is the scan whose decay comes one step
    late, started from d_last with a decay of one.
    """
    first = -1 if reverse else 0

    def wide(planes):
        return tuple(p.astype(jnp.float32) for p in planes)

    def conjugate(planes):
        return planes if len(planes) == 1 else (planes[0], -planes[1])

    def clear(planes):
        if reset is None:
            return planes
        return tuple(jnp.where(reset[..., None], jnp.zeros_like(p), p) for p in planes)

    def shift(rows, planes, by):
        """Moves the planes along time, in scan order, and lets `rows` come in."""
        forwards = (by == 1) != reverse
        pieces = [
            (row[:, None], p[:, :-1]) if forwards else (p[:, 1:], row[:, None])
            for row, p in zip(rows, planes, strict=True)
        ]
        return tuple(jnp.concatenate(pair, axis=1) for pair in pieces)

    a = wide(decay)
    a = tuple(jnp.broadcast_to(jnp.exp(p) if log else p, d_h[0].shape) for p in a)
    a = conjugate(clear(a))
    one = tuple(jnp.full_like(p[:, 0], 1 - i) for i, p in enumerate(a))
    g, _ = _scan(
        kernels,
        wide(d_h),
        shift(one, a, -1),
        d_last,
        None,
        False,
        not reverse,
        tiles,
    )
    dh0 = multiply(tuple(p[:, first] for p in a), tuple(p[:, first] for p in g))
    d_decay = decay_gradient(g, shift(h0, wide(h), 1), len(decay))
    d_decay = multiply(conjugate(a), d_decay) if log else clear(d_decay)
    if decay[0].ndim == 1:
        d_decay = tuple(jnp.sum(p, axis=(0, 1)) for p in d_decay)
    dx = tuple(p.astype(d_h[0].dtype) for p in g)
    return dx, tuple(p.astype(decay[0].dtype) for p in d_decay), dh0
