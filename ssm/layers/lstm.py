"""Long short-term memory."""

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


class LSTM(SequenceLayer):
    """Long short-term memory: a gated cell c, read through another gate.

        i_t, f_t, o_t = sigmoid(W x_t + U h_{t-1} + b)         each its own W, U, b
        g_t = tanh(W x_t + U h_{t-1} + b)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t),      y_t = h_t

    With zoneout a unit keeps its old value with a probability of `zoneout_c` in c and
    `zoneout_h` in h; h_t is made from the c_t that is not kept. This is random if the
    call has a PRNG `key`; without one the mean of both values takes their place.

    Shapes: x (B, T, D) real -> y (B, T, D); carry (c, h), each (B, D) float32.

        y, carry = layer(x, carry=None, *, reset=None, key=None)

    The steps follow one another: a layer to compare with, not one for long sequences.

    Parameters: cell, an `nnx.OptimizedLSTMCell`, has all gates side by side in the
    order i, f, g, o: dense_i, kernel (D, 4 D), the W; dense_h, kernel (D, 4 D) and bias
    (4 D,), the U and b. The W have variance 1 / D, each U is orthogonal. b is 1 for f
    (Jozefowicz et al. 2015) and 0 for the others, or with `chrono`

        b_f = log(uniform in [1, chrono - 1]),      b_i = -b_f

    so that units forget over 2 to `chrono` steps, each over its own.

    Args:
      d_model: D, width of inputs, outputs and state.
      chrono: above 2, the longest memory in steps; None is the plain initial values.
      zoneout_h, zoneout_c: see above.
      dtype: of the products and the output; None takes that of the inputs and
        parameters. Gates and states are float32 at least.
      param_dtype: of the parameters.

    Raises ValueError if x has another width, or a carry another shape.

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000;
    chrono, Tallec and Ollivier 2018 (1804.11188), section 2; zoneout, Krueger et al.
    2017 (1606.01305).
    """

    per_layer = ("key",)

    def __init__(
        self,
        d_model: int,
        *,
        chrono: float | None = None,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_zoneout("LSTM", zoneout_h=zoneout_h, zoneout_c=zoneout_c)
        self.d_model, self.zoneout_h, self.zoneout_c = d_model, zoneout_h, zoneout_c
        self.dtype, self.param_dtype = dtype, param_dtype
        self.cell = nnx.OptimizedLSTMCell(
            d_model,
            d_model,
            gate_fn=wide_sigmoid,
            activation_fn=wide_tanh,
            recurrent_kernel_init=orthogonal_each,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        zero = jnp.zeros((d_model,))
        i, f = zero, zero + 1
        if chrono is not None:
            draw = jax.random.uniform(rngs.params(), (d_model,))
            f = initializers.chrono(draw, t_max=chrono)
            i = -f
        bias = jnp.concatenate([i, f, zero, zero]).astype(param_dtype)
        self.cell.dense_h.bias = nnx.Param(bias)

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
            keys = (None, None) if key is None else jax.random.split(key)
            # The product with x_t stays in the loop: taken out, a CPU is slower.
            (c, h), _ = self.cell(carry, x_t)
            c = zoneout(carry[0], c, self.zoneout_c, keys[0])
            h = zoneout(carry[1], h, self.zoneout_h, keys[1])
            return (c, h), h.astype(dtype)

        return scan_steps(step, x, carry, reset=reset, key=key)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        dtype = recurrence_dtype(self.param_dtype)
        state = jnp.zeros((batch_size, self.d_model), dtype)
        return state, state
