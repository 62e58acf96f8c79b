"""A recurrence whose time axis is sharded over devices.

Each device computes the state that its part of the sequence leaves behind from a zero
start, the devices exchange that and the product of their decays, each combines those of
the devices before it,

    start_k = p_{k-1} start_{k-1} + e_{k-1},    start_0 = the state given,

and runs its part again from there. The result is exact; what is exchanged is as large
as two states. The backward pass is the same against the direction of the scan, since
the adjoint of such a recurrence is one with the same decays.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Local = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]


def along_time(
    local: Local,
    decay_product: Callable[[Any], jax.Array],
    inputs: Any,
    state: jax.Array,
    axis: str,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """Runs `local` on a device's part of the time axis; inside a `shard_map`.

    Args:
      local: `local(inputs, state) -> (out, last)`, the recurrence on this part.
      decay_product: `decay_product(inputs)`, the product of the decays of this part,
        of the rank of the state.
      inputs: pytree of this device's parts, varying over `axis`.
      state: the state before the first step of all, varying over `axis`.
      axis: the mesh axis over which time is sharded.
      reverse: whether the first step in scan order is on the last device.

    Returns:
      This device's part of the result, and the state after the last step of all, which
      does not vary over `axis`.
    """
    out, last = _run(local, decay_product, axis, reverse, inputs, state)
    ends_here = _rank(axis, reverse) == lax.axis_size(axis) - 1
    return out, lax.psum(jnp.where(ends_here, last, jnp.zeros_like(last)), axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run(local, decay_product, axis, reverse, inputs, state):
    """The recurrence of this device, and the state after its own last step."""
    return local(inputs, _start(local, decay_product, axis, reverse, inputs, state)[0])


def _start(local, decay_product, axis, reverse, inputs, state):
    product = decay_product(inputs).astype(state.dtype)
    _, end = local(inputs, jnp.zeros_like(state))
    return _before(product, end, state, axis, reverse), product


def _forward(local, decay_product, axis, reverse, inputs, state):
    start, product = _start(local, decay_product, axis, reverse, inputs, state)
    result, pull = jax.vjp(local, inputs, start)
    return result, (pull, product)


def _backward(local, decay_product, axis, reverse, residuals, cotangents):
    pull, product = residuals
    d_out, d_last = cotangents
    _, d_start = pull((d_out, d_last))
    arriving = _before(product, d_start, jnp.zeros_like(d_last), axis, not reverse)
    d_inputs, d_start = pull((d_out, d_last + arriving))
    begins_here = _rank(axis, reverse) == 0
    return d_inputs, jnp.where(begins_here, d_start, jnp.zeros_like(d_start))


_run.defvjp(_forward, _backward)


def _rank(axis, reverse):
    """The place of this device in scan order."""
    index = lax.axis_index(axis)
    return lax.axis_size(axis) - 1 - index if reverse else index


def _before(product, end, start, axis, reverse):
    """The state that the devices before this one, in scan order, leave it."""
    products, ends = lax.all_gather((product, end), axis)
    devices = range(lax.axis_size(axis))
    mine = state = start
    for device in list(reversed(devices) if reverse else devices)[:-1]:
        state = products[device] * state + ends[device]
        after = (
            lax.axis_index(axis) < device if reverse else lax.axis_index(axis) > device
        )
        mine = jnp.where(after, state, mine)
    return mine
