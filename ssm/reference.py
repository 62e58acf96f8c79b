"""The slow obvious loop for every op, in NumPy: the ground truth of the tests.

Nothing here is fast, nothing here knows about jax, and everything is computed in
float64 (complex128), whatever comes in.
"""

from typing import TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray


def linear_scan(
    x: Array,
    a: Array | None = None,
    *,
    log_a: Array | None = None,
    h0: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Run `h_t = a_t * h_{t-1} + x_t` step by step. See `ssm.ops.linear_scan`.

    Shapes: x (B, T, D); a or log_a (B, T, D) or (D,); h0 (B, D); reset (B, T).
    Returns h (B, T, D) and h_last (B, D), float64 or complex128.
    """
    dtype = np.complex128 if np.iscomplexobj(x) else np.float64
    x = np.asarray(x, dtype)
    batch, time, width = x.shape
    if a is None:
        a = np.exp(np.asarray(log_a, np.result_type(np.asarray(log_a), np.float64)))
    a = np.broadcast_to(a, x.shape)
    h = np.zeros((batch, width), dtype) if h0 is None else np.array(h0, dtype)
    out = np.empty(x.shape, dtype)
    for t in reversed(range(time)) if reverse else range(time):
        if reset is not None:
            h = np.where(np.asarray(reset)[:, t, None], 0, h)
        h = a[:, t] * h + x[:, t]
        out[:, t] = h
    return out, h


def linear_scan_vjp(
    d_h: Array,
    d_last: Array,
    x: Array,
    a: Array | None = None,
    *,
    log_a: Array | None = None,
    h0: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Array]:
    """The cotangents of x, of the decay and of h0, by the chain rule step by step.

    `d_h` (B, T, D) and `d_last` (B, D) are the cotangents of the outputs, in jax's
    convention: no conjugates. Returns dx (B, T, D), the cotangent of `a` or `log_a` in
    its own shape, and dh0 (B, D).
    """
    h, _ = linear_scan(x, a, log_a=log_a, h0=h0, reset=reset, reverse=reverse)
    batch, time, width = h.shape
    given = np.asarray(log_a if a is None else a)
    decay = np.exp(given.astype(h.dtype)) if a is None else given.astype(h.dtype)
    decay = np.broadcast_to(decay, h.shape)
    start = np.zeros((batch, width), h.dtype) if h0 is None else np.asarray(h0, h.dtype)
    order = list(reversed(range(time)) if reverse else range(time))
    d_x, d_decay = np.zeros(h.shape, h.dtype), np.zeros(h.shape, h.dtype)
    g = np.array(d_last, h.dtype)
    for place in reversed(range(time)):
        t = order[place]
        previous = h[:, order[place - 1]] if place else start
        keep = 1.0 if reset is None else 1.0 - np.asarray(reset)[:, t, None]
        g = g + d_h[:, t]
        d_x[:, t] = g
        d_decay[:, t] = g * keep * previous * (decay[:, t] if a is None else 1.0)
        g = g * keep * decay[:, t]
    if given.ndim == 1:
        d_decay = d_decay.sum((0, 1))
    return d_x, d_decay if np.iscomplexobj(given) else d_decay.real, g
