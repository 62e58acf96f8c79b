"""Pairs of sequences to classes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.models.classifier import Classifier
from ssm.models.stack import MakeBlock, Pattern


class RetrievalClassifier(Classifier):
    """Two sequences, each read by the same encoder and blocks, then compared.

        logits = classifier(x1, x2, lengths1=None, lengths2=None, *, key=None,
                            train=False)

        e = pool(stack(encoder(x)))             of x1 and of x2
        logits = head(gelu(hidden([e1, e2, e1 - e2, e1 * e2])))

    `gelu` is the tanh approximation. Shapes: x1 and x2 (B, T) int tokens or
    (B, T, d_input) real; lengths1 and lengths2 (B,) int, the valid steps of
    right-padded sequences, both or neither -> logits (B, n_classes) float32.

    The two run as one batch, so batch norm has the statistics of both together, and
    `key` drops other channels of one than of the other.

    Args:
      All are those of `SequenceClassifier`.

    Raises ValueError if x1 and x2 differ in shape or dtype, or one length alone is
    given.

    Source: Gu et al. 2022 (2111.00396) and Smith et al. 2023 (2208.04933), in code,
    for the task of Tay et al. 2021 (2011.04006), section 2.2.3.
    """

    def __init__(
        self,
        make_block: MakeBlock | Pattern,
        *,
        d_model: int,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        options |= {"d_model": d_model, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(make_block, **options)
        self.hidden = nnx.Linear(
            4 * d_model, d_model, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self,
        x1: jax.Array,
        x2: jax.Array,
        lengths1: jax.Array | None = None,
        lengths2: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        features = self.features(x1, x2, lengths1, lengths2, key=key, train=train)
        return self.head(jax.nn.gelu(self.hidden(features)))

    def features(
        self,
        x1: jax.Array,
        x2: jax.Array,
        lengths1: jax.Array | None = None,
        lengths2: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """What is compared: [e1, e2, e1 - e2, e1 * e2], (B, 4 d_model) float32."""
        if x1.shape != x2.shape or x1.dtype != x2.dtype:
            raise ValueError(
                f"x1 is {x1.dtype}{list(x1.shape)} and x2 {x2.dtype}{list(x2.shape)}, "
                "wanted the same shape and dtype: pad the shorter one on the right"
            )
        if (lengths1 is None) != (lengths2 is None):
            raise ValueError("lengths1 or lengths2 alone is given, wanted both or none")
        lengths = None
        if lengths1 is not None and lengths2 is not None:
            lengths = _interleave(lengths1, lengths2)
        x = _interleave(x1, x2)
        e = self.pooled(x, lengths, key=key, train=train).reshape(len(x1), 2, -1)
        e1, e2 = e[:, 0], e[:, 1]
        return jnp.concatenate([e1, e2, e1 - e2, e1 * e2], axis=-1)


def _interleave(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """The rows of both in turns: where a batch is sharded, pairs stay together."""
    return jnp.stack([x1, x2], axis=1).reshape(-1, *x1.shape[1:])
