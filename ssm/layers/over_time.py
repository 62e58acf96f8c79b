"""What layers share whose steps follow one another: the loop, zoneout, gates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ssm.layers.base import Carry, recurrence_dtype
from ssm.ops.sharding import vary_alike

Step = Callable[[Carry, jax.Array, jax.Array | None], tuple[Carry, jax.Array]]
"""`step(carry, x_t, key_t) -> carry, y_t` for x_t (B, D); key_t is None without one."""


def scan_steps(
    step: Step,
    x: jax.Array,
    carry: Carry,
    *,
    reset: jax.Array | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Carry]:
    """Runs a step over the time axis of x (B, T, D), by `lax.scan`.

    The carry is zero where `reset` (B, T) is, before that step; its dtypes stay. A PRNG
    `key` is split into one for each step. Returns y (B, T, ...) and the last carry.
    """
    x, carry = vary_alike((x, carry))

    def body(carry, inputs):
        x_t, reset_t, key_t = inputs
        if reset_t is not None:
            carry = jax.tree.map(lambda state: _cleared(state, reset_t), carry)
        new, y_t = step(carry, x_t, key_t)
        new = jax.tree.map(lambda old, state: state.astype(old.dtype), carry, new)
        return new, y_t

    keys = None if key is None else jax.random.split(key, x.shape[1])
    starts = None if reset is None else jnp.swapaxes(reset, 0, 1)
    carry, y = jax.lax.scan(body, carry, (jnp.swapaxes(x, 0, 1), starts, keys))
    return jnp.swapaxes(y, 0, 1), carry


def _cleared(state, reset):
    return jnp.where(reset[:, None], jnp.zeros_like(state), state)


def check_zoneout(name: str, **rates: float) -> None:
    """Raises ValueError unless every rate is a probability below one."""
    for argument, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name}: {argument}={rate}, wanted 0 <= it < 1")


def zoneout(
    old: jax.Array, new: jax.Array, rate: float, key: jax.Array | None
) -> jax.Array:
    """Keeps each unit of a state with probability `rate`; its mean if there is no key.

        d * old + (1 - d) * new          d = 1 with probability `rate`, else 0

    Source: Krueger et al. 2017, Zoneout (1606.01305).
    """
    if not rate:
        return new
    if key is None:
        return rate * old + (1 - rate) * new
    return jnp.where(jax.random.bernoulli(key, rate, new.shape), old, new)


def orthogonal_each(
    key: jax.Array, shape: tuple[int, int], dtype: DTypeLike
) -> jax.Array:
    """Orthogonal matrices (D, D) side by side, as many as a kernel of `shape` holds."""
    d, width = shape
    draws = jax.random.orthogonal(key, d, (width // d,), recurrence_dtype(dtype))
    return jnp.concatenate(list(draws), axis=1).astype(dtype)


def wide_sigmoid(x: jax.Array) -> jax.Array:
    """A sigmoid in float32 at least: a gate close to one is a decay."""
    return jax.nn.sigmoid(_wide(x))


def wide_tanh(x: jax.Array) -> jax.Array:
    """A tanh in float32 at least."""
    return jnp.tanh(_wide(x))


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
