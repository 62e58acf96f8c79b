"""RecurrentGemma: its configuration and its names in transformers and at DeepMind.

What the two call alike has the same numbers in both; `a_param` is stored with the same
sign. Published code differs in the window, see `ssm.layers.LocalAttention`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import GemmaNorm, ResidualBlock
from ssm.layers import GatedMLP, GriffinRecurrence, LocalAttention
from ssm.models import LanguageModel, griffin
from ssm.pretrained.architecture import Architecture
from ssm.pretrained.hub_config import HubConfig
from ssm.pretrained.names import Name, Table, linear, part_of, prefixed

PATTERN = ("recurrent", "recurrent", "attention")
# What transformers lets one choose and all released models have alike.
ROPE = {"partial_rotary_factor": 0.5, "rope_theta": 10_000.0}
FIXED = {
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


@dataclasses.dataclass(frozen=True)
class RecurrentGemma(Architecture):
    """What a RecurrentGemma, or a Griffin, is apart from its weights.

    The defaults are those of the released models as DeepMind trained them, so
    `RecurrentGemma(griffin.RECURRENT_GEMMA["2b"])` is the smaller one.

    Source: Botev et al. 2024 (2404.07839).

    Attributes:
      size: widths and numbers of layers and heads.
      vocab_size, window, conv_width, scale_embedding, soft_cap: see
        `ssm.models.griffin.griffin`. DeepMind's `attention_window_size` is one less
        than `window`; that of transformers is `window`.
    """

    size: griffin.Size
    vocab_size: int = 256_000
    window: int = 2049
    conv_width: int = 4
    scale_embedding: bool = True
    soft_cap: float | None = 30.0

    model_type: ClassVar = "recurrent_gemma"
    parts: ClassVar = (
        ResidualBlock,
        GemmaNorm,
        GriffinRecurrence,
        LocalAttention,
        GatedMLP,
        nnx.Dropout,
    )
    copies: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}
    indifferent: ClassVar = frozenset(
        ("final_w_init_variance_scale", "w_init_variance_scale")
    )

    def build(self, dtype: DTypeLike, rngs: nnx.Rngs) -> LanguageModel:
        return griffin.griffin(
            self.size,
            vocab_size=self.vocab_size,
            window=self.window,
            conv_width=self.conv_width,
            scale_embedding=self.scale_embedding,
            soft_cap=self.soft_cap,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )

    @classmethod
    def of(cls, model: LanguageModel) -> Self:
        mixers: list[Any] = [block.mixer for block in model.stack.blocks]
        recurrences = [m for m in mixers if isinstance(m, GriffinRecurrence)]
        attentions: list[Any] = [m for m in mixers if isinstance(m, LocalAttention)]
        if not recurrences:
            raise ValueError("a model without recurrences is no RecurrentGemma")
        recurrence, mlp = recurrences[0], model.stack.blocks[0].mlp
        n_blocks = recurrence.rg_lru.a_gate.n_blocks
        vocab_size, d_model = model.encoder.embedding.shape
        size = griffin.Size(
            d_model,
            len(mixers),
            attentions[0].n_heads if attentions else n_blocks,
            lru_width=recurrence.rg_lru.d_model,
            d_ff=mlp.down.in_features,
            n_kv_heads=attentions[0].n_kv_heads if attentions else 1,
            n_blocks=n_blocks,
        )
        return cls(
            size,
            vocab_size=vocab_size,
            window=attentions[0].window if attentions else cls.window,
            conv_width=recurrence.conv.width,
            scale_embedding=model.embedding_scale != 1,
            soft_cap=model.soft_cap,
        )

    @classmethod
    def from_hub(cls, config: HubConfig) -> Self:
        """Reads a `config.json` of transformers.

        Its window is taken as it is there: the released models say 2048, while they
        were trained with the 2049 keys that DeepMind's code makes of that number. Write
        2049 into the file to run them as they were trained.
        """
        config.fixed(FIXED | ROPE | {"embeddings_scale_by_sqrt_dim": True})
        rope = config.section("rope_parameters")  # where transformers 5 has them
        rope.fixed(ROPE | {"rope_type": "default"})
        n_layers = config.integer("num_hidden_layers")
        d_model = config.integer("hidden_size")
        n_heads = config.integer("num_attention_heads")
        key = "_block_types" if "_block_types" in config.values else "block_types"
        kinds = config.get(key, PATTERN)
        if not isinstance(kinds, Sequence) or not kinds:
            raise config.wrong(key, f"{list(PATTERN)}")
        if _cycle(kinds, n_layers) != _cycle(PATTERN, n_layers):
            raise config.wrong(key, f"{list(PATTERN)}: nothing else is implemented")
        d_ff = config.integer("intermediate_size")
        if d_ff % 2:
            raise config.wrong("intermediate_size", "an even number, twice the width")
        if d_model % n_heads:
            raise config.wrong("num_attention_heads", f"a divisor of {d_model}")
        config.fixed({"head_dim": d_model // n_heads})
        size = griffin.Size(
            d_model,
            n_layers,
            n_heads,
            lru_width=config.integer_or("lru_width", d_model),
            d_ff=d_ff // 2,
            n_kv_heads=config.integer_or("num_key_value_heads", n_heads),
        )
        return cls(
            size,
            vocab_size=config.integer("vocab_size"),
            window=config.integer("attention_window_size"),
            conv_width=config.integer("conv1d_width"),
            soft_cap=config.number("logits_soft_cap"),
        )

    def to_hub(self) -> dict[str, Any]:
        """Writes a `config.json` of transformers.

        Raises ValueError for a Griffin that is no RecurrentGemma: transformers always
        scales embeddings and caps logits, and has as many gate blocks as heads.
        """
        size = self.size
        n_blocks = size.n_blocks or size.n_heads
        if (
            not self.scale_embedding
            or self.soft_cap is None
            or n_blocks != size.n_heads
        ):
            raise ValueError(
                f"transformers has no model with scale_embedding={self.scale_embedding}"
                f", soft_cap={self.soft_cap}, n_blocks={n_blocks}, "
                f"n_heads={size.n_heads}: wanted True, a number, and as many blocks as "
                "heads"
            )
        return {
            "architectures": ["RecurrentGemmaForCausalLM"],
            "model_type": self.model_type,
            "attention_window_size": self.window,
            "block_types": list(PATTERN),
            "conv1d_width": self.conv_width,
            "head_dim": size.d_model // size.n_heads,
            "hidden_size": size.d_model,
            "intermediate_size": 2 * (size.d_ff or 3 * size.d_model),
            "logits_soft_cap": self.soft_cap,
            "lru_width": size.lru_width or size.d_model,
            "num_attention_heads": size.n_heads,
            "num_hidden_layers": size.n_layers,
            "num_key_value_heads": size.n_kv_heads,
            "vocab_size": self.vocab_size,
            **FIXED,
            **ROPE,
        }

    def hub_names(self) -> Table:
        """The names in `RecurrentGemmaForCausalLM`."""
        table: Table = {
            ("encoder", "embedding"): Name("model.embed_tokens.weight"),
            ("norm", "scale"): Name("model.final_norm.weight"),
        }
        for i, kind in enumerate(_cycle(PATTERN, self.size.n_layers)):
            path = ("stack", "blocks", i)
            table |= prefixed(path, f"model.layers.{i}.", hub_block(kind))
        return table

    def flax_names(self) -> Table:
        """The names in DeepMind's flax checkpoints, below "params"."""
        table: Table = {
            ("encoder", "embedding"): Name("embedder/input_embedding"),
            ("norm", "scale"): Name("final_norm/scale"),
        }
        for i, kind in enumerate(_cycle(PATTERN, self.size.n_layers)):
            path = ("stack", "blocks", i)
            table |= prefixed(path, f"blocks.{i}/", flax_block(kind))
        return table


