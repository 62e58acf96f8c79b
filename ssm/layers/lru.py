"""The linear recurrent unit."""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike

from ssm import initializers, ops
from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_input,
    document_ends,
    recurrence_dtype,
    refuse_carry,
)
from ssm.layers.complex_maps import from_states, to_states


class LRU(SequenceLayer):
    """Linear recurrent unit: a diagonal complex recurrence between two dense maps.

        h_t = lambda * h_{t-1} + gamma * (B x_t)          y_t = Re(C h_t) + D * x_t
        lambda = exp(-exp(nu_log) + i exp(theta_log))     gamma = exp(gamma_log)

    With `bidirectional=True` a second scan runs backwards over the same inputs with the
    same lambda, gamma and B, and has its own output map C2 (both scans include x_t):

        y_t = Re(C h_t + C2 g_t) + D * x_t,    g_t = lambda * g_{t+1} + gamma * (B x_t)

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, d_state) complex64.

    Parameters: nu_log, theta_log, gamma_log (N,); b_re, b_im (N, d_model); c_re, c_im,
    and c2_re, c2_im if bidirectional (d_model, N); d (d_model,). B has variance
    1 / (2 d_model) and C has 1 / N in each component: the paper's text halves both, the
    code behind its numbers halves B only, and that one gives outputs of unit variance.
    Released code that writes `gamma_log` where this says `gamma` predates a correction.

    Args:
      d_model: width of the inputs and outputs.
      d_state: N, the number of complex states.
      r_min, r_max: the ring on which |lambda| is drawn.
      max_phase: largest phase of lambda, in radians.
      bidirectional: see above. The layer is then not causal.
      dtype: of the matrix products; None takes that of the inputs and parameters. The
        recurrence is never narrower than float32.
      param_dtype: of the parameters; those of the recurrence are float32 at least.
      implementation: of the scan, see `ssm.ops.linear_scan`.

    Raises ValueError if x has another width, or a carry is given when bidirectional.

    Source: Orvieto et al. 2023 (2303.06349), sections 3.1 to 3.4 and appendix A.
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = (
        "nu_log",
        "theta_log",
        "gamma_log",
        "b_re",
        "b_im",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        bidirectional: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(
                f"LRU: r_min={r_min}, r_max={r_max}, wanted 0 <= r_min < r_max <= 1"
            )
        self.d_model, self.d_state = d_model, d_state
        self.causal = not bidirectional
        self.dtype, self.implementation = dtype, implementation
        wide = recurrence_dtype(param_dtype)

        def uniform():
            tiny = float(jnp.finfo(wide).tiny)
            return jax.random.uniform(rngs.params(), (d_state,), wide, minval=tiny)

        def normal(shape, variance, dtype):
            draw = jax.random.normal(rngs.params(), shape, dtype)
            return nnx.Param(draw * math.sqrt(variance))

        nu_log, theta_log = initializers.lru_ring(
            uniform(), uniform(), r_min=r_min, r_max=r_max, max_phase=max_phase
        )
        self.nu_log = nnx.Param(nu_log)
        self.theta_log = nnx.Param(theta_log)
        self.gamma_log = nnx.Param(initializers.lru_gamma_log(nu_log))
        self.b_re = normal((d_state, d_model), 0.5 / d_model, wide)
        self.b_im = normal((d_state, d_model), 0.5 / d_model, wide)
        self.c_re = normal((d_model, d_state), 1.0 / d_state, param_dtype)
        self.c_im = normal((d_model, d_state), 1.0 / d_state, param_dtype)
        if bidirectional:
            self.c2_re = normal((d_model, d_state), 1.0 / d_state, param_dtype)
            self.c2_im = normal((d_model, d_state), 1.0 / d_state, param_dtype)
        self.d = normal((d_model,), 1.0, param_dtype)

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        if not self.causal and carry is not None:
            raise refuse_carry(self)
        u = self._input(x)
        scan = functools.partial(
            ops.linear_scan, u, self.decay(), implementation=self.implementation
        )
        h, carry = scan(h0=carry, reset=reset)
        y = from_states(h, self.c_re[...], self.c_im[...], dtype=self.dtype)
        if not self.causal:
            g, _ = scan(reset=document_ends(reset), reverse=True)
            c2 = self.c2_re[...], self.c2_im[...]
            y, carry = y + from_states(g, *c2, dtype=self.dtype), None
        x, d = promote_dtype((x, self.d[...]), dtype=self.dtype)
        return y.astype(x.dtype) + d[None, None] * x, carry

    def decay(self) -> jax.Array:
        """The eigenvalues lambda, (N,) complex."""
        nu, theta = jnp.exp(self.nu_log[...]), jnp.exp(self.theta_log[...])
        return jnp.exp(jax.lax.complex(-nu, theta))

    def _input(self, x):
        """The inputs of the states, gamma * (B x), (B, T, N) complex."""
        gamma = jnp.exp(self.gamma_log[...])[:, None]
        b_re, b_im = gamma * self.b_re[...], gamma * self.b_im[...]
        return to_states(x, b_re, b_im, dtype=self.dtype)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        if not self.causal:
            raise refuse_carry(self)
        return jnp.zeros((batch_size, self.d_state), self.decay().dtype)
