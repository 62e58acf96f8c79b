"""`vmap` of a kernel as the same kernel on a larger batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def fold_vmap(
    call: Callable[..., Any], shared: Sequence[int] = (), *, one_by_one: bool = False
) -> Callable[..., Any]:
    """Lets `vmap` of a kernel be the kernel on a larger batch.

    Args:
      call: of pytrees of arrays, of which each, and of the results, has the batch as
        its leading axis.
      shared: the positions of arguments that have none. Where `vmap` maps one of
        those, the mapped axis is taken one by one.
      one_by_one: whether it always is.
    """
    mappable = jax.custom_batching.custom_vmap(call)

    @mappable.def_vmap
    def _(size, is_mapped, *arguments):
        of_shared = [jax.tree.leaves(is_mapped[i]) for i in shared]
        if one_by_one or any(map(any, of_shared)):
            out = _one_by_one(mappable, is_mapped, arguments)
        else:
            folded = [
                argument if i in shared else _fold(size, argument, is_mapped[i])
                for i, argument in enumerate(arguments)
            ]
            out = jax.tree.map(
                lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), mappable(*folded)
            )
        return out, jax.tree.map(lambda _: True, out)

    return mappable


def _fold(size: int, argument: Any, is_mapped: Any) -> Any:
    """Merges the mapped axis and the batch of every array."""

    def fold(leaf, flag):
        leaf = leaf if flag else jnp.broadcast_to(leaf, (size, *leaf.shape))
        return leaf.reshape(-1, *leaf.shape[2:])

    return jax.tree.map(fold, argument, is_mapped)


def _one_by_one(call: Callable[..., Any], is_mapped: Any, arguments: Any) -> Any:
    leaves, tree = jax.tree.flatten(arguments)
    flags = jax.tree.leaves(is_mapped)

    def one(mapped):
        mapped = iter(mapped)
        chosen = [
            next(mapped) if flag else leaf
            for leaf, flag in zip(leaves, flags, strict=True)
        ]
        return call(*jax.tree.unflatten(tree, chosen))

    return lax.map(
        one, [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
    )
