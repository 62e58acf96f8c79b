"""The recurrence of the HGRN, with its forget gate."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssm.ops.checks import (
    accumulation_dtype,
    check_inexact,
    check_real,
    check_reset,
    check_shape,
    is_complex,
)
from ssm.ops.dispatch import SCAN_PREFERENCE, Implementation, choose
from ssm.ops.gated_scan import gated_associative, gated_loop, gated_sequential, make
from ssm.ops.planes import from_planes, to_planes
from ssm.ops.scan_loop import multiply
from ssm.ops.sharding import spread, vary_alike


def _gates(inputs, parameters, reset):
    (f, x), (bound, *rotation) = inputs, parameters
    decay, complement = _decay_and_complement(bound, f)
    if reset is not None:
        decay = jnp.where(reset, jnp.zeros_like(decay, shape=()), decay)
    drive = multiply(complement, x)
    return (multiply(decay, *rotation) if rotation else decay), drive


@jax.custom_jvp
def _decay_and_complement(bound, f):
    """Returns bound + (1 - bound) sigmoid(f), and 1 minus it without cancellation."""
    gate, rest = _sigmoids(f)
    return bound + (1 - bound) * gate, (1 - bound) * rest


@_decay_and_complement.defjvp
def _(primals, tangents):
    bound, f = primals
    d_bound, d_f = tangents
    gate, rest = _sigmoids(f)
    d_decay = rest * (d_bound + (1 - bound) * gate * d_f)
    return _decay_and_complement(bound, f), (d_decay, -d_decay)


def _sigmoids(f):
    """Returns sigmoid(f) and sigmoid(-f), of one exponential, which cannot overflow."""
    power = jnp.exp(-jnp.abs(f))
    large = 1 / (1 + power)
    small = power * large
    return jnp.where(f >= 0, large, small), jnp.where(f >= 0, small, large)


def _parameters(bound, theta):
    if theta is None:
        return (bound,)
    return bound, lax.complex(jnp.cos(theta), jnp.sin(theta))


def _xla(scan):
    def run(x, f, bound, theta, h0, reset, *, reverse):
        inputs = f, (x if theta is None else x.astype(h0.dtype))
        parameters = _parameters(bound, theta)
        return scan(_gates, inputs, parameters, h0, reset, reverse=reverse)

    return Implementation(run)


def _kernel(module):
    """The implementation by the kernels of `pallas_kernels.<module>`."""

    def kernels():  # importing Pallas costs half a second: at first use
        return importlib.import_module(f"pallas_kernels.{module}").KERNELS

    def run(x, f, bound, theta, h0, reset, *, reverse):
        from pallas_kernels import hgrn

        arguments = to_planes(x), f, bound, theta, to_planes(h0), reset
        h, last = hgrn.hgrn_scan(kernels(), *arguments, reverse=reverse)
        return from_planes(h), from_planes(last)

    def refuse(x, f, bound, theta, h0, reset, *, reverse):
        from pallas_kernels import hgrn

        return hgrn.refuse(kernels(), to_planes(x), f)

    return Implementation(run, refuse)


_TABLE = {
    "loop": _xla(gated_loop),
    "scan": _xla(gated_sequential),
    "associative": _xla(gated_associative),
    "pallas_tpu": _kernel("gated_scan_tpu"),
    "mosaic_gpu": _kernel("gated_scan_gpu"),
}


def hgrn_scan(
    x: jax.Array,
    f: jax.Array,
    lower_bound: jax.Array,
    *,
    theta: jax.Array | None = None,
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
    reverse: bool = False,
    time_axis: str | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the recurrence of the HGRN over time, forget gate included.

        l_t = lower_bound + (1 - lower_bound) sigmoid(f_t)
        h_t = l_t exp(1j theta) * h_{t-1} + (1 - l_t) * x_t             (elementwise)

    Args:
      x: (B, T, D), real or complex floating. T may be 0.
      f: (B, T, D), the forget gate before its sigmoid, real.
      lower_bound: (D,), the least decay, below 1.
      theta: (D,), what the state turns by in a step, in radians; None for no turn. With
        it h is complex, whatever x is.
      h0: (B, D), the state before the first step; None is zero. Complex only where h
        is.
      reset: (B, T) bool. True clears the state before x_t is added: x_t starts anew.
      reverse: scan from the last time step to the first; "before" and "last" then
        follow the direction of the scan.
      time_axis: inside a `shard_map`, the mesh axis over which time is sharded. Outside
        of one leave it None: the op takes the mesh axes data, fsdp, tensor and time of
        an ambient mesh by itself.
      implementation: "loop", "scan", "associative", "pallas_tpu", "mosaic_gpu", or None
        for the fastest that can run here. All give the same answer; with a bfloat16 f
        "pallas_tpu" computes the sigmoid to 1e-7 absolute, not relative.

    Returns:
      h (B, T, D) and h_last (B, D), the state after the last step in scan order.
      Without theta h has the dtype of x, and h_last that of the accumulation: float32
      or complex64, float64 or complex128 if x is. With theta both are complex64, or
      complex128 if x is float64 or complex128.

    Differentiable in x, f, lower_bound, theta and h0: in reverse mode any number of
    times, in forward mode with "scan" and "associative". The backward pass keeps inputs
    and h and makes the gate again.

    Raises:
      ValueError: an argument has a wrong shape or dtype, h0 is complex while h is real,
        or a mesh does not divide the arrays.
      NotImplementedError: a named implementation cannot run here.

    Source: Qin et al. 2023, HGRN (2311.04823), section 3.2.
    """
    x, f, bound, theta, h0, reset = _check(x, f, lower_bound, theta, h0, reset)
    out_dtype = x.dtype if theta is None else h0.dtype
    if x.shape[1] == 0:
        return x.astype(out_dtype), h0
    if x.shape[1] == 1 and time_axis is None:  # a decoding step: no loop
        row = None if reset is None else reset[:, 0]
        inputs = f[:, 0], x[:, 0]
        decay, drive = make(_gates, inputs, _parameters(bound, theta), row, h0.dtype)
        h = multiply(decay, h0) + drive.astype(h0.dtype)
        return h[:, None].astype(out_dtype), h
    options = {"reverse": bool(reverse)}

    def local(inputs, h0):
        x, f, bound, theta, reset, h0 = vary_alike((*inputs, h0))
        arguments = x, f, bound, theta, h0, reset
        run = choose(
            "hgrn_scan", implementation, _TABLE, SCAN_PREFERENCE, *arguments, **options
        )
        return run(*arguments, **options)

    return spread(
        "hgrn_scan",
        local,
        (x, f, bound, theta, reset),
        h0,
        axes=("btd", "btd", "d", "d", "bt"),
        state_axes="bd",
        out_axes="btd",
        decay_product=functools.partial(_decay_product, dtype=h0.dtype),
        reverse=reverse,
        time_axis=time_axis,
    )


