"""What the ops need to know of meshes."""

from typing import TypeVar

import jax
from jax import lax

T = TypeVar("T")


def vary_alike(arrays: T) -> T:
    """Marks all arrays as varying over every mesh axis that one of them varies over.

    Inside a `shard_map` that checks this, a loop or a kernel needs it: the state that a
    loop carries must have one type from the first step on, and zeros vary over nothing.
    """
    axes = [jax.typeof(a).manual_axis_type.varying for a in jax.tree.leaves(arrays)]
    everywhere: frozenset[str] = frozenset().union(*axes)

    def cast(array: jax.Array) -> jax.Array:
        missing = everywhere - jax.typeof(array).manual_axis_type.varying
        return lax.pcast(array, tuple(missing), to="varying") if missing else array

    return jax.tree.map(cast, arrays)
