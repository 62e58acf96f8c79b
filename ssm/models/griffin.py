"""Hawk, Griffin and RecurrentGemma as language models, in their published sizes."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import Norm
from ssm.layers import GatedMLP, GriffinRecurrence, LocalAttention
from ssm.models.around import residual_blocks
from ssm.models.language_model import LanguageModel
from ssm.models.stack import MakeLayer, Pattern


class Size(NamedTuple):
    """How large a model of this family is.

    Attributes:
      d_model: width of the residual stream.
      n_layers: number of blocks.
      n_heads: of the attention; each is d_model / n_heads wide.
      lru_width: width of the recurrence; None is d_model.
      d_ff: width inside the MLP; None is 3 d_model.
      n_kv_heads: heads of keys and values.
      n_blocks: blocks of the RG-LRU's gates; None is n_heads, as in released code.
    """

    d_model: int
    n_layers: int
    n_heads: int
    lru_width: int | None = None
    d_ff: int | None = None
    n_kv_heads: int = 1
    n_blocks: int | None = None


PAPER = {
    "100m": Size(768, 12, 6, lru_width=1024, n_blocks=16),
    "200m": Size(1024, 12, 8, lru_width=1536, n_blocks=16),
    "400m": Size(1536, 12, 12, lru_width=2048, n_blocks=16),
    "1.3b": Size(2048, 24, 16, lru_width=2560, n_blocks=16),
    "3b": Size(3072, 24, 24, lru_width=4096, n_blocks=16),
    "7b": Size(4096, 32, 32, lru_width=5632, n_blocks=16),
    "14b": Size(5120, 40, 40, lru_width=8192, n_blocks=16),
}
"""Hawk and Griffin: De et al. 2024 (2402.19427), table 2."""

RECURRENT_GEMMA = {"2b": Size(2560, 26, 10), "9b": Size(4096, 38, 16)}
"""The released models of RecurrentGemma (2404.07839)."""

TINY = Size(32, 4, 4, lru_width=40, d_ff=56, n_kv_heads=2)
"""For tests: a whole round of blocks and one more, widths that all differ."""


def hawk(
    size: Size,
    *,
    vocab_size: int,
    conv_width: int = 4,
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
    rngs: nnx.Rngs,
) -> LanguageModel:
    """Hawk: recurrent blocks only; what it remembers does not grow with what it read.

    Args: those of `griffin`, without attention's.

    Source: De et al. 2024 (2402.19427), section 2.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    mixers = hawk_mixers(
        size, conv_width=conv_width, implementation=implementation, **types
    )
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


def griffin(
    size: Size,
    *,
    vocab_size: int,
    window: int = 1025,
    conv_width: int = 4,
    scale_embedding: bool = False,
    soft_cap: float | None = None,
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
    rngs: nnx.Rngs,
) -> LanguageModel:
    """Griffin: two recurrent blocks, one of local attention, and again.

    Shapes, `reset` and the carry are those of `LanguageModel`. Packed documents marked
    by `reset` see nothing of each other, in recurrence, convolution and attention; with
    reset=None they do.

    Args:
      size: for instance `PAPER["100m"]`.
      vocab_size: number of tokens.
      window: how many keys a query sees, its own included; the default is 1024 steps
        back, as in the code behind the paper. See `LocalAttention`.
      conv_width: how many steps the convolutions see.
      scale_embedding: multiply the embeddings by sqrt(d_model), rounded to bfloat16.
      soft_cap: of the logits, see `LanguageModel`.
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters; recurrences and
        norms are float32 at least.
      implementation: of the scans, see `ssm.ops.rg_lru_scan`.
      rngs: draws the parameters.

    Source: De et al. 2024 (2402.19427), section 2; initial values as in the released
    code.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    mixers = griffin_mixers(
        size,
        window=window,
        conv_width=conv_width,
        implementation=implementation,
        **types,
    )
    scale = float(np.sqrt(size.d_model).astype(jnp.bfloat16)) if scale_embedding else 1
    return LanguageModel(
        gated_blocks(mixers, size.d_model, size.n_layers, d_ff=size.d_ff, **types),
        n_layers=size.n_layers,
        d_model=size.d_model,
        vocab_size=vocab_size,
        tied=True,
        embedding_scale=scale,
        final_norm="gemma",
        soft_cap=soft_cap,
        scan_layers=scan_layers,
        remat=remat,
        rngs=rngs,
        **types,
    )


def recurrent_gemma(
    size: Size, *, rngs: nnx.Rngs, vocab_size: int = 256_000, **options: Any
) -> LanguageModel:
    """RecurrentGemma: a Griffin with scaled embeddings, soft cap and a wider window.

    Args:
      size: `RECURRENT_GEMMA["2b"]` or `["9b"]`.
      rngs: draws the parameters.
      vocab_size: number of tokens.
      **options: those of `griffin`; window is 2049 and soft_cap 30 if not given.

    Source: Botev et al. 2024, RecurrentGemma (2404.07839).
    """
    released: dict[str, Any] = {"window": 2049, "soft_cap": 30.0}
    released["scale_embedding"] = True
    return griffin(size, vocab_size=vocab_size, rngs=rngs, **(released | options))


def hawk_mixers(
    size: Size,
    *,
    conv_width: int = 4,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> tuple[MakeLayer]:
    """The mixers of Hawk in turn, for `gated_blocks`: a recurrence everywhere."""

    def recurrence(rngs):
        return GriffinRecurrence(
            size.d_model,
            size.n_blocks or size.n_heads,
            lru_width=size.lru_width,
            conv_width=conv_width,
            out_variance=2 / size.n_layers,
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )

    return (recurrence,)


def griffin_mixers(
    size: Size,
    *,
    window: int = 1025,
    conv_width: int = 4,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> tuple[MakeLayer, MakeLayer, MakeLayer]:
    """The mixers of Griffin in turn: two recurrences, then local attention."""
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    (recurrence,) = hawk_mixers(
        size, conv_width=conv_width, implementation=implementation, **types
    )

    def attention(rngs):
        return LocalAttention(
            size.d_model,
            size.n_heads,
            window=window,
            n_kv_heads=size.n_kv_heads,
            out_variance=2 / size.n_layers,
            rngs=rngs,
            **types,
        )

    return recurrence, recurrence, attention


def gated_blocks(
    mixers: Pattern,
    d_model: int,
    n_layers: int,
    *,
    d_ff: int | None = None,
    norm: Norm = "gemma",
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Pattern:
    """Griffin's residual block around each of `mixers`: what a `Stack` is made of.

    Args:
      mixers: take turns, in the order of the layers; may be coupled.
      d_model, n_layers: of the whole model; both scale the initial values.
      d_ff: width inside the gated MLP; None is 3 d_model.
      norm, dropout: see `ResidualBlock`.
      dtype, param_dtype: of the computation and of the parameters.

    Source: De et al. 2024 (2402.19427), section 2.1; initial values as in the released
    code.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    make_mlp = functools.partial(
        GatedMLP,
        d_model,
        3 * d_model if d_ff is None else d_ff,
        in_variance=0.5,  # released code counts the axis of gate and up as inputs too
        out_variance=2 / n_layers,
        **types,
    )
    return residual_blocks(
        mixers, make_mlp, d_model, norm=norm, dropout=dropout, **types
    )
