"""Any layer, run in both directions of time."""

import jax
import jax.numpy as jnp

from ssm.layers.base import Carry, SequenceLayer, document_ends, refuse_carry


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
        **per_layer: jax.Array,
    ) -> tuple[jax.Array, Carry]:
        if carry is not None:
            raise refuse_carry(self)
        keys = (None, None) if key is None else jax.random.split(key)
        own, other = (
            per_layer | ({"key": k} if "key" in self.per_layer else {}) for k in keys
        )
        y, _ = self.forward(x, reset=reset, **own)
        ends = document_ends(reset)
        starts = None if ends is None else jnp.flip(ends, axis=1)
        z, _ = self.backward(jnp.flip(x, axis=1), reset=starts, **other)
        return y + jnp.flip(z, axis=1), None

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        raise refuse_carry(self)
