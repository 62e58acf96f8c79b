"""MiniMax-Text-01 as a language model: lightning and softmax attention, and experts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import apply_mlp, make_norm
from ssm.layers import Attention, DecaySlopes, LightningAttention, MixtureOfExperts
from ssm.layers.base import Carry, SequenceLayer, Stepping, wanted
from ssm.models.around import around_each
from ssm.models.hgrn import plain_head
from ssm.models.language_model import LanguageModel
from ssm.models.stack import Coupled, MakeBlock, MakeLayer, Pattern

RMSNorm = functools.partial(nnx.RMSNorm, epsilon=1e-5)
"""That of the blocks; the one inside the lightning attention has 1e-6."""


class Size(NamedTuple):
    """How large a model of this kind is.

    Attributes:
      d_model: width of the residual stream.
      n_layers: number of blocks.
      n_heads, head_dim: of both attentions.
      n_kv_heads: heads of keys and values of the softmax attention.
      d_ff: width inside an expert.
      n_experts, top_k: see `MixtureOfExperts`.
      every: of so many blocks the last has softmax attention, the others lightning.
    """

    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    n_kv_heads: int
    d_ff: int
    n_experts: int
    top_k: int = 2
    every: int = 8


RELEASED = {"text-01": Size(6144, 80, 64, 128, 8, 9216, 32)}
"""MiniMax 2025 (2501.08313), section 2."""

TINY = Size(12, 4, 2, 8, 1, 10, n_experts=3, every=3)
"""For tests: a round of blocks and one more."""


class MiniMaxBlock(Stepping, nnx.Module):
    """A residual block whose residual is taken after the norm.

        u = norm(x),       z = alpha u + mixer(u)
        v = mlp_norm(z),   y = alpha v + mlp(v)

    Shapes: x (B, T, d_model) -> y (B, T, d_model); the carry is the mixer's. Called as
    `ssm.blocks.ResidualBlock` is, without dropout.

    Source: MiniMax 2025 (2501.08313), section 2; DeepNorm, Wang et al. 2022
    (2203.00555).
    """

    def __init__(
        self,
        mixer: SequenceLayer,
        mlp: nnx.Module,
        d_model: int,
        *,
        alpha: float,
        norm: Callable[..., nnx.Module] = RMSNorm,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.alpha, self.mixer, self.mlp = alpha, mixer, mlp
        self.norm = make_norm(norm, d_model, rngs=rngs, **types)
        self.mlp_norm = make_norm(norm, d_model, rngs=rngs, **types)

    @property
    def causal(self) -> bool:
        return self.mixer.causal

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
        **per_layer: jax.Array | None,
    ) -> tuple[jax.Array, Carry]:
        u = self.norm(x)
        own = wanted(self.mixer, per_layer | {"key": key, "mask": mask})
        z, carry = self.mixer(u, carry, reset=reset, **own)
        v = self.mlp_norm(self.alpha * u + z)
        return self.alpha * v + apply_mlp(self.mlp, v, train=train), carry

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return self.mixer.init_carry(batch_size, max_length=max_length)


def minimax(
    size: Size,
    *,
    vocab_size: int = 200_064,
    rope_fraction: float = 0.5,
    rope_theta: float = 1e7,
    alpha: float | None = None,
    balance_weight: float = 0.0,
    scan_layers: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
    rngs: nnx.Rngs,
) -> LanguageModel:
    """MiniMax-Text-01: in each round of blocks one has softmax attention, the last.

    Shapes, `reset` and the carry are those of `LanguageModel`; because of the softmax
    attention `init_carry` wants a max_length. Prompts are padded on the left, with a
    reset at their first token.

    Args:
      size: for instance `RELEASED["text-01"]`.
      vocab_size: number of tokens.
      rope_fraction, rope_theta: see `ssm.layers.rope.rotate`. It was trained with half
        of each head turned; transformers 5.23 turns all of it.
      alpha: of `MiniMaxBlock`; None is (2 n_layers)^(1/4), as released.
      balance_weight: see `MixtureOfExperts`.
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters; decays and states
        are float32 at least.
      implementation: of the recurrence, see `ssm.ops.lightning_attention`.
      rngs: draws the parameters.

    Source: MiniMax 2025 (2501.08313), section 2, and released code.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    blocks = minimax_blocks(
        size,
        rope_fraction=rope_fraction,
        rope_theta=rope_theta,
        alpha=alpha,
        balance_weight=balance_weight,
        implementation=implementation,
        **types,
    )
    return LanguageModel(
        blocks,
        n_layers=size.n_layers,
        d_model=size.d_model,
        vocab_size=vocab_size,
        head=plain_head,
        final_norm=RMSNorm,
        scan_layers=scan_layers,
        remat=remat,
        rngs=rngs,
        **types,
    )