def _cycle(kinds: Any, n_layers: int) -> list[Any]:
    return [kinds[i % len(kinds)] for i in range(n_layers)]


FLAX_RG_LRU: Table = {
    ("a_param",): Name("a_param"),
    ("a_gate", "kernel"): Name("a_gate/w"),
    ("a_gate", "bias"): Name("a_gate/b"),
    ("input_gate", "kernel"): Name("input_gate/w"),
    ("input_gate", "bias"): Name("input_gate/b"),
}
FLAX_CONV: Table = {("kernel",): Name("w"), ("bias",): Name("b")}
FLAX_RECURRENT: Table = (
    {
        (layer, kind): Name(f"{layer}/{kind}")
        for layer in ("linear_x", "linear_y", "linear_out")
        for kind in ("kernel", "bias")
    }
    | prefixed(("conv",), "conv_1d/", FLAX_CONV)
    | prefixed(("rg_lru",), "rg_lru/", FLAX_RG_LRU)
)
FLAX_ATTENTION: Table = {
    ("query", "kernel"): Name("proj_q/kernel"),
    ("key", "kernel"): Name("proj_k/kernel"),
    ("value", "kernel"): Name("proj_v/kernel"),
    ("out", "kernel"): Name("proj_final/kernel"),
    ("out", "bias"): Name("proj_final/bias"),
}
FLAX_MLP: Table = {
    ("gate", "kernel"): part_of("ffw_up/w", 0),
    ("gate", "bias"): part_of("ffw_up/b", 0, 0, 0),
    ("up", "kernel"): part_of("ffw_up/w", 1),
    ("up", "bias"): part_of("ffw_up/b", 1, 0, 0),
    ("down", "kernel"): Name("ffw_down/kernel"),
    ("down", "bias"): Name("ffw_down/bias"),
}


