"""A short causal convolution over time as a layer."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike

from ssm import ops
from ssm.layers.base import Carry, SequenceLayer, check_input, recurrence_dtype


class CausalConv1D(SequenceLayer):
    """A short filter over time for every channel, looking back.

        y_t = bias + sum_{s=0}^{W-1} kernel_{W-1-s} * x_{t-s}        (elementwise)

    A reset drops what lies before it, from the outputs and from the carry.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, W - 1, d_model), the
    last inputs, oldest first, in `dtype`.

    Parameters: kernel (W, d_model), its last row for x_t, normal of variance
    `variance` / W; bias (d_model,), zero.

    Args:
      d_model: width of the inputs and outputs.
      width: W, how many steps an output sees.
      variance: see above; the default is that of Griffin.
      dtype: of inputs, outputs and carry; None takes that of the inputs and parameters.
        Sums are in float32 at least.
      param_dtype: of the parameters.

    Raises ValueError if x has another width.

    Source: De et al. 2024, Griffin (2402.19427), section 2.3.
    """

    def __init__(
        self,
        d_model: int,
        width: int = 4,
        *,
        variance: float = 0.01,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width < 1:
            raise ValueError(f"CausalConv1D: width={width}, wanted at least 1")
        self.d_model, self.width = d_model, width
        self.dtype, self.param_dtype = dtype, param_dtype
        draw = jax.random.normal(rngs.params(), (width, d_model), param_dtype)
        self.kernel = nnx.Param(draw * math.sqrt(variance / width))
        self.bias = nnx.Param(jnp.zeros((d_model,), param_dtype))

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        x, kernel, bias = promote_dtype(
            (x, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        carry = self.init_carry(x.shape[0]) if carry is None else carry
        return ops.causal_conv1d(x, kernel, bias, carry=carry, reset=reset)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        dtype = self.dtype or recurrence_dtype(self.param_dtype)
        return jnp.zeros((batch_size, self.width - 1, self.d_model), dtype)
