"""The logistic sigmoid inside of a kernel."""

import jax
import jax.numpy as jnp


def sigmoid(z: jax.Array, *, narrow: bool) -> jax.Array:
    """Returns 1 / (1 + exp(-z)).

    Where `narrow`, by one function of the transcendental unit instead of two and a
    division: right to the last bit of 1, but not of a small result. That is for a `z`
    that comes from bfloat16, whose own rounding weighs more.
    """
    return 0.5 * jnp.tanh(0.5 * z) + 0.5 if narrow else jax.nn.sigmoid(z)


def sigmoid_and_rest(z: jax.Array, *, narrow: bool) -> tuple[jax.Array, jax.Array]:
    """Returns sigmoid(z) and 1 - sigmoid(z), neither of them from the other."""
    return _narrow_pair(z) if narrow else _pair(z)


@jax.custom_jvp
def _narrow_pair(z):
    half = 0.5 * jnp.tanh(0.5 * z)
    return 0.5 + half, 0.5 - half


@jax.custom_jvp
def _pair(z):
    small = jnp.exp(-jnp.abs(z))
    large = 1.0 / (1.0 + small)
    small = small * large
    return jnp.where(z < 0, small, large), jnp.where(z < 0, large, small)


def _slope(pair, primals, tangents):
    one, rest = pair(*primals)
    tangent = one * rest * tangents[0]
    return (one, rest), (tangent, -tangent)


_narrow_pair.defjvp(lambda *arguments: _slope(_narrow_pair, *arguments))
_pair.defjvp(lambda *arguments: _slope(_pair, *arguments))
