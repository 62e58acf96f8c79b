"""Blocks around layers that take turns, coupled as the layers are."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from ssm.blocks import ResidualBlock
from ssm.models.stack import Coupled, MakeBlock, MakeLayer, Pattern


def around_each(mixers: Pattern, around: Callable[[Any], MakeBlock]) -> Pattern:
    """Builders of blocks from those of layers, each put inside `around`.

    Args:
      mixers: builders of layers, or a `Coupled` of such; the blocks are then coupled in
        the same way, and hand on what a layer names in `per_layer`.
      around: from the builder of a layer to that of the block around it.
    """
    if isinstance(mixers, Coupled):
        inner = mixers.make_block
        inner = (inner,) if callable(inner) else inner
        blocks = tuple(around(make) for make in inner)
        return dataclasses.replace(mixers, make_block=blocks)
    return tuple(around(make) for make in mixers)


def residual_blocks(
    mixers: Pattern,
    make_mlp: Callable[..., nnx.Module],
    d_model: int,
    **options: Any,
) -> Pattern:
    """Builders of a `ResidualBlock` around each layer; coupled as the layers are.

    Args:
      mixers: see `around_each`.
      make_mlp: builds the MLP of a block, called with `rngs=` alone.
      d_model, **options: those of `ResidualBlock`.
    """

    def around(make_mixer: MakeLayer) -> MakeBlock:
        def make_block(rngs: nnx.Rngs) -> ResidualBlock:
            mixer, mlp = make_mixer(rngs), make_mlp(rngs=rngs)
            return ResidualBlock(mixer, mlp, d_model, rngs=rngs, **options)

        return make_block

    return around_each(mixers, around)
