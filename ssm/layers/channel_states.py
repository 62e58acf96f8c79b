"""Recurrences of several states for each channel, never all of them in memory."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.target import platform
from ssm import ops
from ssm.ops.sharding import shards_time, vary_alike

# States of a chunk, all sequences and steps together: those that a cache holds, or a
# small part of a device's memory. Measured on a CPU, as the fewest steps are.
MOST_STATES = {"cpu": 2**14, "gpu": 2**24, "tpu": 2**24}
LEAST_STEPS = 4


def scan_states(
    a: jax.Array, x: jax.Array, h0: jax.Array, reset: jax.Array | None, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """`ssm.ops.linear_scan` over states of channels, h_t = a_t h_{t-1} + x_t.

    Shapes: x (B, T, D, N), a (D, N) or that of x, h0 (B, D, N), reset (B, T) -> h of
    the shape of x, and h_last of that of h0. `options` are those of the op.
    """
    width = math.prod(x.shape[2:])
    a, flat, h0 = (v.reshape(*v.shape[:-2], width) for v in (a, x, h0))
    h, last = ops.linear_scan(flat, a, h0=h0, reset=reset, **options)
    return h.reshape(x.shape), last.reshape(len(x), *x.shape[2:])


def in_chunks(
    run: Callable[[Any, Any], tuple[Any, jax.Array]],
    state: Any,
    inputs: Any,
) -> tuple[Any, jax.Array]:
    """Runs a recurrence over chunks of time, so short that their states are few.

    The states of a chunk are made and read at once, and made again for the gradient,
    which keeps the inputs and those between chunks. Where a mesh shards time there is
    one chunk.

    Args:
      run: `run(state, inputs) -> (state, y)` over any number of steps.
      state: before the first step, a pytree of arrays.
      inputs: a pytree of arrays (B, T, ...), or None.

    Returns the state after the last step, and y (B, T, D).
    """
    batch, time = jax.tree.leaves(inputs)[0].shape[:2]
    of_a_step = sum(leaf.size for leaf in jax.tree.leaves(state))
    steps = max(LEAST_STEPS, MOST_STATES[platform()] // of_a_step)
    steps -= steps % 8 if steps > 8 else 0  # whole tiles of a TPU
    if steps >= time or shards_time():
        return run(state, inputs)
    state, inputs = vary_alike((state, inputs))
    chunks, rest = divmod(time, steps)
    whole = chunks * steps

    def cut(x):
        return jnp.moveaxis(
            x[:, :whole].reshape(batch, chunks, steps, *x.shape[2:]), 1, 0
        )

    body = jax.checkpoint(run, prevent_cse=False)
    state, y = lax.scan(body, state, jax.tree.map(cut, inputs))
    y = jnp.moveaxis(y, 0, 1).reshape(batch, whole, *y.shape[3:])
    if rest:
        state, end = body(state, jax.tree.map(lambda x: x[:, whole:], inputs))
        y = jnp.concatenate([y, end], axis=1)
    return state, y
