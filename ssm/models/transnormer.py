"""TransNormerLLM as a language model, in its published sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers import DecaySlopes, LightningAttention
from ssm.layers.lightning_attention import SimpleRMSNorm
from ssm.models.hgrn import glu_blocks
from ssm.models.language_model import LanguageModel
from ssm.models.stack import Coupled, MakeLayer, Pattern


class Size(NamedTuple):
    """How large a TransNormerLLM is.

    Attributes:
      d_model: width of the residual stream and of the attention.
      n_layers: number of blocks.
      n_heads: of the attention.
      d_ff: width inside the GLU.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int


RELEASED = {
    "385m": Size(1024, 24, 8, 2816),
    "1b": Size(2048, 16, 16, 5632),
    "7b": Size(4096, 30, 32, 11008),
}
"""Qin et al. 2024 (2307.14995), table 12 and released models."""

TINY = Size(12, 3, 2, 20)
"""For tests."""


def transnormer(
    size: Size,
    *,
    vocab_size: int,
    scale_embedding: bool = True,
    turned: bool = True,
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
    rngs: nnx.Rngs,
) -> LanguageModel:
    """TransNormerLLM: lightning attention, then a GLU without activation, and again.

    Every norm is x / sqrt(mean(x^2) + 1e-6); the embeddings are the output map too.

    Shapes, `reset` and the carry are those of `LanguageModel`.

    Args:
      size: for instance `RELEASED["385m"]`.
      vocab_size: number of tokens.
      scale_embedding: multiply the embeddings by sqrt(d_model); the 7b does not.
      turned: whether the lowest layer has learned rotary positions, see
        `LightningAttention`. The others never do. With it no two layers are of a kind,
        so that `scan_layers` saves nothing.
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters; decays and states
        are float32 at least.
      implementation: of the recurrence, see `ssm.ops.lightning_attention`.
      rngs: draws the parameters.

    Source: Qin et al. 2024, TransNormerLLM (2307.14995), section 3.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    blocks = transnormer_blocks(
        size, turned=turned, implementation=implementation, **types
    )
    return LanguageModel(
        blocks,
        n_layers=size.n_layers,
        d_model=size.d_model,
        vocab_size=vocab_size,
        tied=True,
        embedding_scale=size.d_model**0.5 if scale_embedding else 1.0,
        final_norm=SimpleRMSNorm,
        scan_layers=scan_layers,
        remat=remat,
        rngs=rngs,
        **types,
    )


def transnormer_blocks(
    size: Size,
    *,
    turned: bool = True,
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> Pattern:
    """The blocks of a TransNormerLLM with their slopes: what a `Stack` is made of.

    Args: those of `transnormer`; dropout is that of `ResidualBlock`.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    mixers = transnormer_mixers(
        size.d_model,
        size.n_layers,
        size.n_heads,
        turned=turned,
        implementation=implementation,
        **types,
    )
    return glu_blocks(
        mixers,
        size.d_model,
        size.d_ff,
        activation=nnx.identity,
        bias=False,
        norm=SimpleRMSNorm,
        dropout=dropout,
        **types,
    )


def transnormer_mixers(
    d_model: int,
    n_layers: int,
    n_heads: int,
    *,
    turned: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> Coupled:
    """The attention of every layer, with the slopes of all: what blocks are put around.

    Args: sizes, and those of `transnormer`.
    """

    def builder(turned: bool) -> MakeLayer:
        return lambda rngs: LightningAttention(
            d_model,
            n_heads,
            turned=turned,
            kernel_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )

    first, rest = builder(turned), builder(False)
    pattern = (first, *(rest,) * (n_layers - 1)) if turned else (rest,)
    return Coupled(pattern, slopes(n_heads))


def slopes(n_heads: int) -> Callable[[int, nnx.Rngs], DecaySlopes]:
    """What couples the layers of a TransNormerLLM: how fast each of them forgets."""

    def make(n_layers: int, rngs: nnx.Rngs) -> DecaySlopes:
        return DecaySlopes(n_layers, n_heads, kind="transnormer")

    return make
