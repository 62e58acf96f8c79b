"""How the lightning attention kernels for TPU are differentiated."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_tiles_tpu import CHUNK, Cut
from pallas_kernels.vmap import fold_vmap


class Kernels(NamedTuple):
    """The two kernels of a kind of decay, and what stands between them and the op.

    decay_input: of a cut, `log_decay` and `reset`: the decay as the kernels take it.
    forward: of a cut, that, q, k, v and the states (see `Cut.diagonal`).
    backward: of a cut, that, q, k, v, the states at the starts of blocks, and the
      cotangents of o and the last states.
    decay_gradient: of a cut, the gradient of the kernels' decay, `log_decay`, `reset`.
    """

    decay_input: Callable
    forward: Callable
    backward: Callable
    decay_gradient: Callable


def attention(
    kernels: Kernels,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
    composed: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """Runs `lightning_attention` with `kernels`, which take whole chunks."""
    batch, time, heads, _ = q.shape
    missing = max(CHUNK - time, 0)
    if missing:  # steps that leave the state as it is
        if log_decay.ndim == 1:
            log_decay = jnp.broadcast_to(log_decay, (batch, time, heads))
        reset = reset if reset is None else jnp.pad(reset, ((0, 0), (0, missing)))

    def flat(array):  # as the kernels take it, and as the backward pass keeps it
        if array.ndim == 1:
            return array
        array = array.reshape(batch, time, -1)
        return jnp.pad(array, ((0, 0), (0, missing), (0, 0))) if missing else array

    o, last = _attention(
        *map(flat, (q, k, v, log_decay)), s0, reset, kernels, composed, False
    )
    return o[:, :time].reshape(v.shape), last


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attention(q, k, v, log_decay, s0, reset, kernels, composed, keep):
    """Returns o, the last state and, where `keep`, those at the starts of blocks."""
    cut = Cut.of(q, s0)
    decay = kernels.decay_input(cut, log_decay, reset)
    forward = functools.partial(kernels.forward, cut, keep=keep)
    call = fold_vmap(forward, _shared(decay))
    o, last, *starts = call(decay, q, k, v, cut.diagonal(s0))
    return o, cut.off_diagonal(last), *starts


def _attention_forward(q, k, v, log_decay, s0, reset, kernels, composed, keep):
    arguments = q, k, v, log_decay, s0, reset
    # This function itself, so that what it does here can be differentiated again.
    *out, starts = _attention(*arguments, kernels, composed, True)
    return (*out, starts) if keep else tuple(out), (*arguments, starts)


def _attention_backward(kernels, composed, keep, residuals, cotangents):
    d_o, d_last = cotangents[:2]  # nothing depends on the starts but the rule above
    return *_adjoint(*residuals, d_o, d_last, kernels, composed), None


_attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(9, 10))
def _adjoint(q, k, v, log_decay, s0, reset, starts, d_o, d_last, kernels, composed):
    cut = Cut.of(q, s0)
    decay = kernels.decay_input(cut, log_decay, reset)
    call = fold_vmap(functools.partial(kernels.backward, cut), _shared(decay))
    d_q, d_k, d_v, d_decay, d_s0 = call(
        decay, q, k, v, starts, d_o, cut.diagonal(d_last)
    )
    d_log_decay = kernels.decay_gradient(cut, d_decay, log_decay, reset)
    return d_q, d_k, d_v, d_log_decay, cut.off_diagonal(d_s0)


def _adjoint_forward(*arguments):
    return _adjoint(*arguments), arguments[:9]


def _adjoint_backward(kernels, composed, arguments, cotangents):
    *inputs, s0, reset, starts, d_o, d_last = arguments
    heads = s0.shape[1]

    def split(array):
        return array.reshape(*array.shape[:2], heads, -1)

    def on_flat(q, k, v, log_decay, s0):
        if log_decay.shape == q.shape:
            log_decay = split(log_decay)
        o, last = composed(*map(split, (q, k, v)), log_decay, s0, reset)
        return o.reshape(d_o.shape), last

    def adjoint(inputs, s0, d_o, d_last):
        return jax.vjp(on_flat, *inputs, s0)[1]((d_o, d_last))

    _, vjp = jax.vjp(adjoint, inputs, s0, d_o, d_last)
    d_inputs, d_s0, d_d_o, d_d_last = vjp(cotangents)
    return *d_inputs, d_s0, None, jnp.zeros_like(starts), d_d_o, d_d_last


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _shared(decay):
    """The arguments of a kernel that have no batch."""
    return (0,) if decay.ndim == 1 else ()