def _decay_product(inputs, *, dtype):
    """The product of the decays over time, (B, D)."""
    _, f, bound, theta, _ = inputs
    bound = bound[None, None]
    sigmoid = jax.nn.sigmoid(f.astype(bound.dtype))
    product = jnp.prod(bound + (1 - bound) * sigmoid, axis=1)
    if theta is None:
        return product.astype(dtype)
    angle = f.shape[1] * theta
    return multiply(product, lax.complex(jnp.cos(angle), jnp.sin(angle))[None])


def _check(x, f, lower_bound, theta, h0, reset):
    """The arguments as arrays, parameters and `h0` in the accumulation dtype."""
    x, f, bound = map(jnp.asarray, (x, f, lower_bound))
    check_inexact("x", x)
    check_real("f", f)
    check_real("lower_bound", bound)
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}, wanted three axes = (B, T, D)")
    batch, time, width = x.shape
    check_shape("f", f, x.shape, meaning="(B, T, D)")
    check_shape("lower_bound", bound, (width,), meaning="(D,)")
    dtype = accumulation_dtype(x.dtype)
    real = jnp.finfo(dtype).dtype
    if theta is not None:
        theta = jnp.asarray(theta)
        check_real("theta", theta)
        check_shape("theta", theta, (width,), meaning="(D,)")
        theta = theta.astype(real)
        dtype = np.result_type(dtype, np.complex64)
    if h0 is None:
        h0 = jnp.zeros((batch, width), dtype)
    h0 = jnp.asarray(h0)
    check_inexact("h0", h0)
    check_shape("h0", h0, (batch, width), meaning="(B, D)")
    if is_complex(h0) and not np.issubdtype(dtype, np.complexfloating):
        raise ValueError(
            f"h0 is {h0.dtype} while x is {x.dtype} and there is no theta: wanted both "
            "real, or x made complex first"
        )
    if reset is not None:
        reset = jnp.asarray(reset)
        check_reset(reset, batch, time)
    return x, f, bound.astype(real), theta, h0.astype(dtype), reset
