"""The recurrence of the RG-LRU, with its gates: the core of Hawk and Griffin."""

import functools
import importlib

import jax
import jax.numpy as jnp

from ssm.ops.checks import (
    accumulation_dtype,
    check_real,
    check_reset,
    check_shape,
)
from ssm.ops.dispatch import SCAN_PREFERENCE, Implementation, choose
from ssm.ops.gated_scan import gated_associative, gated_loop, gated_sequential, make
from ssm.ops.sharding import spread, vary_alike


def _gates(inputs, parameters, reset):
    (r, i, x), (rate,) = inputs, parameters
    a, normaliser = _decay_and_normaliser(rate * jax.nn.sigmoid(r))
    if reset is not None:
        a = jnp.where(reset, jnp.zeros_like(a, shape=()), a)
        normaliser = jnp.where(reset, jnp.ones_like(a, shape=()), normaliser)
    return a, normaliser * (jax.nn.sigmoid(i) * x)


@jax.custom_jvp
def _decay_and_normaliser(log_a):
    """Returns a and sqrt(1 - a^2)."""
    return jnp.exp(log_a), jnp.sqrt(-jnp.expm1(2 * log_a))


@_decay_and_normaliser.defjvp
def _(primals, tangents):
    a, normaliser = _decay_and_normaliser(*primals)
    d_a = a * tangents[0]
    # 1 / (2 sqrt(u)), the derivative by u = 1 - a^2, is at most 1000.
    slope = -a / jnp.maximum(normaliser, 1 / 2000)
    return (a, normaliser), (d_a, slope * d_a)


def _xla(scan):
    def run(x, r, i, rate, h0, reset):
        return scan(_gates, (r, i, x), (rate,), h0, reset, reverse=False)

    return Implementation(run)


def _kernel(module):
    """The implementation by the kernels of `pallas_kernels.<module>`."""

    def kernels():  # importing Pallas costs half a second: at first use
        return importlib.import_module(f"pallas_kernels.{module}").KERNELS

    def run(x, r, i, rate, h0, reset):
        from pallas_kernels import rg_lru

        return rg_lru.rg_lru_scan(kernels(), x, r, i, rate, h0, reset)

    def refuse(x, r, i, rate, h0, reset):
        from pallas_kernels import rg_lru

        return rg_lru.refuse(kernels(), x, r, i)

    return Implementation(run, refuse)


_TABLE = {
    "loop": _xla(gated_loop),
    "scan": _xla(gated_sequential),
    "associative": _xla(gated_associative),
    "pallas_tpu": _kernel("gated_scan_tpu"),
    "mosaic_gpu": _kernel("gated_scan_gpu"),
}


def rg_lru_scan(
    x: jax.Array,
    r: jax.Array,
    i: jax.Array,
    a_param: jax.Array,
    *,
    c: float = 8.0,
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
    time_axis: str | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the recurrence of the RG-LRU over time, gates and normaliser included.

        log a_t = -c softplus(a_param) sigmoid(r_t)
        h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * sigmoid(i_t) * x_t      (elementwise)

    At a reset the state is dropped and the input not normalised: a_t is 0 and the root
    is 1. As in the released models, the derivative of the root by 1 - a_t^2 is clipped
    at 1000.

    Args:
      x: (B, T, D), real floating. T may be 0.
      r: (B, T, D), the recurrence gate before its sigmoid.
      i: (B, T, D), the input gate before its sigmoid.
      a_param: (D,); exp(-softplus(a_param)) is the decay of a gate that is open, to the
        power of c.
      c: the power.
      h0: (B, D), the state before the first step; None is zero.
      reset: (B, T) bool. True starts anew at x_t.
      time_axis: inside a `shard_map`, the mesh axis over which time is sharded. Outside
        of one leave it None: the op takes the mesh axes data, fsdp, tensor and time of
        an ambient mesh by itself.
      implementation: "loop", "scan", "associative", "pallas_tpu", "mosaic_gpu", or None
        for the fastest that can run here. All give the same answer; with bfloat16
        gates "pallas_tpu" computes a sigmoid to 1e-7 absolute, not relative.

    Returns:
      h (B, T, D) in the dtype of x, and h_last (B, D), the state after the last step,
      in the dtype of the accumulation: float32, or float64 if x is.

    Differentiable in x, r, i, a_param and h0: in reverse mode any number of times, in
    forward mode with "scan" and "associative". The backward pass keeps inputs and h
    and makes the gates again.

    Raises:
      ValueError: an argument has a wrong shape or dtype, or a mesh does not divide it.
      NotImplementedError: a named implementation cannot run here.

    Source: De et al. 2024, Griffin (2402.19427), section 2.4; clip and reset are those
    of the released RecurrentGemma.
    """
    x, r, i, a_param, h0, reset = _check(x, r, i, a_param, h0, reset)
    rate = -c * jax.nn.softplus(a_param.astype(h0.dtype))
    if x.shape[1] == 0:
        return x, h0
    if x.shape[1] == 1 and time_axis is None:  # a decoding step: no loop
        row = None if reset is None else reset[:, 0]
        inputs = r[:, 0], i[:, 0], x[:, 0]
        a, u = make(_gates, inputs, (rate,), row, h0.dtype)
        h = a * h0 + u
        return h[:, None].astype(x.dtype), h

    def local(inputs, h0):
        x, r, i, rate, reset, h0 = vary_alike((*inputs, h0))
        arguments = x, r, i, rate, h0, reset
        run = choose("rg_lru_scan", implementation, _TABLE, SCAN_PREFERENCE, *arguments)
        return run(*arguments)

    return spread(
        "rg_lru_scan",
        local,
        (x, r, i, rate, reset),
        h0,
        axes=("btd", "btd", "btd", "d", "bt"),
        state_axes="bd",
        out_axes="btd",
        decay_product=functools.partial(_decay_product, dtype=h0.dtype),
        time_axis=time_axis,
    )


def _decay_product(inputs, *, dtype):
    """The product of the decays over time, (B, D)."""
    _, r, _, rate, _ = inputs
    return jnp.exp(rate[None] * jax.nn.sigmoid(r.astype(dtype)).sum(1))


def _check(x, r, i, a_param, h0, reset):
    """The arguments as arrays, with `h0` filled in and in the accumulation dtype."""
    x, r, i, a_param = map(jnp.asarray, (x, r, i, a_param))
    for name, array in (("x", x), ("r", r), ("i", i), ("a_param", a_param)):
        check_real(name, array)
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}, wanted three axes = (B, T, D)")
    batch, time, width = x.shape
    check_shape("r", r, x.shape, meaning="(B, T, D)")
    check_shape("i", i, x.shape, meaning="(B, T, D)")
    check_shape("a_param", a_param, (width,), meaning="(D,)")
    dtype = accumulation_dtype(x.dtype)
    if h0 is None:
        h0 = jnp.zeros((batch, width), dtype)
    h0 = jnp.asarray(h0)
    check_real("h0", h0)
    check_shape("h0", h0, (batch, width), meaning="(B, D)")
    if reset is not None:
        reset = jnp.asarray(reset)
        check_reset(reset, batch, time)
    return x, r, i, a_param, h0.astype(dtype), reset