def flax_block(kind: str) -> Table:
    """DeepMind's names in a residual block, `kind` "recurrent" or "attention"."""
    mixer = {"recurrent": FLAX_RECURRENT, "attention": FLAX_ATTENTION}[kind]
    return (
        {
            ("norm", "scale"): Name("temporal_pre_norm/scale"),
            ("mlp_norm", "scale"): Name("channel_pre_norm/scale"),
        }
        | prefixed(("mixer",), f"{kind}_block/", mixer)
        | prefixed(("mlp",), "mlp_block/", FLAX_MLP)
    )


HUB_RG_LRU: Table = {
    ("a_param",): Name("recurrent_param"),
    ("a_gate", "kernel"): Name("recurrent_gate_weight"),
    ("a_gate", "bias"): Name("recurrent_gate_bias"),
    ("input_gate", "kernel"): Name("input_gate_weight"),
    ("input_gate", "bias"): Name("input_gate_bias"),
}
HUB_RECURRENT: Table = (
    linear("linear_x", "linear_x")
    | linear("linear_y", "linear_y")
    | linear("linear_out", "linear_out")
    | {
        # A grouped convolution of torch has an axis of one input channel per group.
        ("conv", "kernel"): Name(
            "conv_1d.weight", lambda w: w[:, 0].T, lambda kernel: kernel.T[:, None]
        ),
        ("conv", "bias"): Name("conv_1d.bias"),
    }
    | prefixed(("rg_lru",), "rg_lru.", HUB_RG_LRU)
)
HUB_ATTENTION: Table = (
    linear("query", "q_proj", bias=False)
    | linear("key", "k_proj", bias=False)
    | linear("value", "v_proj", bias=False)
    | linear("out", "o_proj")
)
HUB_MLP: Table = (
    linear("gate", "gate_proj") | linear("up", "up_proj") | linear("down", "down_proj")
)


def hub_block(kind: str) -> Table:
    """The names of transformers in a residual block, `kind` as in `flax_block`."""
    mixer = {"recurrent": HUB_RECURRENT, "attention": HUB_ATTENTION}[kind]
    return (
        {
            ("norm", "scale"): Name("temporal_pre_norm.weight"),
            ("mlp_norm", "scale"): Name("channel_pre_norm.weight"),
        }
        | prefixed(("mixer",), "temporal_block.", mixer)
        | prefixed(("mlp",), "mlp_block.", HUB_MLP)
    )
