"""The scan as an in-place loop over time: the fastest form on CPU.

The loop overwrites its input buffer step by step, so the forward pass holds one array
of the size of `h` and the backward pass holds the decay, `h` and the cotangent, which
becomes dx in place. What makes that possible is that the adjoint of a scan is a scan:

    early sweep   h_t = a_t c + x_t,   c <- h_t         (decay, then add: the op)
    late sweep    g_t = c + x_t,       c <- a_t g_t     (add, then decay: its adjoint)

Each is the adjoint of the other in the opposite direction of time, with initial and
final state exchanged, and in both the gradient of the decay is the late output times
the early output of the step before. The backward rule is therefore written with the
op itself, which makes it differentiable as often as one likes.

Two forms that look equivalent are not: writing dx and da in one loop, or re and im as
two arrays that read each other, makes XLA:CPU copy whole buffers at every step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssm.ops.checks import is_complex


def multiply(a: jax.Array, h: jax.Array) -> jax.Array:
    """Return `a * h`; a real `a` times a complex `h` costs two products."""
    if is_complex(h) and not is_complex(a):
        return lax.complex(a * jnp.real(h), a * jnp.imag(h))
    return a * h


def widen(decay: jax.Array, state: jax.Array) -> jax.Array:
    """A decay, or its logarithm, in the precision of the state; real stays real."""
    real = jnp.finfo(state.dtype).dtype
    return decay.astype(state.dtype if is_complex(decay) else real)


def effective_decay(
    decay: jax.Array, reset: jax.Array | None, state: jax.Array, *, log: bool
) -> jax.Array:
    """What multiplies the state: `exp` of a logarithm, and 0 where `reset` is True.

    `decay` (..., D) and `reset` (...,) or None are one step or the whole sequence.
    """
    a = widen(decay, state)
    a = jnp.exp(a) if log else a
    if reset is None:
        return a
    reset = reset[..., None]
    return jnp.where(reset, jnp.zeros_like(a, shape=()), a)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _sweep(
    x: jax.Array,
    decay: jax.Array,
    state: jax.Array,
    reset: jax.Array | None,
    log: bool,
    reverse: bool,
    late: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return the outputs (B, T, D) of an early or late sweep and its final state."""
    time = x.shape[1]
    constant = decay.ndim == 1
    if constant:
        decay = effective_decay(decay, None, state, log=log)[None]  # (1, D)

    def index(step):
        return time - 1 - step if reverse else step

    def at(array, step):
        return lax.dynamic_index_in_dim(array, index(step), axis=1, keepdims=False)

    def decay_at(step):
        return effective_decay(
            decay if constant else at(decay, step),
            None if reset is None else at(reset, step),
            state,
            log=log and not constant,
        )

    def write(out, y, step):
        y = y.astype(out.dtype)
        return lax.dynamic_update_index_in_dim(out, y, index(step), axis=1)

    def body(step, loop):
        y, out = loop
        a = decay_at(step - 1 if late else step)
        y = multiply(a, y) + at(out, step).astype(y.dtype)
        return y, write(out, y, step)

    if not late:
        state, out = lax.fori_loop(0, time, body, (state, x))
        return out, state
    y = state + at(x, 0).astype(state.dtype)
    y, out = lax.fori_loop(1, time, body, (y, write(x, y, 0)))
    return out, multiply(decay_at(time - 1), y)


def _sweep_forward(x, decay, state, reset, log, reverse, late):
    out, last = _sweep(x, decay, state, reset, log, reverse, late)
    return (out, last), (decay, state, reset, out)


def _sweep_backward(log, reverse, late, residuals, cotangents):
    decay, state, reset, out = residuals
    d_out, d_last = cotangents
    dx, d_state = _sweep(d_out, decay, d_last, reset, log, not reverse, not late)
    if late:
        early, late_out = _Early(dx, d_last, backwards=not reverse), out
    else:
        early, late_out = _Early(out, state, backwards=reverse), dx
    gradient = _summed_gradient if decay.ndim == 1 else _decay_gradient
    d_decay = gradient(late_out, early, decay, reset, log)
    return dx, d_decay.astype(decay.dtype), d_state, None


class _Early(NamedTuple):
    """The outputs (B, T, D) of an early sweep and the state (B, D) it started from."""

    out: jax.Array
    first: jax.Array
    backwards: bool


def _gradient_at(late, previous, decay, reset, dtype, log):
    """`da = late * previous`, or that of log a, at given steps and in `dtype`."""
    gradient = late.astype(dtype) * previous.astype(dtype)
    gradient = gradient if is_complex(decay) else jnp.real(gradient)
    if log:
        return gradient * effective_decay(
            decay, reset, previous.astype(dtype), log=True
        )
    if reset is None:
        return gradient
    return jnp.where(reset[..., None], jnp.zeros_like(gradient, shape=()), gradient)


def _decay_gradient(late, early, decay, reset, log):
    """`da_t = late_t * early_{t-1}`; t - 1 is the step before t in early's order."""
    time, dtype = late.shape[1], early.first.dtype
    shift = 0 if early.backwards else 1  # of the steps that have one before them
    start = time - 1 if early.backwards else 0  # the step that has none

    def steps(array, begin, count):
        if array is None:
            return None
        return lax.slice_in_dim(array, begin, begin + count, axis=1)

    def gradient(begin, count, previous):
        late_, decay_, reset_ = (steps(v, begin, count) for v in (late, decay, reset))
        return _gradient_at(late_, previous, decay_, reset_, dtype, log)

    inner = gradient(shift, time - 1, steps(early.out, 1 - shift, time - 1))
    first = gradient(start, 1, early.first[:, None])
    # Pad and overwrite: a concatenation here is twice as slow on CPU.
    zero = jnp.zeros((), inner.dtype)
    padded = lax.pad(inner, zero, [(0, 0, 0), (shift, 1 - shift, 0), (0, 0, 0)])
    return lax.dynamic_update_slice_in_dim(padded, first, start, axis=1)


def _summed_gradient(late, early, decay, reset, log):
    """`da = sum of late_t * early_{t-1}` over batch and time: of a decay (D,).

    A loop that keeps one (B, D) sum: XLA:CPU's own reduction is five times slower.
    """
    time, dtype = late.shape[1], early.first.dtype
    shift = 0 if early.backwards else 1

    def at(array, t):
        if array is None:
            return None
        return lax.dynamic_index_in_dim(array, t, axis=1, keepdims=False)

    def gradient(t, previous):
        return _gradient_at(
            at(late, t), previous, decay[None], at(reset, t), dtype, log
        )

    def body(step, total):
        return total + gradient(step + shift, at(early.out, step + 1 - shift))

    total = gradient(time - 1 if early.backwards else 0, early.first)
    return jnp.sum(lax.fori_loop(0, time - 1, body, total), axis=0)


_sweep.defvjp(_sweep_forward, _sweep_backward)


def scan_loop(
    x: jax.Array,
    decay: jax.Array,
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    log: bool,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """`ssm.ops.linear_scan` for checked arguments, T >= 1; `decay` is a or log_a."""
    return _sweep(x, decay, h0, reset, log, reverse, False)
