"""A linear map that mixes channels only within groups."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike


class BlockDiagonalLinear(nnx.Module):
    """A linear map of `n_blocks` groups of neighbouring channels, each into its own.

        y_h = x_h kernel_h + bias_h,        h = 1 ... n_blocks

    Shapes: x (..., d_in) -> y (..., d_out).

    Parameters: kernel (H, d_in / H, d_out / H), normal of variance 1 / d_in, the whole
    width, as in Griffin's released code; bias (H, d_out / H), zero.

    Args:
      d_in, d_out: widths; None for d_out is d_in.
      n_blocks: H; it divides both.
      dtype: of the product; None takes that of the inputs and parameters.
      param_dtype: of the parameters.

    Raises ValueError if H does not divide the widths.
    """

    def __init__(
        self,
        d_in: int,
        n_blocks: int,
        *,
        d_out: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d_out = d_in if d_out is None else d_out
        if n_blocks < 1 or d_in % n_blocks or d_out % n_blocks:
            raise ValueError(
                f"n_blocks={n_blocks}, wanted a divisor of the widths {d_in} and "
                f"{d_out}"
            )
        self.n_blocks, self.dtype = n_blocks, dtype
        shape = (n_blocks, d_in // n_blocks, d_out // n_blocks)
        draw = jax.random.normal(rngs.params(), shape, param_dtype)
        self.kernel = nnx.Param(draw / math.sqrt(d_in))
        self.bias = nnx.Param(jnp.zeros((n_blocks, shape[2]), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = promote_dtype(
            (x, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        x = x.reshape(*x.shape[:-1], self.n_blocks, -1)
        y = jnp.einsum("...hi,hij->...hj", x, kernel)
        y = y + bias.reshape((1,) * (y.ndim - 2) + bias.shape)
        return y.reshape(*y.shape[:-2], -1)
