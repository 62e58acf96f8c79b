"""The diagonal linear recurrence on GPU, Hopper or newer: one kernel each way.

    h_t = a_t * h_{t-1} + x_t            (elementwise)

The backward pass is one sweep against the direction of the scan,

    g_t = dh_t + c_t,    dx_t = g_t,    c_{t-1} = conj(a_t) g_t,

where c ends as dh0. On the way it gives the gradients of the decay, that is
da_t = g_t conj(h_{t-1}) and d log a_t = c_{t-1} h_{t-1}; for a decay that is constant
in time they are summed up in registers.

Complex numbers are planes (re, im): every "planes" below is a tuple of one or of two
arrays of one shape, and gradients are those of the planes.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import ring_gpu, scan_vjp
from pallas_kernels.planes import (
    Planes,
    add,
    decay_gradient,
    multiply,
    multiply_conjugate,
)
from pallas_kernels.ring_gpu import (
    Tiles,
    clear,
    cut_arrays,
    fold_segments,
    identity,
    sweep,
)

__all__ = ["Tiles", "linear_scan", "refuse"]


def refuse(
    x: Planes,
    decay: Planes,
    h0: Planes,
    reset: jax.Array | None,
    *,
    log: bool,
    reverse: bool,
) -> str | None:
    """Returns why `linear_scan` cannot run here on these arguments, or None."""
    del h0, reset, log, reverse
    return ring_gpu.refuse({"x": x, "the decay": decay})


def linear_scan(
    x: Planes,
    decay: Planes,
    h0: Planes,
    reset: jax.Array | None = None,
    *,
    log: bool = False,
    reverse: bool = False,
    tiles: Tiles | None = None,
) -> tuple[Planes, Planes]:
    """Runs h_t = a_t h_{t-1} + x_t over time, on the GPU.

    Args:
      x: planes (B, T, D), float32 or bfloat16, T >= 1. Rows of a length that is no
        multiple of 16 bytes are padded first, which the copy engine asks for.
      decay: planes of a, or of log a where `log`: (B, T, D) or (D,), float32 or
        bfloat16. One plane may go with two of x.
      h0: planes (B, D) float32, as many as x has.
      reset: (B, T) bool; True clears the state before x_t is added.
      log: whether `decay` is the logarithm.
      reverse: scan from the last step to the first.
      tiles: how to cut the arrays, instead of the choice for this device.

    Inside a `shard_map` that checks it, all arrays must vary over the same mesh axes.

    Returns:
      h, planes (B, T, D) in the dtype of x, and the last state, planes (B, D) float32.
      Differentiable in x, decay and h0, in reverse mode, any number of times.
    """
    return scan_vjp.linear_scan(
        KERNELS, x, decay, h0, reset, log=log, reverse=reverse, tiles=tiles
    )


def _forward(x, decay, h0, reset, *, log, reverse, tiles):
    constant = decay[0].ndim == 1
    constants, varying = (decay, ()) if constant else ((), decay)
    planes = (*varying, *x)
    cut = cut_arrays(planes, x, backwards=reverse, tiles=tiles)
    summaries: Planes = ()
    if cut.segments > 1:
        _, summaries = sweep(
            functools.partial(_summary_row, log, len(decay)),
            "linear_scan_forward_summary",
            cut,
            constants=constants,
            carry=identity(len(decay), h0),
            planes=planes,
            reset=reset,
            outputs=(),
        )
    h, ends = sweep(
        functools.partial(_forward_row, log),
        "linear_scan_forward",
        cut,
        constants=constants,
        carry=h0,
        planes=planes,
        reset=reset,
        outputs=x,
        summaries=summaries,
        fold=functools.partial(fold_segments, len(decay)),
    )
    return h, tuple(p[:, -1] for p in ends)


def _backward(d_h, d_last, decay, h, h0, reset, *, log, reverse, tiles):
    constant = decay[0].ndim == 1
    constants, varying = (decay, ()) if constant else ((), decay)
    planes = (*varying, *d_h)
    outputs = (*varying, *d_h)
    cut = cut_arrays((*planes, *h), outputs, backwards=not reverse, tiles=tiles)
    summaries: Planes = ()
    if cut.segments > 1:
        _, summaries = sweep(
            functools.partial(_adjoint_summary_row, log, len(decay)),
            "linear_scan_backward_summary",
            cut,
            constants=constants,
            carry=identity(len(decay), h0),
            planes=planes,
            reset=reset,
            outputs=(),
        )
    totals = tuple(jnp.zeros_like(h0[0]) for _ in decay) if constant else ()
    written, ends = sweep(
        functools.partial(_backward_row, log, len(decay), len(h)),
        "linear_scan_backward",
        cut,
        constants=constants,
        carry=(*d_last, *totals),
        planes=planes,
        previous=h,
        first=h0,
        reset=reset,
        outputs=outputs,
        summaries=summaries,
        fold=functools.partial(fold_segments, len(decay)),
    )
    d_decay, dx = written[: len(varying)], written[len(varying) :]
    if constant:
        d_decay = tuple(jnp.sum(p, axis=(0, 1)) for p in ends[len(h) :])
    return dx, d_decay, tuple(p[:, -1] for p in ends[: len(h)])


def _split(constants, values, log, count):
    """The decay of a row, and its other values."""
    if constants:
        return constants, values
    decay, others = values[:count], values[count:]
    return (tuple(map(jnp.exp, decay)) if log else decay), others


def _forward_row(log, constants, h, values, previous, reset):
    a, x = _split(constants, values, log, len(values) - len(h))
    h = add(multiply(a, clear(reset, h)), x)
    return h, h


def _backward_row(log, decays, states, constants, carry, values, previous, reset):
    a, d_h = _split(constants, values, log, decays)
    c, totals = carry[:states], carry[states:]
    g = add(d_h, c)
    kept = clear(reset, g)
    c = multiply_conjugate(a, kept)
    gradient = decay_gradient(c if log else kept, previous, decays)
    if constants:
        return (*c, *add(totals, gradient)), g
    return c, (*gradient, *g)


def _summary_row(log, decays, constants, carry, values, previous, reset):
    a, x = _split(constants, values, log, decays)
    carry = clear(reset, carry)
    product, state = carry[:decays], carry[decays:]
    return (*multiply(a, product), *add(multiply(a, state), x)), ()


def _adjoint_summary_row(log, decays, constants, carry, values, previous, reset):
    a, d_h = _split(constants, values, log, decays)
    product, state = carry[:decays], carry[decays:]
    product = multiply_conjugate(a, clear(reset, product))
    return (*product, *multiply_conjugate(a, clear(reset, add(state, d_h)))), ()


KERNELS = scan_vjp.Kernels(_forward, _backward)
