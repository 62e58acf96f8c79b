"""The gated recurrent unit."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm import initializers
from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    recurrence_dtype,
)
from ssm.layers.over_time import (
    check_zoneout,
    orthogonal_each,
    scan_steps,
    wide_sigmoid,
    wide_tanh,
    zoneout,
)


class GRU(SequenceLayer):
    """Gated recurrent unit: a state that moves towards a new value by a gate.

        r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1})
        z_t = sigmoid(W_z x_t + b_z + U_z h_{t-1})
        n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1}))
        h_t = z_t * h_{t-1} + (1 - z_t) * n_t,      y_t = h_t

    z multiplies the old state, where the paper's text has it multiply the new value,
    and r multiplies after the product with U_n: both as most libraries do.

    With zoneout a unit of h keeps its old value with a probability of `zoneout_h`. This
    is random if the call has a PRNG `key`; without one the mean of both values takes
    their place.

    Shapes: x (B, T, D) real -> y (B, T, D); carry h (B, D) float32.

        y, carry = layer(x, carry=None, *, reset=None, key=None)

    The steps follow one another: a layer to compare with, not one for long sequences.

    Parameters: cell, an `nnx.GRUCell`, has all three side by side in the order r, z, n:
    dense_i, kernel (D, 3 D) and bias (3 D,), the W and b; dense_h, kernel (D, 3 D), the
    U. The W have variance 1 / D, each U is orthogonal, b is 0, or with `chrono`

        b_z = log(uniform in [1, chrono - 1])

    so that units forget over 2 to `chrono` steps, each over its own.

    Args:
      d_model: D, width of inputs, outputs and state.
      chrono: above 2, the longest memory in steps; None is the plain initial values.
      zoneout_h: see above.
      dtype: of the products and the output; None takes that of the inputs and
        parameters. Gates and states are float32 at least.
      param_dtype: of the parameters.

    Raises ValueError if x has another width, or a carry another shape.

    Source: Cho et al. 2014 (1406.1078); chrono, Tallec and Ollivier 2018 (1804.11188),
    section 2; zoneout, Krueger et al. 2017 (1606.01305).
    """

    per_layer = ("key",)

    def __init__(
        self,
        d_model: int,
        *,
        chrono: float | None = None,
        zoneout_h: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_zoneout("GRU", zoneout_h=zoneout_h)
        self.d_model, self.zoneout_h = d_model, zoneout_h
        self.dtype, self.param_dtype = dtype, param_dtype
        self.cell = nnx.GRUCell(
            d_model,
            d_model,
            gate_fn=wide_sigmoid,
            activation_fn=wide_tanh,
            recurrent_kernel_init=orthogonal_each,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        if chrono is not None:
            draw = jax.random.uniform(rngs.params(), (d_model,))
            z = initializers.chrono(draw, t_max=chrono)
            zero = jnp.zeros_like(z)
            bias = jnp.concatenate([zero, z, zero]).astype(param_dtype)
            self.cell.dense_i.bias = nnx.Param(bias)

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        check_carry(self, carry, x.shape[0])
        carry = self.init_carry(x.shape[0]) if carry is None else carry
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)

        def step(carry, x_t, key):
            # The product with x_t stays in the loop: taken out, a CPU is slower.
            h, _ = self.cell(carry, x_t)
            h = zoneout(carry, h, self.zoneout_h, key)
            return h, h.astype(dtype)

        return scan_steps(step, x, carry, reset=reset, key=key)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        dtype = recurrence_dtype(self.param_dtype)
        return jnp.zeros((batch_size, self.d_model), dtype)
