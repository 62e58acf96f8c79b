"""The diagonal linear recurrence on TPU: one kernel forward, one backward.

    h_t = a_t * h_{t-1} + x_t            (elementwise)

A block is a piece (chains, steps, width) of the arrays (B, T, D) as they are: no
transpose, no padding. Blocks follow one another along time, the state waits in VMEM. A
loop reads one time step of one sequence as a row, which fills a register when it is
1024 channels wide, and keeps several sequences in flight, for one alone waits on its
own additions. Below 512 channels a row would leave most of the register empty: there
the time steps of a tile are scanned in log2 of their number ("log-steps").

The backward pass is one sweep against the direction of the scan,

    g_t = dh_t + c_t,    dx_t = g_t,    c_{t-1} = conj(a_t) g_t,

where c ends as dh0. The gradient of the decay is written one step late, when h_{t-1} is
loaded anyway: d log a_t = c_{t-1} h_{t-1} and da_t = g_t conj(h_{t-1}).

Complex numbers are planes (re, im): every "planes" below is a tuple of one or of two
arrays of one shape, and gradients are those of the planes.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import scan_tiles_tpu, scan_vjp
from pallas_kernels.planes import Planes
from pallas_kernels.scan_log_steps_tpu import (
    backward_by_log_steps,
    forward_by_log_steps,
)
from pallas_kernels.scan_rows_tpu import backward_by_rows, forward_by_rows
from pallas_kernels.scan_tiles_tpu import (
    Tiles,
    call,
    choose_tiles,
    cut_arrays,
    decay_input,
    keep_input,
    shaped,
    state_input,
)

__all__ = ["Tiles", "choose_tiles", "linear_scan", "refuse"]


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
    return scan_tiles_tpu.refuse({"x": x, "the decay": decay})


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
    """Runs h_t = a_t h_{t-1} + x_t over time, on the TPU.

    Args:
      x: planes (B, T, D), float32 or bfloat16, T >= 1. Of a program's own arguments
        XLA changes the layout first where T is no multiple of 8.
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
    planes = [x, x] if decay[0].ndim == 1 else [x, x, decay]
    cut = cut_arrays(planes, backwards=reverse, tiles=tiles)
    plane, state = (cut.plane(),) * len(x), (cut.state(),) * len(x)
    shape = (cut.batch, 1, cut.width)
    kernel = forward_by_rows if cut.tiles.by_rows else forward_by_log_steps
    h, last = call(
        functools.partial(kernel, log),
        "linear_scan_forward",
        cut,
        [
            keep_input(reset, cut),
            decay_input(decay, cut),
            (x, plane),
            state_input(h0, cut),
        ],
        [(shaped(x), plane), (shaped(x, shape, jnp.float32), state)],
        [
            tuple(cut.carried() for _ in x),
            cut.stages(decay),
            cut.stages(x),
            cut.stages(x),
        ],
        log,
    )
    return h, tuple(p[:, 0] for p in last)


def _backward(d_h, d_last, decay, h, h0, reset, *, log, reverse, tiles):
    constant = decay[0].ndim == 1
    planes = [d_h, d_h, h] if constant else [d_h, d_h, h, decay, decay]
    cut = cut_arrays(planes, backwards=not reverse, tiles=tiles)
    plane, state = (cut.plane(),) * len(h), (cut.state(),) * len(h)
    shape = (cut.batch, 1, cut.width)
    if constant:
        total = (cut.grid[0], 1, cut.width)
        d_decay_output = shaped(decay, total), (cut.total(),) * len(decay)
    else:
        d_decay_output = shaped(decay), (cut.plane(),) * len(decay)
    kernel = backward_by_rows if cut.tiles.by_rows else backward_by_log_steps
    edges = (h, (cut.edge(),) * len(h)) if cut.blocks > 1 else ((), ())
    dx, d_decay, dh0 = call(
        functools.partial(kernel, log),
        "linear_scan_backward",
        cut,
        [
            keep_input(reset, cut),
            decay_input(decay, cut),
            (d_h, plane),
            (h, plane),
            edges,
            state_input(h0, cut),
            state_input(d_last, cut),
        ],
        [(shaped(d_h), plane), d_decay_output, (shaped(h0, shape), state)],
        [
            tuple(cut.carried() for _ in h),
            cut.stages(decay),
            cut.stages(d_h),
            cut.stages(h),
            cut.stages(d_h),
            cut.stages(decay),
        ],
        log,
    )
    if constant:
        d_decay = tuple(jnp.sum(p, axis=(0, 1)) for p in d_decay)
    return dx, d_decay, tuple(p[:, 0] for p in dh0)


KERNELS = scan_vjp.Kernels(_forward, _backward)
