"""HGRN and HGRN2 as language models, in their published sizes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import Norm
from ssm.layers import HGRN2, HGRU, HGRU2D, GatedMLP, LowerBounds
from ssm.layers.hgru import LayerNorm
from ssm.layers.lower_bounds import Convention
from ssm.models.around import residual_blocks
from ssm.models.language_model import LanguageModel
from ssm.models.stack import Coupled, Pattern


class Size(NamedTuple):
    """How large a model of this family is.

    Attributes:
      d_model: width of the residual stream, and of the state of HGRN.
      n_layers: number of blocks.
      d_ff: width inside the GLU.
      n_heads: of HGRN2, whose states are d_model / n_heads squared.
    """

    d_model: int
    n_layers: int
    d_ff: int
    n_heads: int = 1


PAPER = {"wikitext103": Size(512, 6, 1024)}
"""HGRN on WikiText-103: Qin et al. 2023 (2311.04823), section 4.1."""

RELEASED = {"1.3b": Size(2048, 24, 5632), "2.7b": Size(2560, 32, 6912)}
"""The real HGRN of flash-linear-attention, trained on 100 billion tokens."""

TINY = Size(12, 3, 20, n_heads=2)
"""For tests."""

released_init = nnx.initializers.normal(0.02)


def hgrn(
    size: Size,
    *,
    vocab_size: int,
    dropout: float = 0.0,
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
    rngs: nnx.Rngs,
) -> LanguageModel:
    """The HGRN of the paper: complex states, layer norms, biases, a bilinear GLU.

    Its code for WikiText-103 has no activation in the GLU, the bounds of `LowerBounds`
    "shifted", the embeddings multiplied by sqrt(d_model) and used for the output too.

    Shapes, `reset` and the carry are those of `LanguageModel`.

    Args:
      size: for instance `PAPER["wikitext103"]`.
      vocab_size: number of tokens.
      dropout: at the end of both branches of a block.
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters; recurrences are
        float32 at least.
      implementation: of the scans, see `ssm.ops.hgrn_scan`.
      rngs: draws the parameters.

    Source: Qin et al. 2023, HGRN (2311.04823).
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    blocks = hgrn_blocks(
        size,
        convention="shifted",
        activation=nnx.identity,
        dropout=dropout,
        implementation=implementation,
        **types,
    )
    return LanguageModel(
        blocks,
        n_layers=size.n_layers,
        d_model=size.d_model,
        vocab_size=vocab_size,
        tied=True,
        embedding_scale=size.d_model**0.5,
        final_norm=LayerNorm,
        scan_layers=scan_layers,
        remat=remat,
        rngs=rngs,
        **types,
    )


def hgrn_released(
    size: Size, *, rngs: nnx.Rngs, vocab_size: int = 32_000, **options: Any
) -> LanguageModel:
    """The HGRN that was released: real states, RMS norms, no biases, SwiGLU.

    Bounds are those of `LowerBounds` "shifted"; the output map is not the embedding.

    Args:
      size: for instance `RELEASED["1.3b"]`.
      rngs: draws the parameters.
      vocab_size: number of tokens.
      **options: those of `hgrn`, without dropout.

    Source: Qin et al. 2023, HGRN (2311.04823), as in flash-linear-attention.
    """
    mixers = functools.partial(
        hgrn_mixers,
        size.d_model,
        convention="shifted",
        real=True,
        bias=False,
        norm=nnx.RMSNorm,
        kernel_init=released_init,
    )
    return _released(size, mixers, vocab_size, rngs, **options)


def hgrn2(
    size: Size, *, rngs: nnx.Rngs, vocab_size: int = 32_000, **options: Any
) -> LanguageModel:
    """HGRN2: the blocks of the released HGRN around states that are matrices.

    Args: those of `hgrn_released`; the paper has heads 128 wide. `implementation` is
    that of `ssm.ops.lightning_attention`.

    Source: Qin et al. 2024, HGRN2 (2404.07904), as in flash-linear-attention.
    """
    mixers = functools.partial(hgrn2_mixers, size.d_model, size.n_heads)
    return _released(size, mixers, vocab_size, rngs, **options)


