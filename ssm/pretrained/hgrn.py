"""HGRN as it was released: its configuration and names in flash-linear-attention."""

import abc
import dataclasses
from typing import Any, ClassVar, Self

from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import ResidualBlock
from ssm.layers import HGRU, GatedMLP
from ssm.models import LanguageModel, hgrn
from ssm.pretrained.architecture import Architecture
from ssm.pretrained.hub_config import HubConfig
from ssm.pretrained.names import Name, Table, linear, prefixed

# What flash-linear-attention lets one choose and all released models have alike.
FIXED = {
    "elementwise_affine": True,
    "hidden_act": "swish",
    "norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_lower_bound": True,
    "use_short_conv": False,
}
OLD = {"rms_norm_eps": 1e-6}
"""What files of older versions have in the place of some of these."""


@dataclasses.dataclass(frozen=True)
class Released(Architecture):
    """What a released HGRN, of either kind, is apart from its weights.

    Attributes:
      size: widths and numbers of layers and heads.
      vocab_size: number of tokens.
    """

    size: hgrn.Size
    vocab_size: int

    name: ClassVar[str]
    indifferent: ClassVar = frozenset(
        """
        attn_mode conv_size share_conv_kernel fuse_norm fuse_swiglu fuse_cross_entropy
        fuse_linear_cross_entropy use_l2warp
        """.split()
    )

    @classmethod
    def of(cls, model: LanguageModel) -> Self:
        block: Any = model.stack.blocks[0]
        vocab_size, d_model = model.encoder.embedding.shape
        n_heads = getattr(block.mixer, "n_heads", 1)
        d_ff = block.mlp.down.in_features
        size = hgrn.Size(d_model, model.stack.n_layers, d_ff, n_heads)
        return cls(size, vocab_size)

    @classmethod
    def from_hub(cls, config: HubConfig) -> Self:
        config.fixed(FIXED | OLD)
        d_model = config.integer("hidden_size")
        ratio = config.integer_or("hidden_ratio", 4)
        usual = -(-(2 * ratio * d_model // 3) // 256) * 256  # rounded up
        d_ff = config.integer_or("intermediate_size", usual)
        n_layers = config.integer("num_hidden_layers")
        size = hgrn.Size(d_model, n_layers, d_ff, cls.heads(config, d_model))
        return cls(size, config.integer("vocab_size"))

    @classmethod
    @abc.abstractmethod
    def heads(cls, config: HubConfig, d_model: int) -> int:
        """How many heads a `config.json` asks for."""

    def to_hub(self) -> dict[str, Any]:
        return {
            "architectures": [self.name],
            "model_type": self.model_type,
            "hidden_size": self.size.d_model,
            "intermediate_size": self.size.d_ff,
            "num_hidden_layers": self.size.n_layers,
            "vocab_size": self.vocab_size,
            **FIXED,
        }

    def hub_names(self) -> Table:
        table: Table = {
            ("encoder", "embedding"): Name("model.embeddings.weight"),
            ("stack", "coupling", "gamma"): Name("model.lower_bounds"),
            ("norm", "scale"): Name("model.norm.weight"),
        }
        table |= linear("head", "lm_head", bias=False)
        block: Table = (
            {
                ("norm", "scale"): Name("attn_norm.weight"),
                ("mlp_norm", "scale"): Name("mlp_norm.weight"),
            }
            | prefixed(("mixer",), "attn.", self.mixer_names())
            | prefixed(("mlp",), "mlp.", MLP)
        )
        for i in range(self.size.n_layers):
            table |= prefixed(("stack", "blocks", i), f"model.layers.{i}.", block)
        return table

    @abc.abstractmethod
    def mixer_names(self) -> Table:
        """The names of the parameters of a mixer."""


MLP: Table = (
    linear("gate", "gate_proj", bias=False)
    | linear("up", "up_proj", bias=False)
    | linear("down", "down_proj", bias=False)
)


class HGRN(Released):
    """`HGRNForCausalLM`: `ssm.models.hgrn.hgrn_released`.

    Source: Qin et al. 2023, HGRN (2311.04823), as in flash-linear-attention.
    """

    model_type: ClassVar = "hgrn"
    name: ClassVar = "HGRNForCausalLM"
    parts: ClassVar = (ResidualBlock, nnx.RMSNorm, HGRU, GatedMLP, nnx.Dropout)

    def build(self, dtype: DTypeLike, rngs: nnx.Rngs) -> LanguageModel:
        return hgrn.hgrn_released(
            self.size,
            vocab_size=self.vocab_size,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )

    @classmethod
    def heads(cls, config: HubConfig, d_model: int) -> int:
        # The number of heads of older versions: channels do not meet, whatever it is.
        config.get("num_heads")
        config.fixed({"expand_ratio": 1})
        return 1

    def to_hub(self) -> dict[str, Any]:
        return super().to_hub() | {"expand_ratio": 1}

    def mixer_names(self) -> Table:
        return {("norm", "scale"): Name("g_norm.weight")} | (
            linear("input_proj", "i_proj", bias=False)
            | linear("lambda_proj", "f_proj", bias=False)
            | linear("gate", "g_proj", bias=False)
            | linear("out_proj", "o_proj", bias=False)
        )
