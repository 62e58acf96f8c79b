"""Recurrent and state-space sequence models in JAX.

`ssm.ops` has pure functions on arrays, `ssm.layers` Flax NNX layers, `ssm.blocks` and
`ssm.models` what is built of them. The layers and models are re-exported here.
"""

from ssm import (
    blocks,
    generate,
    layers,
    models,
    ops,
    param_groups,
    param_sharding,
    pretrained,
)
from ssm.layers import (
    GRU,
    HGRN2,
    HGRU,
    HGRU2D,
    LRU,
    LSTM,
    RGLRU,
    S4,
    S4D,
    S5,
    Attention,
    Bidirectional,
    CausalConv1D,
    GatedMLP,
    GriffinRecurrence,
    LightningAttention,
    LinearRNN,
    LiquidS4,
    LocalAttention,
    MixtureOfExperts,
)
from ssm.models import LanguageModel, RetrievalClassifier, SequenceClassifier

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "HGRN2",
    "HGRU",
    "HGRU2D",
    "LRU",
    "LSTM",
    "RGLRU",
    "S4",
    "S4D",
    "S5",
    "Attention",
    "Bidirectional",
    "CausalConv1D",
    "GatedMLP",
    "GriffinRecurrence",
    "LanguageModel",
    "LightningAttention",
    "LinearRNN",
    "LiquidS4",
    "LocalAttention",
    "MixtureOfExperts",
    "RetrievalClassifier",
    "SequenceClassifier",
    "blocks",
    "generate",
    "layers",
    "models",
    "ops",
    "param_groups",
    "param_sharding",
    "pretrained",
]
