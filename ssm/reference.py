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


def lightning_attention(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    s0: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, Array]:
    """Run `S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t`, `o_t = q_t S_t` step by step.

    Shapes: q, k (B, T, H, K); v (B, T, H, V); log_decay (H,), (B, T, H) or
    (B, T, H, K); s0 (B, H, K, V); reset (B, T). Returns o (B, T, H, V) and s_last
    (B, H, K, V). See `ssm.ops.lightning_attention`.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    decay = _lightning_decay(q, log_decay, reset)
    shape = q.shape[0], q.shape[2], q.shape[3], v.shape[3]
    state = np.zeros(shape) if s0 is None else np.array(s0, np.float64)
    out = np.empty(v.shape)
    for t in range(q.shape[1]):
        state = decay[:, t] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], state)
    return out, state


def _lightning_decay(q: Array, log_decay: Array, reset: Array | None) -> Array:
    """The factor of every entry of the state, (B, T, H, K, 1); 0 at a reset."""
    decay = np.exp(np.asarray(log_decay, np.float64))
    if decay.ndim < 4:
        decay = decay[..., None]
    decay = np.broadcast_to(decay, q.shape)[..., None]
    if reset is None:
        return decay
    return np.where(np.asarray(reset)[:, :, None, None, None], 0.0, decay)


def lightning_attention_vjp(
    d_o: Array,
    d_last: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    s0: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """The cotangents of q, k, v, log_decay and s0, by the chain rule step by step.

    `d_o` (B, T, H, V) and `d_last` (B, H, K, V) are the cotangents of the outputs; each
    result has the shape of its argument.
    """
    q, k, v, d_o = (np.asarray(x, np.float64) for x in (q, k, v, d_o))
    decay = _lightning_decay(q, log_decay, reset)
    shape = q.shape[0], q.shape[2], q.shape[3], v.shape[3]
    states = [np.zeros(shape) if s0 is None else np.array(s0, np.float64)]
    for t in range(q.shape[1]):
        written = k[:, t, :, :, None] * v[:, t, :, None, :]
        states.append(decay[:, t] * states[-1] + written)
    d_q, d_k, d_v, d_decay = (np.zeros(x.shape) for x in (q, k, v, q))
    d_state = np.array(d_last, np.float64)
    for t in reversed(range(q.shape[1])):
        d_q[:, t] = np.einsum("bhv,bhkv->bhk", d_o[:, t], states[t + 1])
        d_state = d_state + q[:, t, :, :, None] * d_o[:, t, :, None, :]
        d_k[:, t] = np.einsum("bhkv,bhv->bhk", d_state, v[:, t])
        d_v[:, t] = np.einsum("bhk,bhkv->bhv", k[:, t], d_state)
        d_decay[:, t] = np.sum(decay[:, t] * d_state * states[t], axis=-1)
        d_state = decay[:, t] * d_state
    rank = np.ndim(log_decay)
    if rank < 4:
        d_decay = d_decay.sum(axis=(0, 1, 3) if rank == 1 else 3)
    return d_q, d_k, d_v, d_decay, d_state


def causal_conv1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    carry: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, Array]:
    """Sum filtered inputs step by step. See `ssm.ops.causal_conv1d`.

    Shapes: x (B, T, D); w (W, D); b (D,); carry (B, W - 1, D); reset (B, T). Returns
    y (B, T, D) and the carry (B, W - 1, D).
    """
    dtype = np.complex128 if np.iscomplexobj(x) else np.float64
    x, w = np.asarray(x, dtype), np.asarray(w, dtype)
    batch, time, width = x.shape
    window = np.zeros((batch, len(w), width), dtype)  # what the filter lies over
    if carry is not None:
        window[:, 1:] = carry
    out = np.empty(x.shape, dtype)
    for t in range(time):
        window = np.concatenate([window[:, 1:], x[:, t : t + 1]], axis=1)
        if reset is not None:
            window[np.asarray(reset)[:, t], :-1] = 0
        out[:, t] = np.sum(w * window, axis=1) + (0 if b is None else b)
    return out, window[:, 1:]


def fft_conv(u: Array, kernel: Array, *, bidirectional: bool = False) -> Array:
    """Sum over the taps of both kernels one by one. See `ssm.ops.fft_conv`.

    Shapes: u (B, T, D); kernel (D, L) or (2, D, L). Returns y (B, T, D).
    """
    dtype = np.complex128 if np.iscomplexobj(u) else np.float64
    u, kernel = np.asarray(u, dtype), np.asarray(kernel, dtype)
    after, before = kernel if bidirectional else (kernel, np.zeros_like(kernel))
    y, time = np.zeros(u.shape, dtype), u.shape[1]
    for j in range(kernel.shape[-1]):
        y[:, j:] += after[:, j] * u[:, : time - j]
        y[:, : time - j - 1] += before[:, j] * u[:, j + 1 :]
    return y


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), to full relative precision on both sides."""
    small = np.exp(-np.abs(z))
    return np.where(z < 0, small, 1.0) / (1.0 + small)


