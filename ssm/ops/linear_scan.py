"""The diagonal linear recurrence, the engine under every recurrent layer."""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp

from ssm.ops.checks import (
    accumulation_dtype,
    check_inexact,
    check_reset,
    check_shape,
    is_complex,
)
from ssm.ops.dispatch import SCAN_PREFERENCE, Implementation, choose
from ssm.ops.planes import from_planes, to_planes
from ssm.ops.scan_loop import effective_decay, multiply, scan_loop
from ssm.ops.scan_xla import scan_associative, scan_sequential
from ssm.ops.sharding import spread, vary_alike


def _kernel(module):
    """The implementation by `pallas_kernels.<module>`."""

    def kernel():  # importing Pallas costs half a second: at first use
        return importlib.import_module(f"pallas_kernels.{module}")

    def run(x, decay, h0, reset, **options):
        arguments = *map(to_planes, (x, decay, h0)), reset
        h, last = kernel().linear_scan(*arguments, **options)
        return from_planes(h), from_planes(last)

    def refuse(x, decay, h0, reset, **options):
        arguments = *map(to_planes, (x, decay, h0)), reset
        return kernel().refuse(*arguments, **options)

    return Implementation(run, refuse)


_TABLE = {
    "loop": Implementation(scan_loop),
    "scan": Implementation(scan_sequential),
    "associative": Implementation(scan_associative),
    "pallas_tpu": _kernel("linear_scan_tpu"),
    "mosaic_gpu": _kernel("linear_scan_gpu"),
}


def linear_scan(
    x: jax.Array,
    a: jax.Array | None = None,
    *,
    log_a: jax.Array | None = None,
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
    reverse: bool = False,
    time_axis: str | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs a diagonal linear recurrence over time.

        h_t = a_t * h_{t-1} + x_t            (elementwise)

    Args:
      x: (B, T, D), real or complex floating. T may be 0.
      a: the decay, (B, T, D) or (D,) if it does not change with time; may be real
        when x is complex. Exactly one of `a` and `log_a` is given.
      log_a: its natural logarithm, same shapes. The way to hold a decay in bfloat16:
        rounding `a` itself changes the result by 15 %, rounding `log_a` by 0.02 %.
      h0: (B, D), the state before the first step; None is zero.
      reset: (B, T) bool. True clears the state before x_t is added: x_t starts anew.
      reverse: scan from the last time step to the first; "before" and "last" then
        follow the direction of the scan.
      time_axis: inside a `shard_map`, the mesh axis over which the caller has sharded
        time; the parts then exchange their states.
      implementation: "loop", "scan", "associative", "pallas_tpu", "mosaic_gpu", or None
        for the fastest that can run here. All give the same answer.

    Returns:
      h (B, T, D) in the dtype of x, and h_last (B, D), the state after the last step in
      scan order, in the dtype of the accumulation: float32 or complex64, float64 or
      complex128 if x is.

    Differentiable in x, a, log_a and h0: in reverse mode any number of times, in
    forward mode with "scan" and "associative". The backward pass keeps inputs and h.
    Under an ambient mesh B is sharded over `data` and `fsdp`, D over `tensor` and T
    over `time` (`ops.axis_names`); forward mode ends where time is sharded.

    Raises:
      ValueError: an argument has a wrong shape or dtype, both or neither of `a` and
        `log_a` are given, x is real while another array is complex, or the mesh does
        not divide T or D.
      NotImplementedError: a named implementation cannot run here.

    Source: the common form of LRU (2303.06349), RG-LRU (2402.19427), HGRN (2311.04823)
    and S5 (2208.04933).
    """
    x, decay, h0, reset = _check(x, a, log_a, h0, reset)
    log = a is None
    if x.shape[1] == 0:
        return x, h0
    if x.shape[1] == 1 and time_axis is None:  # a decoding step: no loop
        step_reset = None if reset is None else reset[:, 0]
        step_decay = decay[None] if decay.ndim == 1 else decay[:, 0]
        a_0 = effective_decay(step_decay, step_reset, h0, log=log)
        h = multiply(a_0, h0) + x[:, 0].astype(h0.dtype)
        return h[:, None].astype(x.dtype), h
    options = {"log": log, "reverse": bool(reverse)}

    def local(inputs, h0):
        x, decay, reset, h0 = vary_alike((*inputs, h0))
        arguments = (x, decay, h0, reset)
        run = choose(
            "linear_scan",
            implementation,
            _TABLE,
            SCAN_PREFERENCE,
            *arguments,
            **options,
        )
        return run(*arguments, **options)

    return spread(
        "linear_scan",
        local,
        (x, decay, reset),
        h0,
        axes=("btd", "d" if decay.ndim == 1 else "btd", "bt"),
        state_axes="bd",
        out_axes="btd",
        decay_product=functools.partial(_decay_product, log=log),
        reverse=reverse,
        time_axis=time_axis,
    )


def _decay_product(inputs, *, log):
    """The product of the decays over time, (B, D)."""
    x, decay, _ = inputs
    dtype = accumulation_dtype(decay.dtype)
    decay = decay.astype(dtype)
    if decay.ndim == 1:
        time = x.shape[1]
        product = jnp.exp(time * decay) if log else decay**time
        return jnp.broadcast_to(product[None], (x.shape[0], x.shape[2]))
    return jnp.exp(decay.sum(1)) if log else decay.prod(1)


def _check(x, a, log_a, h0, reset):
    """The arguments as arrays, with `h0` filled in and in the accumulation dtype."""
    x = jnp.asarray(x)
    check_inexact("x", x)
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}, wanted three axes = (B, T, D)")
    batch, time, width = x.shape

    if (a is None) == (log_a is None):
        got = "neither" if a is None else "both"
        raise ValueError(f"a and log_a: got {got}, wanted exactly one of them")
    name, decay = ("log_a", jnp.asarray(log_a)) if a is None else ("a", jnp.asarray(a))
    check_inexact(name, decay)
    check_shape(name, decay, x.shape, (width,), meaning="(B, T, D) or (D,)")
    if name == "a" and decay.dtype in (jnp.bfloat16, jnp.float16):
        warnings.warn(
            f"linear_scan: a decay `a` in {decay.dtype} is rounded too coarsely for a "
            "recurrence; pass `log_a`, which may be, or `a` in float32",
            stacklevel=3,
        )

    dtype = accumulation_dtype(x.dtype)
    if h0 is None:
        h0 = jnp.zeros((batch, width), dtype)
    h0 = jnp.asarray(h0)
    check_inexact("h0", h0)
    check_shape("h0", h0, (batch, width), meaning="(B, D)")
    for other, array in ((name, decay), ("h0", h0)):
        if is_complex(array) and not is_complex(x):
            raise ValueError(
                f"{other} is {array.dtype} while x is {x.dtype}: wanted both real, "
                "or x made complex first"
            )
    if reset is not None:
        reset = jnp.asarray(reset)
        check_reset(reset, batch, time)
    return x, decay, h0.astype(dtype), reset
