"""Types inside a `shard_map` that checks which mesh axes its arrays vary over."""

from collections.abc import Iterable

import jax
from jax import lax


def varying_axes(array: jax.Array) -> frozenset[str]:
    """The mesh axes that an array varies over."""
    return jax.typeof(array).manual_axis_type.varying


def vary_over(array: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Marks an array as varying over these axes too."""
    missing = tuple(frozenset(axes) - varying_axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def vary_as(array: jax.Array, like: jax.Array) -> jax.Array:
    """Marks what a kernel returns as varying over the mesh axes that `like` does."""
    return vary_over(array, varying_axes(like))
