"""The real-gated linear recurrent unit of Hawk and Griffin."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm import initializers, ops
from ssm.layers.base import Carry, SequenceLayer, check_input, recurrence_dtype
from ssm.layers.block_diagonal import BlockDiagonalLinear


class RGLRU(SequenceLayer):
    """Real-gated linear recurrent unit: a diagonal recurrence whose decay is gated.

        r_t = sigmoid(a_gate(x_t))                       recurrence gate
        i_t = sigmoid(input_gate(x_t))                   input gate
        log a_t = -c r_t softplus(a_param)
        h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t,      y_t = h_t

    The gates are block-diagonal linear maps. The first step of a document drops the
    state and does not normalise its input: a_t is 0 and the root is 1.

    With `complex_gated=True` the recurrence is complex. The d_model real channels are
    d_model / 2 real parts, then as many imaginary parts; the gates map all d_model of
    them to d_model / 2, and

        a_t = exp(-c r_t softplus(a_param) + i r_t a_imag_param)

    where the root takes |a_t|; y_t is [Re h_t, Im h_t].

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). The carry is a dict: "state"
    (B, d_model) float32, or (B, d_model / 2) complex64, and "started" (B,) bool, False
    until there was a step: the next one is then the first of a document.

    Parameters: a_param (d_model,), such that the decay exp(-softplus(a_param)), which
    is raised to the power c r_t, is drawn uniformly from the ring between r_min and
    r_max; a_gate and input_gate, each kernel (H, d_model / H, d_model / H) and bias
    (H, d_model / H). If complex: a_param and a_imag_param (d_model / 2,), the latter
    uniform in [0, 0.1 pi], and half as many outputs of the gates.

    Published texts differ from the released models, which this follows: the paper calls
    -a_param Lambda, draws the decay to the power c from the ring, and multiplies the
    phase by c.

    Args:
      d_model: width of the inputs and outputs.
      n_blocks: H, the number of blocks of the gates.
      c: see above.
      r_min, r_max: the ring on which the decay is drawn.
      complex_gated: see above.
      dtype: of the gates' products and of the outputs; None takes that of the inputs
        and parameters. The recurrence and what makes its decay are float32 at least.
      param_dtype: of the parameters; a_param and a_imag_param are float32 at least.
      implementation: of the scan, see `ssm.ops.rg_lru_scan`.

    Raises ValueError if x has another width, or n_blocks does not divide it.

    Source: De et al. 2024, Griffin (2402.19427), section 2.4 and, if complex, appendix
    B; initial values and the first step as in the released RecurrentGemma.
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = ("a_param", "a_imag_param")

    def __init__(
        self,
        d_model: int,
        n_blocks: int,
        *,
        c: float = 8.0,
        r_min: float = 0.9,
        r_max: float = 0.999,
        complex_gated: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if not 0 <= r_min < r_max < 1:
            raise ValueError(
                f"RGLRU: r_min={r_min}, r_max={r_max}, wanted 0 <= r_min < r_max < 1"
            )
        if complex_gated and d_model % 2:
            raise ValueError(f"RGLRU: d_model={d_model}, wanted even if complex_gated")
        self.d_model, self.c, self.complex_gated = d_model, c, complex_gated
        self.dtype, self.implementation = dtype, implementation
        n_state = d_model // 2 if complex_gated else d_model
        wide = recurrence_dtype(param_dtype)
        draw = jax.random.uniform(rngs.params(), (n_state,), wide)
        a_param = initializers.rg_lru_ring(draw, r_min=r_min, r_max=r_max)
        self.a_param = nnx.Param(a_param)
        if complex_gated:
            phase = jax.random.uniform(rngs.params(), (n_state,), wide)
            self.a_imag_param = nnx.Param(0.1 * jnp.pi * phase)

        def gate():
            return BlockDiagonalLinear(
                d_model,
                n_blocks,
                d_out=n_state,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.a_gate, self.input_gate = gate(), gate()

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        r, i = self.a_gate(x), self.input_gate(x)
        x = x.astype(r.dtype)
        carry = self.init_carry(x.shape[0]) if carry is None else carry
        started = carry["started"]
        first = (jnp.arange(x.shape[1]) == 0)[None] & ~started[:, None]
        reset = first if reset is None else reset | first
        run = self._complex_scan if self.complex_gated else self._scan
        y, state = run(x, r, i, carry["state"], reset)
        return y, {"state": state, "started": started | (x.shape[1] > 0)}

    def _scan(self, x, r, i, state, reset):
        return ops.rg_lru_scan(
            x,
            r,
            i,
            self.a_param[...],
            c=self.c,
            h0=state,
            reset=reset,
            implementation=self.implementation,
        )

    def _complex_scan(self, x, r, i, state, reset):
        a_param, a_imag_param = self.a_param[...], self.a_imag_param[...]
        z, r, i = (array.astype(state.real.dtype) for array in (x, r, i))
        r, i = jax.nn.sigmoid(r), jax.nn.sigmoid(i)
        log_modulus = -self.c * r * jax.nn.softplus(a_param)[None, None]
        root = _clipped_sqrt(-jnp.expm1(2 * log_modulus))
        root = jnp.where(reset[..., None], jnp.ones((), root.dtype), root)
        z = jax.lax.complex(*(root * i * part for part in jnp.split(z, 2, axis=-1)))
        h, state = ops.linear_scan(
            z,
            log_a=jax.lax.complex(log_modulus, r * a_imag_param[None, None]),
            h0=state,
            reset=reset,
            implementation=self.implementation,
        )
        y = jnp.concatenate([jnp.real(h), jnp.imag(h)], axis=-1)
        return y.astype(x.dtype), state

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        a_param = self.a_param[...]
        dtype = a_param.dtype
        if self.complex_gated:
            dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
        return {
            "state": jnp.zeros((batch_size, *a_param.shape), dtype),
            "started": jnp.zeros((batch_size,), bool),
        }


@jax.custom_jvp
def _clipped_sqrt(u):
    """The square root, with a derivative of at most 1000."""
    return jnp.sqrt(u)


@_clipped_sqrt.defjvp
def _(primals, tangents):
    root = _clipped_sqrt(*primals)
    return root, tangents[0] * 0.5 / jnp.maximum(root, 1 / 2000)