def hgrn_blocks(
    size: Size,
    *,
    bidirectional: bool = False,
    convention: Convention = "exclusive",
    activation: Callable[[jax.Array], jax.Array] = nnx.silu,
    norm: Norm = LayerNorm,
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> Pattern:
    """The paper's blocks, with their bounds: what a `Stack` is made of.

    As they stand they are those for Long Range Arena, with bidirectional=True and
    mostly norm="batch".

    Args:
      size: widths and depth.
      bidirectional, convention: see `hgrn_mixers`.
      activation, norm, dropout: see `glu_blocks`.
      dtype, param_dtype, implementation: see `hgrn`.

    Source: Qin et al. 2023, HGRN (2311.04823), section 3.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    mixers = hgrn_mixers(
        size.d_model,
        bidirectional=bidirectional,
        convention=convention,
        implementation=implementation,
        **types,
    )
    return glu_blocks(
        mixers,
        size.d_model,
        size.d_ff,
        activation=activation,
        norm=norm,
        dropout=dropout,
        **types,
    )


def hgrn_mixers(
    d_model: int,
    *,
    convention: Convention,
    bidirectional: bool = False,
    grid: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> Coupled:
    """An `HGRU` in every layer, with the bounds of all: what blocks are put around.

    With `grid` it is an `HGRU2D`, over the rows and columns of a square, which is
    bidirectional. `convention` is that of `LowerBounds`, the others are those of
    `HGRU`.

    Raises ValueError for a grid that is not bidirectional.
    """
    if grid and not bidirectional:
        raise ValueError("hgrn: grid=True looks all ways, wanted bidirectional=True")
    options |= {"param_dtype": param_dtype}

    def mixer(rngs: nnx.Rngs) -> HGRU:
        if grid:
            return HGRU2D(d_model, rngs=rngs, **options)
        return HGRU(d_model, bidirectional=bidirectional, rngs=rngs, **options)

    return Coupled((mixer,), bounds(d_model, convention, param_dtype))


def hgrn2_mixers(
    d_model: int,
    n_heads: int,
    *,
    param_dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> Coupled:
    """An `HGRN2` in every layer, drawn as in released code; else as `hgrn_mixers`.

    Args: those of `HGRN2`.
    """

    def mixer(rngs: nnx.Rngs) -> HGRN2:
        return HGRN2(
            d_model,
            n_heads,
            kernel_init=released_init,
            param_dtype=param_dtype,
            rngs=rngs,
            **options,
        )

    return Coupled((mixer,), bounds(d_model, "shifted", param_dtype))


def glu_blocks(
    mixers: Pattern,
    d_model: int,
    d_ff: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = nnx.silu,
    bias: bool = True,
    norm: Norm = LayerNorm,
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Pattern:
    """Residual blocks with a GLU around `mixers`: what a `Stack` is made of.

    Args:
      mixers: take turns, in the order of the layers; may be coupled.
      d_model, d_ff: widths outside and inside the GLU.
      activation: of its gate.
      bias: whether it has biases. With them its kernels have the variance of the
        paper's uniform draws, without them the deviation 0.02 of released models.
      norm, dropout: see `ResidualBlock`.
      dtype, param_dtype: of the computation and of the parameters.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    make_mlp = functools.partial(
        GatedMLP,
        d_model,
        d_ff,
        activation=activation,
        bias=bias,
        in_variance=1 / 3 if bias else 4e-4 * d_model,
        out_variance=1 / 3 if bias else 4e-4 * d_ff,
        **types,
    )
    return residual_blocks(
        mixers, make_mlp, d_model, norm=norm, dropout=dropout, **types
    )


def bounds(
    width: int, convention: Convention, param_dtype: DTypeLike = jnp.float32
) -> Callable[[int, nnx.Rngs], LowerBounds]:
    """What couples the layers of any HGRN, for a `Coupled` around its mixers."""

    def make(n_layers: int, rngs: nnx.Rngs) -> LowerBounds:
        return LowerBounds(
            n_layers, width, convention=convention, param_dtype=param_dtype
        )

    return make


def _released(
    size: Size,
    mixers: Callable[..., Coupled],
    vocab_size: int,
    rngs: nnx.Rngs,
    *,
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> LanguageModel:
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    blocks = glu_blocks(
        mixers(implementation=implementation, **types),
        size.d_model,
        size.d_ff,
        bias=False,
        norm="rms",
        **types,
    )
    return LanguageModel(
        blocks,
        n_layers=size.n_layers,
        d_model=size.d_model,
        vocab_size=vocab_size,
        head=plain_head,
        final_norm="rms",
        scan_layers=scan_layers,
        remat=remat,
        rngs=rngs,
        **types,
    )


plain_head = functools.partial(nnx.Linear, use_bias=False, kernel_init=released_init)
"""An output map without biases, drawn with a deviation of 0.02."""
