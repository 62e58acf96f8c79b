"""The Transformer as a language model: what recurrent models are compared with."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers import Attention
from ssm.layers.attention import Positional
from ssm.models.griffin import gated_blocks
from ssm.models.language_model import LanguageModel
from ssm.models.stack import MakeLayer


class Size(NamedTuple):
    """How large a Transformer is.

    Attributes:
      d_model: width of the residual stream.
      n_layers: number of blocks.
      n_heads: of the attention; each is d_model / n_heads wide.
      n_kv_heads: heads of keys and values; None is n_heads, 1 the baseline of Griffin.
      d_ff: width inside the MLP; None is 3 d_model.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    d_ff: int | None = None


TINY = Size(32, 3, 4, n_kv_heads=2, d_ff=56)
"""For tests."""


def transformer(
    size: Size,
    *,
    vocab_size: int,
    positional: Positional = "rope",
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> LanguageModel:
    """A Transformer: norm, attention, norm, gated MLP, and again.

    Block, norms, output map and initial values are those of `griffin.griffin`, so that
    the two differ by their mixers alone.

    Shapes, `reset` and the carry are those of `LanguageModel`. The carry grows with
    what may be read: `init_carry` wants its `max_length`. Packed documents marked by
    `reset` see nothing of each other, and each has its own positions from 0.

    Args:
      size: widths and depth.
      vocab_size: number of tokens.
      positional: "rope", or "none".
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters; norms and the
        softmax are float32 at least.
      rngs: draws the parameters.

    Source: Vaswani et al. 2017 (1706.03762); rotary positions, Su et al. 2021
    (2104.09864); gated MLP, Shazeer 2020 (2002.05202); with `n_kv_heads=1` the MQA
    baseline of De et al. 2024 (2402.19427), section 3.2.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    mixers = transformer_mixers(size, positional=positional, **types)
    return LanguageModel(
        gated_blocks(mixers, size.d_model, size.n_layers, d_ff=size.d_ff, **types),
        n_layers=size.n_layers,
        d_model=size.d_model,
        vocab_size=vocab_size,
        tied=True,
        final_norm="gemma",
        scan_layers=scan_layers,
        remat=remat,
        rngs=rngs,
        **types,
    )


def transformer_mixers(
    size: Size,
    *,
    positional: Positional = "rope",
    causal: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> tuple[MakeLayer]:
    """The mixers of a Transformer, for `gated_blocks`: attention everywhere."""

    def attention(rngs):
        return Attention(
            size.d_model,
            size.n_heads,
            n_kv_heads=size.n_kv_heads,
            causal=causal,
            positional=positional,
            out_variance=2 / size.n_layers,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    return (attention,)
