"""A linear scan whose decay and drive are made by gates, for the kernels of a device.

    (a_t, u_t) = gates(inputs_t, parameters)        (elementwise)
    h_t = a_t * h_{t-1} + u_t

A device brings one kernel forward and one backward, in which the gates are made again:

    g_t = dh_t + conj(a_{t+1}) g_{t+1},     du_t = g_t,     da_t = g_t conj(h_{t-1}).

So nothing of the size of a plane passes through memory but the inputs, the states and
their cotangents. Here is what is the same on all devices: the derivatives and `vmap`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pallas_kernels.planes import Planes
from pallas_kernels.vmap import fold_vmap


class Kernels(NamedTuple):
    """What a device brings."""

    refuse: Callable[[dict[str, Planes]], str | None]  # why it cannot take these
    forward: Callable[..., Any]  # (gates, reverse, dtype, *inputs of gated_scan)
    backward: Callable[..., Any]  # (gates, reverse, cotangents, inputs, results)
    linear_scan: Callable[..., Any]  # of which second derivatives are taken


class Gates(Protocol):
    """What the decay and the drive of a gated scan are made of."""

    name: str  # of the op
    states: int  # planes of the state
    decays: int  # planes of the decay
    transcendental: int  # functions, for the estimate of the cost

    def __call__(
        self, inputs: Planes, parameters: Planes, restart: jax.Array | None
    ) -> tuple[Planes, Planes]:
        """Returns decay and drive, as float32 planes of one shape.

        The inputs have that shape, the parameters broadcast against it, and `restart`,
        of that shape, is True where the state is cleared.
        """


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def gated_scan(
    kernels: Kernels,
    gates: Gates,
    reverse: bool,
    dtype: Any,
    inputs: Planes,
    parameters: Planes,
    h0: Planes,
    reset: jax.Array | None,
) -> tuple[Planes, Planes]:
    """Scans h_t = a_t h_{t-1} + u_t where `gates` makes a and u.

    Args:
      kernels: those of a device.
      gates: a hashable function; see `Gates`.
      reverse: scan from the last step to the first.
      dtype: of the states that are written.
      inputs: planes (B, T, D), float32 or bfloat16, T >= 1.
      parameters: planes (D,), float32.
      h0: planes (B, D), float32.
      reset: (B, T) bool or None.

    Returns:
      h, planes (B, T, D) of `dtype`, and the last state, planes (B, D) float32.
      Differentiable in inputs, parameters and h0, in reverse mode, any number of times.
    """
    run = functools.partial(kernels.forward, gates, reverse, dtype)
    return fold_vmap(run, shared=(1,))(inputs, parameters, h0, reset)


def _gated_forward(kernels, gates, reverse, dtype, inputs, parameters, h0, reset):
    h, last = gated_scan(kernels, gates, reverse, dtype, inputs, parameters, h0, reset)
    return (h, last), (inputs, parameters, h, h0, reset)


def _gated_backward(kernels, gates, reverse, dtype, residuals, cotangents):
    gradients = _adjoint(kernels, gates, reverse, dtype, *cotangents, *residuals)
    return *gradients, None


gated_scan.defvjp(_gated_forward, _gated_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _adjoint(
    kernels, gates, reverse, dtype, d_h, d_last, inputs, parameters, h, h0, reset
):
    run = functools.partial(kernels.backward, gates, reverse)
    d_inputs, per_sequence, dh0 = fold_vmap(run, shared=(3,))(
        d_h, d_last, inputs, parameters, h, h0, reset
    )
    return d_inputs, tuple(jnp.sum(p, axis=0) for p in per_sequence), dh0


def _adjoint_forward(kernels, gates, reverse, dtype, *arguments):
    return _adjoint(kernels, gates, reverse, dtype, *arguments), arguments


def _adjoint_backward(kernels, gates, reverse, dtype, arguments, cotangents):
    """Differentiates the composition with `linear_scan`, of which `h` is a result."""
    d_h, d_last, inputs, parameters, h, h0, reset = arguments

    def adjoint(d_h, d_last, *arguments):
        def composed(inputs, parameters, h0):
            wide = tuple(p.astype(jnp.float32) for p in inputs)
            wide_parameters = tuple(jnp.broadcast_to(p, h[0].shape) for p in parameters)
            restart = None
            if reset is not None:
                restart = jnp.broadcast_to(reset[..., None], h[0].shape)
            decay, drive = gates(wide, wide_parameters, restart)
            out, last = kernels.linear_scan(drive, decay, h0, reverse=reverse)
            return tuple(p.astype(dtype) for p in out), last

        return jax.vjp(composed, *arguments)[1]((d_h, d_last))

    pulled = jax.vjp(adjoint, d_h, d_last, inputs, parameters, h0)[1](cotangents)
    d_d_h, d_d_last, d_inputs, d_parameters, dh0 = pulled
    nothing = tuple(map(jnp.zeros_like, h))
    return d_d_h, d_d_last, d_inputs, d_parameters, nothing, dh0, None


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)
