"""How parameters lie on the devices of a mesh: the large ones in parts."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Below this many elements, gathering a parameter costs more than keeping it whole.
MIN_SIZE = 2**16


def by_size(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each array: over `fsdp` if it is large, else whole everywhere.

    The largest axis that `fsdp` divides is split; optimiser moments, having the shapes
    of their parameters, lie as these do. `tree` has arrays, or their shapes and dtypes,
    as leaves. A mesh without that axis holds everything whole.
    """
    fsdp = mesh.shape.get("fsdp", 1)

    def sharding(array: Any) -> NamedSharding:
        axes = [axis for axis, n in enumerate(array.shape) if n % fsdp == 0]
        if fsdp == 1 or array.size < MIN_SIZE or not axes:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, tree)
