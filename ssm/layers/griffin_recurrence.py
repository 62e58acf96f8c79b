"""The recurrent block of Hawk and Griffin, without its norm and residual."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers.base import Carry, SequenceLayer, check_input
from ssm.layers.causal_conv1d import CausalConv1D
from ssm.layers.gated_mlp import normal
from ssm.layers.rg_lru import RGLRU


class GriffinRecurrence(SequenceLayer):
    """A short convolution and an RG-LRU on one branch, gated by the other.

        u = rg_lru(conv(linear_x(x)))          y = linear_out(u * gelu(linear_y(x)))

    `gelu` is the tanh approximation.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). The carry is a dict of those of
    its layers: "conv" and "rg_lru".

    Parameters: linear_x and linear_y, kernel (d_model, lru_width), normal of variance
    1 / d_model; linear_out, kernel (lru_width, d_model), normal of variance
    `out_variance` / lru_width; their biases, zero; and those of `CausalConv1D` and
    `RGLRU`.

    Args:
      d_model: width of the inputs and outputs.
      lru_width: width of the recurrence; None is d_model.
      n_blocks: number of blocks of the RG-LRU's gates.
      conv_width: how many steps the convolution sees.
      complex_gated: see `RGLRU`.
      out_variance: see above; Griffin has 2 over the number of layers.
      dtype: of the products and activations; None takes that of the inputs and
        parameters. The recurrence is float32 at least.
      param_dtype: of the parameters; a_param is float32 at least.
      implementation: of the scan, see `ssm.ops.rg_lru_scan`.

    Raises ValueError if x has another width.

    Source: De et al. 2024, Griffin (2402.19427), section 2.3.
    """

    def __init__(
        self,
        d_model: int,
        n_blocks: int,
        *,
        lru_width: int | None = None,
        conv_width: int = 4,
        complex_gated: bool = False,
        out_variance: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        width = d_model if lru_width is None else lru_width
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        types["rngs"] = rngs
        self.d_model = d_model
        self.linear_x = nnx.Linear(d_model, width, kernel_init=normal(1.0), **types)
        self.linear_y = nnx.Linear(d_model, width, kernel_init=normal(1.0), **types)
        self.conv = CausalConv1D(width, conv_width, **types)
        self.rg_lru = RGLRU(
            width,
            n_blocks,
            complex_gated=complex_gated,
            implementation=implementation,
            **types,
        )
        last = normal(out_variance)
        self.linear_out = nnx.Linear(width, d_model, kernel_init=last, **types)

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        carry = {"conv": None, "rg_lru": None} if carry is None else carry
        u, conv = self.conv(self.linear_x(x), carry["conv"], reset=reset)
        u, rg_lru = self.rg_lru(u, carry["rg_lru"], reset=reset)
        y = self.linear_out(u * nnx.gelu(self.linear_y(x)))
        return y, {"conv": conv, "rg_lru": rg_lru}

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return {
            "conv": self.conv.init_carry(batch_size),
            "rg_lru": self.rg_lru.init_carry(batch_size),
        }
