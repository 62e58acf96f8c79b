"""Linear attention with decay: a recurrence on matrices."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from ssm.ops.checks import accumulation_dtype, check_reset, check_shape
from ssm.ops.dispatch import Implementation, choose
from ssm.ops.lightning_chunked import attention_chunked, attention_loop
from ssm.ops.lightning_steps import attention_steps, widened
from ssm.ops.sharding import spread, vary_alike


def _kernel(name, name_by_channel=None):
    """A module of device kernels, or another for a decay of each key channel."""

    def kernels(arguments):  # half a second to import, so at first use
        by_channel = name_by_channel is not None and arguments[3].ndim == 4
        module = name_by_channel if by_channel else name
        return importlib.import_module(f"pallas_kernels.lightning_{module}")

    def run(*arguments):
        return kernels(arguments).lightning_attention(
            *arguments, composed=attention_chunked
        )

    def refuse(*arguments):
        return kernels(arguments).refuse(*arguments)

    return Implementation(run, refuse)


_TABLE = {
    "scan": Implementation(attention_steps),
    "loop": Implementation(attention_loop),
    "chunked": Implementation(attention_chunked),
    "pallas_tpu": _kernel("tpu", "channel_tpu"),
    "mosaic_gpu": _kernel("gpu"),
}


def _preference(by_channel):
    """Of the implementations on each platform, see `dispatch.choose`."""
    return {
        "cpu": ("loop" if by_channel else "chunked",),
        "tpu": ("pallas_tpu", "chunked"),
        # The kernel for GPUs is compiled but unproven: it runs where it is named.
        "default": ("chunked",),
    }


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    *,
    s0: jax.Array | None = None,
    reset: jax.Array | None = None,
    time_axis: str | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs linear attention with decay over time.

        S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

    There is no scale, no softmax and no normaliser, and a step sees itself undecayed.

    Args:
      q: (B, T, H, K), real floating. T may be 0.
      k: (B, T, H, K), real floating.
      v: (B, T, H, V), real floating.
      log_decay: the logarithm of the decay, zero or less: (H,) if it does not change
        with time, (B, T, H), or (B, T, H, K) with one for each row of the state. -inf
        is a decay of zero.
      s0: (B, H, K, V), the state before the first step; None is zero.
      reset: (B, T) bool. True clears the state before k_t^T v_t is added.
      time_axis: inside a `shard_map`, the mesh axis over which the caller has sharded
        time; the parts then exchange their states.
      implementation: "scan", "loop", "chunked", "pallas_tpu", "mosaic_gpu", or None for
        the fastest that can run here. All give the same answer. "loop" goes
        forward step by step and backward by chunks: on CPU, with a decay of each key
        channel, the fastest. "mosaic_gpu"
        has never run on a device and is never chosen for None.

    Returns:
      o (B, T, H, V) in the dtype of v, and s_last (B, H, K, V), the state after the
      last step, in the dtype of the accumulation: float32, or float64 if an input is.

    Differentiable in q, k, v, log_decay and s0, in reverse mode any number of times, in
    forward mode with "scan". The backward pass keeps the inputs and the states at some
    steps, a few hundred or more apart; that of "scan" keeps all of them. Under an
    ambient mesh B is sharded over `data` and `fsdp`, H over `tensor` and T over `time`
    (`ops.axis_names`).

    Raises:
      ValueError: an argument has a wrong shape or dtype, or the mesh does not divide T
        or H.
      NotImplementedError: a named implementation cannot run here.

    Source: Lightning Attention-2 (2401.04658), section 3, whose decay is one for each
    head; HGRN2 (2404.07904), equation 5, for one for each channel.
    """
    q, k, v, log_decay, s0, reset = _check(q, k, v, log_decay, s0, reset)
    if q.shape[1] == 0:
        return v, s0
    if q.shape[1] == 1 and time_axis is None:  # a decoding step: no loop
        return attention_steps(q, k, v, log_decay, s0, reset)

    def local(inputs, s0):
        q, k, v, log_decay, reset, s0 = vary_alike((*inputs, s0))
        arguments = q, k, v, log_decay, s0, reset
        preference = _preference(by_channel=log_decay.ndim == 4)
        run = choose(
            "lightning_attention", implementation, _TABLE, preference, *arguments
        )
        return run(*arguments)

    return spread(
        "lightning_attention",
        local,
        (q, k, v, log_decay, reset),
        s0,
        axes=("bthk", "bthk", "bthv", _DECAY_AXES[log_decay.ndim], "bt"),
        state_axes="bhkv",
        out_axes="bthv",
        decay_product=_decay_product,
        time_axis=time_axis,
    )


_DECAY_AXES = {1: "h", 3: "bth", 4: "bthk"}


def _decay_product(inputs):
    """The product of the decays over time, (B, H, K or 1, 1)."""
    q, _, _, log_decay, _ = inputs
    log_decay = log_decay.astype(accumulation_dtype(log_decay.dtype))
    if log_decay.ndim == 1:
        total = jnp.broadcast_to(q.shape[1] * log_decay, (q.shape[0], q.shape[2]))
    else:
        total = log_decay.sum(1)
    return widened(jnp.exp(total))


def _check(q, k, v, log_decay, s0, reset):
    """The arguments as arrays, with `s0` filled in and in the accumulation dtype."""
    q, k, v, log_decay = map(jnp.asarray, (q, k, v, log_decay))
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay}
    named |= {} if s0 is None else {"s0": jnp.asarray(s0)}
    for name, array in named.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {array.dtype}, wanted real floating")
    if q.ndim != 4:
        raise ValueError(f"q has shape {q.shape}, wanted four axes = (B, T, H, K)")
    batch, time, heads, width = q.shape
    check_shape("k", k, q.shape, meaning="(B, T, H, K)")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v has shape {v.shape}, wanted {(batch, time, heads)} and one more axis = "
            "(B, T, H, V)"
        )
    check_shape(
        "log_decay",
        log_decay,
        (heads,),
        (batch, time, heads),
        q.shape,
        meaning="(H,) or (B, T, H) or (B, T, H, K)",
    )
    dtype = np.result_type(*(accumulation_dtype(x.dtype) for x in (q, k, v)))
    shape = batch, heads, width, v.shape[3]
    s0 = named["s0"] if "s0" in named else jnp.zeros(shape, dtype)
    check_shape("s0", s0, shape, meaning="(B, H, K, V)")
    if reset is not None:
        reset = jnp.asarray(reset)
        check_reset(reset, batch, time)
    return q, k, v, log_decay, s0.astype(dtype), reset
