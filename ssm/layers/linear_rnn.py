"""The dense linear recurrent network."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike

from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    recurrence_dtype,
)
from ssm.layers.over_time import scan_steps


class LinearRNN(SequenceLayer):
    """Linear recurrent network: a dense real recurrence between two dense maps.

        h_t = A h_{t-1} + B x_t          y_t = C h_t + D * x_t

    What `LRU` makes diagonal, and is compared with. The steps follow one another.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, d_state) float32.

    Parameters: a (N, N), b (N, d_model), c (d_model, N), d (d_model,), all normal: A of
    variance `radius`^2 / N, B and C of Glorot's, 2 / (N + d_model), D of 1. The
    eigenvalues of A then fill the disk of that radius, the more evenly the larger N is.
    With a radius of 1, Glorot's for A too, which the paper takes, a few lie outside of
    the unit circle, and the states grow over some hundred steps.

    Args:
      d_model: width of the inputs and outputs.
      d_state: N, the number of real states.
      radius: see above.
      dtype: of the products with B and C; None takes that of the inputs and parameters.
        The recurrence is float32 at least.
      param_dtype: of the parameters; A and B are float32 at least.

    Raises ValueError if x has another width, or a carry another shape.

    Source: Orvieto et al. 2023 (2303.06349), section 3.1 and theorem 3.1; on the
    radius, Bar et al. 2025 (2505.19827).
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = ("a", "b")

    def __init__(
        self,
        d_model: int,
        d_state: int,
        *,
        radius: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not radius > 0:
            raise ValueError(f"LinearRNN: radius={radius}, wanted a positive number")
        self.d_model, self.d_state, self.dtype = d_model, d_state, dtype
        wide = recurrence_dtype(param_dtype)

        def normal(shape, variance, dtype):
            draw = jax.random.normal(rngs.params(), shape, dtype)
            return nnx.Param(draw * variance**0.5)

        glorot = 2 / (d_state + d_model)
        self.a = normal((d_state, d_state), radius**2 / d_state, wide)
        self.b = normal((d_state, d_model), glorot, wide)
        self.c = normal((d_model, d_state), glorot, param_dtype)
        self.d = normal((d_model,), 1.0, param_dtype)

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        check_carry(self, carry, x.shape[0])
        carry = self.init_carry(x.shape[0]) if carry is None else carry
        a = self.a[...]
        x, b, c, d = promote_dtype(
            (x, self.b[...], self.c[...], self.d[...]), dtype=self.dtype
        )
        u = jnp.einsum("bth,nh->btn", x, b, preferred_element_type=a.dtype)

        def step(h, u_t, _):
            h = h @ a.T + u_t
            return h, h

        h, carry = scan_steps(step, u, carry, reset=reset)
        return jnp.einsum("btn,hn->bth", h.astype(c.dtype), c) + d[
            None, None
        ] * x, carry

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return jnp.zeros((batch_size, self.d_state), self.a.dtype)