def _rg_lru_gates(
    r: Array, a_param: Array, c: float, reset: Array | None
) -> tuple[Array, Array]:
    """The decay and the root of the normaliser: 0 and 1 at a reset."""
    log_a = -c * np.logaddexp(0.0, a_param) * _sigmoid(r)
    a, root = np.exp(log_a), np.sqrt(-np.expm1(2 * log_a))
    if reset is None:
        return a, root
    reset = np.asarray(reset)[..., None]
    return np.where(reset, 0.0, a), np.where(reset, 1.0, root)


def rg_lru_scan(
    x: Array,
    r: Array,
    i: Array,
    a_param: Array,
    *,
    c: float = 8.0,
    h0: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, Array]:
    """Run the RG-LRU step by step. See `ssm.ops.rg_lru_scan`.

    Shapes: x, r, i (B, T, D); a_param (D,); h0 (B, D); reset (B, T). Returns
    h (B, T, D) and h_last (B, D), float64.
    """
    x, r, i, a_param = (np.asarray(v, np.float64) for v in (x, r, i, a_param))
    a, root = _rg_lru_gates(r, a_param, c, reset)
    return linear_scan(root * _sigmoid(i) * x, a, h0=h0)


def rg_lru_scan_vjp(
    d_h: Array,
    d_last: Array,
    x: Array,
    r: Array,
    i: Array,
    a_param: Array,
    *,
    c: float = 8.0,
    h0: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """The cotangents of x, r, i, a_param and h0, each of the shape of its argument.

    The derivative of the root is clipped at 1000, as the op defines it.
    """
    x, r, i, a_param = (np.asarray(v, np.float64) for v in (x, r, i, a_param))
    a, root = _rg_lru_gates(r, a_param, c, reset)
    g, d_a, dh0 = linear_scan_vjp(d_h, d_last, root * _sigmoid(i) * x, a, h0=h0)
    open_i, rate = _sigmoid(i), -c * np.logaddexp(0.0, a_param)
    d_root = g * open_i * x
    slope = -2 * a**2 * np.minimum(0.5 / np.maximum(root, 1e-300), 1000.0)
    d_log_a = a * d_a + slope * d_root  # both 0 at a reset, where a is
    d_r = d_log_a * rate * _sigmoid(r) * _sigmoid(-r)
    d_rate = np.sum(d_log_a * _sigmoid(r), axis=(0, 1))
    return (
        g * root * open_i,
        d_r,
        g * root * x * open_i * _sigmoid(-i),
        -c * _sigmoid(a_param) * d_rate,
        dh0,
    )


def hgrn_scan(
    x: Array,
    f: Array,
    lower_bound: Array,
    *,
    theta: Array | None = None,
    h0: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Run the recurrence of the HGRN step by step. See `ssm.ops.hgrn_scan`.

    Shapes: x, f (B, T, D); lower_bound, theta (D,); h0 (B, D); reset (B, T). Returns
    h (B, T, D) and h_last (B, D), float64 or complex128.
    """
    drive, a = _hgrn_gates(x, f, lower_bound, theta)
    return linear_scan(drive, a, h0=h0, reset=reset, reverse=reverse)


def _hgrn_gates(
    x: Array, f: Array, lower_bound: Array, theta: Array | None
) -> tuple[Array, Array]:
    """The drives and the decays, complex where theta is given."""
    f, bound = np.asarray(f, np.float64), np.asarray(lower_bound, np.float64)
    a = bound + (1 - bound) * _sigmoid(f)
    drive = (1 - bound) * _sigmoid(-f) * np.asarray(x)
    if theta is None:
        return drive, a
    return drive.astype(np.complex128), a * np.exp(1j * np.asarray(theta, np.float64))


def hgrn_scan_vjp(
    d_h: Array,
    d_last: Array,
    x: Array,
    f: Array,
    lower_bound: Array,
    *,
    theta: Array | None = None,
    h0: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Array, Array, Array]:
    """The cotangents of x, f, lower_bound, theta (0 for None) and h0.

    In jax's convention: no conjugates. That of h0 is complex where h is.
    """
    drive, a = _hgrn_gates(x, f, lower_bound, theta)
    g, d_a, dh0 = linear_scan_vjp(
        d_h, d_last, drive, a, h0=h0, reset=reset, reverse=reverse
    )
    f, bound = np.asarray(f, np.float64), np.asarray(lower_bound, np.float64)
    turn = np.exp(1j * (0.0 if theta is None else np.asarray(theta, np.float64)))
    d_decay, d_scale = np.real(d_a * turn), np.real(g * np.asarray(x))
    rest = _sigmoid(-f)
    d_x = g * (1 - bound) * rest
    return (
        d_x if np.iscomplexobj(x) else np.real(d_x),
        (d_decay - d_scale) * (1 - bound) * _sigmoid(f) * rest,
        np.sum((d_decay - d_scale) * rest, axis=(0, 1)),
        np.sum(np.real(1j * d_a * a), axis=(0, 1)),
        dh0,
    )