def minimax_blocks(
    size: Size,
    *,
    rope_fraction: float = 0.5,
    rope_theta: float = 1e7,
    alpha: float | None = None,
    balance_weight: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> Pattern:
    """The blocks in turn, with the slopes of their layers: what a `Stack` is made of.

    Args: those of `minimax`.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    mixers = minimax_mixers(
        size.d_model,
        size.n_heads,
        head_dim=size.head_dim,
        n_kv_heads=size.n_kv_heads,
        every=size.every,
        rope_fraction=rope_fraction,
        rope_theta=rope_theta,
        implementation=implementation,
        **types,
    )
    return expert_blocks(
        mixers,
        size.d_model,
        size.d_ff,
        n_experts=size.n_experts,
        top_k=size.top_k,
        alpha=(2 * size.n_layers) ** 0.25 if alpha is None else alpha,
        balance_weight=balance_weight,
        **types,
    )


def minimax_mixers(
    d_model: int,
    n_heads: int,
    *,
    head_dim: int,
    n_kv_heads: int,
    every: int,
    rope_fraction: float = 0.5,
    rope_theta: float = 1e7,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> Coupled:
    """The attentions in turn, with the slopes of all layers.

    Args: those of `Size` and of `minimax`.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    def lightning(rngs: nnx.Rngs) -> SequenceLayer:
        return LightningAttention(
            d_model,
            n_heads,
            head_dim=head_dim,
            activate_value=True,
            gate_activation=nnx.sigmoid,
            norm=nnx.RMSNorm,
            implementation=implementation,
            rngs=rngs,
            **types,
        )

    def softmax(rngs: nnx.Rngs) -> SequenceLayer:
        return Attention(
            d_model,
            n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rope_fraction=rope_fraction,
            rope_theta=rope_theta,
            rngs=rngs,
            **types,
        )

    def slopes(n_layers: int, rngs: nnx.Rngs) -> DecaySlopes:
        return DecaySlopes(n_layers, n_heads, kind="minimax")

    return Coupled((*(lightning,) * (every - 1), softmax), slopes)


def expert_blocks(
    mixers: Pattern,
    d_model: int,
    d_ff: int,
    *,
    n_experts: int,
    top_k: int,
    alpha: float,
    balance_weight: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Pattern:
    """A `MiniMaxBlock` with experts around each of `mixers`.

    Args:
      mixers: take turns, in the order of the layers; may be coupled.
      d_model, d_ff, n_experts, top_k, balance_weight: see `MixtureOfExperts`.
      alpha: of `MiniMaxBlock`.
      dtype, param_dtype: of the computation and of the parameters.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

    def around(make_mixer: MakeLayer) -> MakeBlock:
        def make_block(rngs: nnx.Rngs) -> MiniMaxBlock:
            mixer = make_mixer(rngs)
            mlp = MixtureOfExperts(
                d_model,
                d_ff,
                n_experts=n_experts,
                top_k=top_k,
                balance_weight=balance_weight,
                rngs=rngs,
                **types,
            )
            return MiniMaxBlock(mixer, mlp, d_model, alpha=alpha, rngs=rngs, **types)

        return make_block

    return around_each(mixers, around)
