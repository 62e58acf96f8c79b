"""MiniMax-Text-01: its configuration and its names in transformers."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from flax import nnx
from jax.typing import DTypeLike

from ssm.layers import Attention, LightningAttention, MixtureOfExperts
from ssm.layers.rope import channels_turned
from ssm.models import LanguageModel, minimax
from ssm.models.minimax import MiniMaxBlock
from ssm.pretrained.architecture import Architecture
from ssm.pretrained.hub_config import HubConfig
from ssm.pretrained.names import Name, Table, linear, prefixed, transposed

# What transformers lets one choose and the released model does not use.
ALPHAS = ("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor")
FIXED = {
    "full_attn_beta_factor": 1.0,
    "hidden_act": "silu",
    "linear_attn_beta_factor": 1.0,
    "mlp_beta_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# What the released file says besides, and transformers takes for granted.
ORIGINAL = {"postnorm": True, "shared_intermediate_size": 0}
ROPE = {"rope_type": "default"}
LIGHTNING, SOFTMAX = "linear_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class MiniMax(Architecture):
    """`MiniMaxForCausalLM`: `ssm.models.minimax.minimax`.

    transformers 5.23 turns whole heads whatever `rotary_dim` says; the released model
    was trained with half of each, as its configuration has it, and is run so here. Set
    `rotary_dim` to the width of a head for what transformers computes.

    Source: MiniMax 2025 (2501.08313), as in transformers.

    Attributes:
      size: widths and numbers of layers, heads and experts.
      vocab_size, rope_fraction, rope_theta, alpha: see `ssm.models.minimax.minimax`.
    """

    size: minimax.Size
    vocab_size: int
    rope_fraction: float
    rope_theta: float
    alpha: float

    model_type: ClassVar = "minimax"
    parts: ClassVar = (
        MiniMaxBlock,
        nnx.RMSNorm,
        LightningAttention,
        Attention,
        MixtureOfExperts,
    )
    made_anew: ClassVar = (
        ".slope_rate",
        ".query_decay",
        ".key_decay",
        ".diagonal_decay",
    )
    indifferent: ClassVar = frozenset(
        """
        block_size output_router_logits router_aux_loss_coef router_jitter_noise
        shared_moe_mode
        """.split()
    )

    def build(self, dtype: DTypeLike, rngs: nnx.Rngs) -> LanguageModel:
        return minimax.minimax(
            self.size,
            vocab_size=self.vocab_size,
            rope_fraction=self.rope_fraction,
            rope_theta=self.rope_theta,
            alpha=self.alpha,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )

    @classmethod
    def of(cls, model: LanguageModel) -> Self:
        blocks: Any = model.stack.blocks
        mixers, experts = [block.mixer for block in blocks], blocks[0].mlp
        softmax = [mixer for mixer in mixers if isinstance(mixer, Attention)]
        vocab_size, d_model = model.encoder.embedding.shape
        size = minimax.Size(
            d_model,
            len(mixers),
            mixers[0].n_heads,
            mixers[0].head_dim,
            softmax[0].n_kv_heads if softmax else mixers[0].n_heads,
            experts.gate.shape[-1],
            experts.n_experts,
            experts.top_k,
            every=model.stack.n_builders,
        )
        return cls(
            size,
            vocab_size,
            rope_fraction=softmax[0].rope_fraction if softmax else 1.0,
            rope_theta=softmax[0].rope_theta if softmax else 1e6,
            alpha=blocks[0].alpha,
        )

    @classmethod
    def from_hub(cls, config: HubConfig) -> Self:
        config.fixed(FIXED | ORIGINAL)
        d_model = config.integer("hidden_size")
        n_layers = config.integer("num_hidden_layers")
        n_heads = config.integer("num_attention_heads")
        head_dim = config.integer_or("head_dim", d_model // n_heads)
        size = minimax.Size(
            d_model,
            n_layers,
            n_heads,
            head_dim,
            config.integer_or("num_key_value_heads", n_heads),
            config.integer("intermediate_size"),
            config.integer("num_local_experts"),
            config.integer("num_experts_per_tok"),
            every=_every(config, n_layers),
        )
        alpha, *others = (config.number_or(key, 1.0) for key in ALPHAS)
        for key, other in zip(ALPHAS[1:], others, strict=True):
            if other != alpha:
                raise config.wrong(key, f"{alpha}, the same as {ALPHAS[0]}")
        rope = config.section("rope_parameters")
        part = rope.number_or("partial_rotary_factor", 1.0)
        width = config.integer_or("rotary_dim", channels_turned(part, head_dim))
        if width % 2 or width > head_dim:
            raise config.wrong("rotary_dim", f"an even number up to {head_dim}")
        turned = width / head_dim
        rope.fixed(ROPE | {"partial_rotary_factor": turned})
        theta = config.number_or("rope_theta", 1e6)  # where versions before 5 have it
        return cls(
            size,
            config.integer("vocab_size"),
            rope_fraction=turned,
            rope_theta=rope.number_or("rope_theta", theta),
            alpha=alpha,
        )

    def to_hub(self) -> dict[str, Any]:
        size = self.size
        width = channels_turned(self.rope_fraction, size.head_dim)
        if width == 0:
            raise ValueError(
                f"transformers has no model with rope_fraction={self.rope_fraction}, "
                f"none of {size.head_dim} channels: wanted two at least"
            )
        rope = {
            "partial_rotary_factor": width / size.head_dim,
            "rope_theta": self.rope_theta,
        }
        return {
            "architectures": ["MiniMaxForCausalLM"],
            "model_type": self.model_type,
            "head_dim": size.head_dim,
            "hidden_size": size.d_model,
            "intermediate_size": size.d_ff,
            "layer_types": _kinds(size.every, size.n_layers),
            "num_attention_heads": size.n_heads,
            "num_experts_per_tok": size.top_k,
            "num_hidden_layers": size.n_layers,
            "num_key_value_heads": size.n_kv_heads,
            "num_local_experts": size.n_experts,
            "rope_parameters": rope | ROPE,
            "rope_theta": self.rope_theta,
            "rotary_dim": width,
            "vocab_size": self.vocab_size,
            **dict.fromkeys(ALPHAS, self.alpha),
            **FIXED,
        }

    def hub_names(self) -> Table:
        size = self.size
        table: Table = {
            ("encoder", "embedding"): Name("model.embed_tokens.weight"),
            ("norm", "scale"): Name("model.norm.weight"),
        }
        table |= linear("head", "lm_head", bias=False)
        for i, kind in enumerate(_kinds(size.every, size.n_layers)):
            path = ("stack", "blocks", i)
            mixer = SOFTMAX_NAMES if kind == SOFTMAX else lightning(size.n_heads)
            block: Table = (
                {
                    ("norm", "scale"): Name("input_layernorm.weight"),
                    ("mlp_norm", "scale"): Name("post_attention_layernorm.weight"),
                }
                | prefixed(("mixer",), "self_attn.", mixer)
                | prefixed(("mlp",), "block_sparse_moe.", experts(size.n_experts))
            )
            table |= prefixed(path, f"model.layers.{i}.", block)
        return table


def _kinds(every: int, n_layers: int) -> list[str]:
    return [LIGHTNING if (i + 1) % every else SOFTMAX for i in range(n_layers)]


def _every(config: HubConfig, n_layers: int) -> int:
    """Of how many layers one has softmax attention, the last of them."""
    key = "layer_types"
    kinds = config.get(key)
    if not isinstance(kinds, Sequence) or len(kinds) != n_layers:
        raise config.wrong(key, f"{LIGHTNING!r} or {SOFTMAX!r} for all {n_layers}")
    every = [*kinds, SOFTMAX].index(SOFTMAX) + 1
    if [*kinds] != _kinds(every, n_layers):
        raise config.wrong(
            key,
            f"{SOFTMAX!r} as the last of every so many layers and {LIGHTNING!r} before "
            "it: nothing else is implemented",
        )
    return every


SOFTMAX_NAMES: Table = (
    linear("query", "q_proj", bias=False)
    | linear("key", "k_proj", bias=False)
    | linear("value", "v_proj", bias=False)
    | linear("out", "o_proj", bias=False)
)


def lightning(n_heads: int) -> Table:
    """The names in lightning attention."""

    def part(place: int) -> Name:
        def ours(weight: Any) -> Any:
            turns = weight.reshape(n_heads, 3, -1, weight.shape[1])
            return turns[:, place].reshape(-1, weight.shape[1]).T

        return Name("qkv_proj.weight", ours, theirs)

    def theirs(*kernels: Any) -> Any:
        """Rows of queries, keys and values that take turns by heads."""
        turns = [kernel.T.reshape(n_heads, 1, -1, len(kernel)) for kernel in kernels]
        concat = turns[0].__array_namespace__().concat
        return concat(turns, axis=1).reshape(-1, len(kernels[0]))

    table: Table = {
        (ours, "kernel"): part(place)
        for place, ours in enumerate(("query", "key", "value"))
    }
    return (
        table
        | {("norm", "scale"): Name("norm.weight")}
        | linear("gate", "output_gate", bias=False)
        | linear("out", "out_proj", bias=False)
    )


def experts(count: int) -> Table:
    """The names in a mixture of experts."""

    def each(letter: str) -> list[Name]:
        return [transposed(f"experts.{i}.{letter}.weight") for i in range(count)]

    table: Table = {("gate",): each("w1"), ("up",): each("w3"), ("down",): each("w2")}
    return table | linear("router", "gate", bias=False)
