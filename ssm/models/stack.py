"""Blocks on top of each other: one by one, or as one scan over stacked parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ssm.layers.base import Carry, Stepping
from ssm.ops.sharding import constrain

MakeBlock = Callable[[nnx.Rngs], nnx.Module]
"""Builds one block from its random streams; called once per layer."""


class Stack(Stepping, nnx.Module):
    """`n_layers` blocks of the same make.

        y, carry = stack(x, carry=None, *, reset=None, key=None, mask=None, train=False)

    Shapes: x (B, T, D) -> y (B, T, D). The carry holds one carry per block: a tuple, or
    one pytree with a leading layer axis if `scan_layers`.

    Args:
      make_block: builds a block from its random streams, for instance
        `lambda rngs: S4Block(LRU(64, 64, rngs=rngs), 64, rngs=rngs)`.
      n_layers: how many.
      scan_layers: hold the parameters of all blocks stacked and run them by `lax.scan`,
        which compiles one block instead of all. Initial values, outputs and gradients
        are the same up to rounding.
      remat: recompute the inside of each block in the backward pass, which then keeps
        only what passes between the blocks.
    """

    def __init__(
        self,
        make_block: MakeBlock,
        n_layers: int,
        *,
        scan_layers: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.n_layers, self.scan_layers, self.remat = n_layers, scan_layers, remat
        keys = jax.random.split(rngs.params(), n_layers)
        self.blocks: Any
        if scan_layers:
            self.blocks = jax.vmap(lambda key: make_block(nnx.Rngs(key)))(keys)
        else:
            self.blocks = nnx.List([make_block(nnx.Rngs(key)) for key in keys])

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Carry]:
        keys = None if key is None else jax.random.split(key, self.n_layers)
        x = constrain(x, "btd")

        def apply(graphdef, params, statistics, x, carry, key):
            """One block as a pure function; its batch statistics go in and come out."""
            block = nnx.merge(graphdef, params, statistics)
            x, carry = block(x, carry, reset=reset, key=key, mask=mask, train=train)
            return constrain(x, "btd"), carry, nnx.state(block, nnx.BatchStat)

        if self.remat:
            apply = jax.checkpoint(
                apply, static_argnums=0, prevent_cse=not self.scan_layers
            )

        if self.scan_layers:
            graphdef, params, statistics = _parts(self.blocks)

            def body(x, layer):
                params, statistics, carry, key = layer
                x, *outputs = apply(graphdef, params, statistics, x, carry, key)
                return x, outputs

            layers = (params, statistics, carry, keys)
            x, (carry, statistics) = jax.lax.scan(body, x, layers)
            nnx.update(self.blocks, statistics)
            return x, carry

        carries = []
        for i, block in enumerate(self.blocks):
            before = None if carry is None else carry[i]
            block_key = None if keys is None else keys[i]
            x, after, statistics = apply(*_parts(block), x, before, block_key)
            nnx.update(block, statistics)
            carries.append(after)
        return x, tuple(carries)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        def one(block):
            return block.init_carry(batch_size, max_length=max_length)

        if self.scan_layers:
            return jax.vmap(one)(self.blocks)
        return tuple(one(block) for block in self.blocks)


def _parts(module: nnx.Module) -> tuple[Any, Any, Any]:
    """The graph, the parameters and the batch statistics of a module."""
    graphdef, params, *rest = nnx.split(module, nnx.Param, ...)
    return graphdef, params, rest[0]
