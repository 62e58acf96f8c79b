"""Pure functions on arrays: the API for users of any framework, or of none."""

from ssm.ops.causal_conv1d import causal_conv1d
from ssm.ops.fft_conv import fft_conv
from ssm.ops.hgrn_scan import hgrn_scan
from ssm.ops.lightning_attention import lightning_attention
from ssm.ops.linear_scan import linear_scan
from ssm.ops.rg_lru_scan import rg_lru_scan
from ssm.ops.sharding import axis_names

__all__ = [
    "axis_names",
    "causal_conv1d",
    "fft_conv",
    "hgrn_scan",
    "lightning_attention",
    "linear_scan",
    "rg_lru_scan",
]
