"""Sequence layers, one a file: `y, carry = layer(x, carry=None, *, reset=None)`."""

from ssm.layers.attention import Attention
from ssm.layers.base import AuxiliaryLoss, SequenceLayer, auxiliary_loss
from ssm.layers.bidirectional import Bidirectional
from ssm.layers.block_diagonal import BlockDiagonalLinear
from ssm.layers.causal_conv1d import CausalConv1D
from ssm.layers.gated_mlp import GatedMLP
from ssm.layers.griffin_recurrence import GriffinRecurrence
from ssm.layers.gru import GRU
from ssm.layers.hgrn2 import HGRN2
from ssm.layers.hgru import HGRU
from ssm.layers.hgru2d import HGRU2D
from ssm.layers.lightning_attention import DecaySlopes, LightningAttention
from ssm.layers.linear_rnn import LinearRNN
from ssm.layers.liquid_s4 import LiquidS4
from ssm.layers.liquid_s4_released import LiquidS4Released
from ssm.layers.local_attention import LocalAttention
from ssm.layers.lower_bounds import LowerBounds
from ssm.layers.lru import LRU
from ssm.layers.lstm import LSTM
from ssm.layers.mixture_of_experts import MixtureOfExperts
from ssm.layers.rg_lru import RGLRU
from ssm.layers.s4 import S4
from ssm.layers.s4d import S4D
from ssm.layers.s5 import S5

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
    "AuxiliaryLoss",
    "Bidirectional",
    "BlockDiagonalLinear",
    "CausalConv1D",
    "DecaySlopes",
    "GatedMLP",
    "GriffinRecurrence",
    "LightningAttention",
    "LiquidS4",
    "LiquidS4Released",
    "LinearRNN",
    "LocalAttention",
    "LowerBounds",
    "MixtureOfExperts",
    "SequenceLayer",
    "auxiliary_loss",
]
