"""HGRN2 as it was released: its configuration and names in flash-linear-attention."""

from typing import Any, ClassVar

from flax import nnx
from jax.typing import DTypeLike

from ssm import layers
from ssm.blocks import ResidualBlock
from ssm.models import LanguageModel, hgrn
from ssm.pretrained.hgrn import Released
from ssm.pretrained.hub_config import HubConfig
from ssm.pretrained.names import Name, Table, linear


class HGRN2(Released):
    """`HGRN2ForCausalLM`: `ssm.models.hgrn.hgrn2`.

    Source: Qin et al. 2024, HGRN2 (2404.07904), as in flash-linear-attention.
    """

    model_type: ClassVar = "hgrn2"
    name: ClassVar = "HGRN2ForCausalLM"
    parts: ClassVar = (
        ResidualBlock,
        nnx.RMSNorm,
        layers.HGRN2,
        layers.GatedMLP,
        nnx.Dropout,
    )

    def build(self, dtype: DTypeLike, rngs: nnx.Rngs) -> LanguageModel:
        return hgrn.hgrn2(
            self.size,
            vocab_size=self.vocab_size,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )

    @classmethod
    def heads(cls, config: HubConfig, d_model: int) -> int:
        """By the width of a head, `expand_ratio`, or by their number without it."""
        if config.get("expand_ratio", 128) is None:
            n_heads = config.integer("num_heads")
            if d_model % n_heads:
                raise config.wrong("num_heads", f"a divisor of {d_model}")
            return n_heads
        width = config.integer_or("expand_ratio", 128)
        if d_model % width:
            raise config.wrong("expand_ratio", f"a divisor of {d_model}")
        if config.integer_or("num_heads", d_model // width) != d_model // width:
            raise config.wrong("num_heads", f"{d_model // width}, by expand_ratio")
        return d_model // width

    def to_hub(self) -> dict[str, Any]:
        heads = self.size.n_heads
        return super().to_hub() | {
            "expand_ratio": self.size.d_model // heads,
            "num_heads": heads,
        }

    def mixer_names(self) -> Table:
        return {("g_norm", "scale"): Name("g_norm.weight")} | (
            linear("q_proj", "q_proj", bias=False)
            | linear("f_proj", "f_proj", bias=False)
            | linear("i_proj", "i_proj", bias=False)
            | linear("o_proj", "o_proj", bias=False)
        )
