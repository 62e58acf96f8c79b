"""Sequences to classes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import Norm, make_final_norm
from ssm.models.encoder import encode, make_encoder
from ssm.models.pooling import Pooling, pool, valid_steps
from ssm.models.stack import MakeBlock, Pattern, Stack


class Classifier(nnx.Module):
    """What classifiers share: encoder, blocks, pooling over time, a map to classes.

    See `SequenceClassifier` for the arguments. A subclass says how it gets from what is
    `pooled` to the input of `head`.
    """

    def __init__(
        self,
        make_block: MakeBlock | Pattern,
        *,
        n_layers: int,
        d_model: int,
        n_classes: int,
        vocab_size: int | None = None,
        d_input: int | None = None,
        pooling: Pooling = "mean",
        final_norm: Norm | bool = False,
        scan_layers: bool = False,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if pooling not in ("mean", "last"):
            raise ValueError(f"pooling={pooling!r} is unknown, wanted 'mean' or 'last'")
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.pooling = pooling
        self.encoder = make_encoder(vocab_size, d_input, d_model, rngs=rngs, **types)
        self.stack = Stack(
            make_block, n_layers, scan_layers=scan_layers, remat=remat, rngs=rngs
        )
        self.norm = make_final_norm(final_norm, d_model, rngs=rngs, **types)
        self.head = nnx.Linear(d_model, n_classes, param_dtype=param_dtype, rngs=rngs)

    def pooled(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """A sequence as one vector: (B, d_model) float32."""
        if lengths is not None and lengths.shape != x.shape[:1]:
            raise ValueError(
                f"lengths has shape {lengths.shape}, wanted {x.shape[:1]} = (B,)"
            )
        mask = reset = None
        if lengths is not None:
            mask = valid_steps(lengths, x.shape[1])
            reset = jnp.arange(x.shape[1])[None] == lengths[:, None]
        x = encode(self.encoder, x)
        x, _ = self.stack(x, reset=reset, key=key, mask=mask, train=train)
        if self.norm is not None:
            x = self.norm(x)
        return pool(x, lengths, self.pooling)


class SequenceClassifier(Classifier):
    """Encoder, blocks, pooling over time, linear map to classes.

        logits = classifier(x, lengths=None, *, key=None, train=False)

    Shapes: x (B, T) int tokens or (B, T, d_input) real; lengths (B,) int, the number of
    valid steps of right-padded sequences -> logits (B, n_classes) float32. The logits
    do not depend on how much padding follows: it is not pooled, and a reset at its
    first step keeps it from layers that look back from the end.

    Args:
      make_block: builds one block, or several such in turn, see `Stack`.
      n_layers, d_model, n_classes: sizes.
      vocab_size, d_input: exactly one; says what the inputs are.
      pooling: "mean" over the valid steps, or "last", the last valid one.
      final_norm: the norm after the last block: its kind, see `blocks.make_norm`; True
        is "layer", False none.
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters.

    Dropout happens if a PRNG `key` is given, and only then. `train=True` makes batch
    norm, where a block has one, use and update batch statistics.
    """

    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        return self.head(self.pooled(x, lengths, key=key, train=train))
