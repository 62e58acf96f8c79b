"""Any layer, run in both directions of time."""

from typing import Any

import jax
import jax.numpy as jnp

from ssm.layers.base import (
    Carry,
    SequenceLayer,
    document_ends,
    refuse_carry,
    wanted,
)


class Bidirectional(SequenceLayer):
    """The sum of a layer over the sequence and of another over the reversed sequence.

        y = forward(x) + flip(backward(flip(x)))

    Both see x_t at step t. With `reset` no direction crosses the border of a document,
    and so padding after the end of a sequence, marked by a reset at its first step,
    reaches no output before it.

    Shapes: x (B, T, D) -> y (B, T, D). It is not causal: returns no carry.

    Args:
      forward, backward: two layers of any kind, each with its own parameters. Layers
        with a published bidirectional form that shares parameters have an argument of
        their own for it, as `LRU(bidirectional=True)`.

    Raises ValueError if a carry is given.
    """

    causal = False

    def __init__(self, forward: SequenceLayer, backward: SequenceLayer):
        self.forward, self.backward = forward, backward
        self.per_layer = forward.per_layer

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        **per_layer: jax.Array,
    ) -> tuple[jax.Array, Carry]:
        if carry is not None:
            raise refuse_carry(self)
        keys = (None, None) if key is None else jax.random.split(key)
        own: dict[str, Any] = {"key": keys[0], "mask": mask}
        y, _ = self.forward(x, reset=reset, **wanted(self, per_layer | own))
        x, ends, mask = jax.tree.map(
            lambda v: jnp.flip(v, axis=1), (x, document_ends(reset), mask)
        )
        own = {"key": keys[1], "mask": mask}
        z, _ = self.backward(x, reset=ends, **wanted(self, per_layer | own))
        return y + jnp.flip(z, axis=1), None

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        raise refuse_carry(self)
