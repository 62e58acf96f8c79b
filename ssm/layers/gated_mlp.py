"""The gated feed-forward map that follows a mixer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class GatedMLP(nnx.Module):
    """Two linear maps, one through an activation, multiplied and mapped back.

        y = down(activation(gate(x)) * up(x))

    With the tanh-GELU of the default this is GeGLU.

    Shapes: x (..., d_model) -> y (..., d_model). It looks at one step at a time, so it
    is no sequence layer: no carry, no reset.

    Parameters: gate and up, kernel (d_model, d_ff), normal of variance `in_variance` /
    d_model; down, kernel (d_ff, d_model), normal of variance `out_variance` / d_ff; and
    their biases, zero.

    Args:
      d_model: width of the inputs and outputs.
      d_ff: width between the maps.
      activation: of the gate.
      bias: whether the maps have biases.
      in_variance, out_variance: see above.
      dtype: of the products; None takes that of the inputs and parameters.
      param_dtype: of the parameters.

    Source: Shazeer 2020 (2002.05202); with biases as in Griffin (2402.19427).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.gelu,
        bias: bool = True,
        in_variance: float = 1.0,
        out_variance: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        types |= {"use_bias": bias, "rngs": rngs}
        self.activation = activation
        first, last = normal(in_variance), normal(out_variance)
        self.gate = nnx.Linear(d_model, d_ff, kernel_init=first, **types)
        self.up = nnx.Linear(d_model, d_ff, kernel_init=first, **types)
        self.down = nnx.Linear(d_ff, d_model, kernel_init=last, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.gate(x)) * self.up(x))


def normal(variance: float) -> nnx.Initializer:
    """Normal draws of variance `variance` over the number of inputs."""
    return nnx.initializers.variance_scaling(variance, "fan_in", "normal")
