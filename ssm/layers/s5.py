"""S5: one diagonal state space for all channels."""

import functools
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import lecun_normal, normal
from jax.typing import DTypeLike

from ssm import initializers, ops
from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    document_ends,
    recurrence_dtype,
    refuse_carry,
)
from ssm.layers.complex_maps import from_states, to_states
from ssm.layers.discretization import DISCRETIZATIONS, Discretization
from ssm.layers.modes import MODES, Mode, check_choice, check_convolves

OutputInit = Literal["trunc_standard_normal", "lecun_normal", "complex_normal"]


class S5(SequenceLayer):
    """A diagonal state space that all channels drive and read.

        h_t = a * h_{t-1} + b * (B x_t)            y_t = 2 Re(C h_t) + D * x_t
        lambda = lambda_re + i lambda_im           dt = rate exp(log_dt)
        a = exp(dt lambda),  b = (a - 1) / lambda                          "zoh"
        a = (1 + dt lambda / 2) / (1 - dt lambda / 2),
        b = dt / (1 - dt lambda / 2)                                       "bilinear"

    Of the states, in conjugate pairs, one of each is held. With `bidirectional=True` a
    second scan runs backwards over the same inputs with the same lambda, dt and B, and
    has an output map C2 of its own (both scans include x_t).

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, N / 2) complex64. The
    steps may have lengths of their own, for samples at irregular times:
    `layer(x, dt=dt)` with dt (B, T), which multiplies that of the states; these go
    through the recurrence.

    Parameters: lambda_re, lambda_im, log_dt (N / 2,); b_re, b_im (N / 2, d_model); c_re
    and c_im, and c2_re and c2_im if bidirectional (d_model, N / 2); d (d_model,)
    normal. At first lambda is that of HiPPO-LegS in blocks, whose basis is V, and B is
    V* B0 with a real B0 of variance 1 / N (as in the released code: by the states, not
    the channels).

    Args:
      d_model: width of the inputs and outputs.
      d_state: N, counting both of each conjugate pair.
      n_blocks: of how many blocks of HiPPO-LegS lambda is at first.
      discretization: see above.
      c_init: "trunc_standard_normal" is C0 V, each component of C0 of variance 1 / N;
        "lecun_normal" the same of variance 1 / (N d_model), as that initialiser has it
        for the shape in the released code; "complex_normal" draws C itself, each
        component of variance 1/2.
      dt_min, dt_max: between which dt is drawn, uniformly in its logarithm.
      clip_eigenvalues: keeps the real parts of lambda at or below -1e-4.
      bidirectional: see above. The layer is then not causal.
      rate: how long a step is compared with those of training, to run at another
        sampling rate.
      mode: "convolution" by a Fourier transform of each state, "recurrent", or None
        for the faster.
      dtype: of the matrix products; None takes that of the inputs and parameters. The
        recurrence is never narrower than float32.
      param_dtype: of the parameters; those of the recurrence are float32 at least.
      implementation: of the scan, see `ssm.ops.linear_scan`.

    Raises ValueError if x has another width, for blocks of an odd size and unknown
    names, for a `reset` or `dt` in a named convolution, and if a carry is given when
    bidirectional.

    Source: Smith et al. 2023, S5 (2208.04933), section 3 and appendix B, and its code.
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = (
        "lambda_re",
        "lambda_im",
        "log_dt",
        "b_re",
        "b_im",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int,
        *,
        n_blocks: int = 1,
        discretization: Discretization = "zoh",
        c_init: OutputInit = "trunc_standard_normal",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        clip_eigenvalues: bool = False,
        bidirectional: bool = False,
        rate: float = 1.0,
        mode: Mode | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_choice(self, "discretization", discretization, DISCRETIZATIONS)
        check_choice(self, "c_init", c_init, get_args(OutputInit))
        check_choice(self, "mode", mode, MODES)
        eigenvalues, basis = initializers.s5_legs(d_state, n_blocks=n_blocks)
        self.d_model, self.d_state = d_model, d_state
        self.discretization, self.rate, self.mode = discretization, rate, mode
        self.clip_eigenvalues, self.causal = clip_eigenvalues, not bidirectional
        self.dtype, self.implementation = dtype, implementation
        wide = recurrence_dtype(param_dtype)
        self.lambda_re = nnx.Param(jnp.asarray(eigenvalues.real, wide))
        self.lambda_im = nnx.Param(jnp.asarray(eigenvalues.imag, wide))
        dt = jax.random.uniform(rngs.params(), (d_state // 2,), wide)
        self.log_dt = nnx.Param(initializers.log_dt(dt, dt_min=dt_min, dt_max=dt_max))
        basis_re, basis_im = (jnp.asarray(v, wide) for v in (basis.real, basis.imag))
        b = lecun_normal()(rngs.params(), (d_state, d_model), wide)
        self.b_re, self.b_im = nnx.Param(basis_re.T @ b), nnx.Param(-basis_im.T @ b)

        def output_map():
            if c_init == "complex_normal":
                shape = (2, d_model, d_state // 2)
                re, im = normal(0.5**0.5)(rngs.params(), shape, wide)
            else:
                batch_axis = 0 if c_init == "trunc_standard_normal" else ()
                shape = (d_model, d_state, 2)
                c = lecun_normal(batch_axis=batch_axis)(rngs.params(), shape, wide)
                re = c[..., 0] @ basis_re - c[..., 1] @ basis_im
                im = c[..., 0] @ basis_im + c[..., 1] @ basis_re
            return nnx.Param(re.astype(param_dtype)), nnx.Param(im.astype(param_dtype))

        self.c_re, self.c_im = output_map()
        if bidirectional:
            self.c2_re, self.c2_im = output_map()
        self.d = nnx.Param(normal(1.0)(rngs.params(), (d_model,), param_dtype))

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        dt: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        if not self.causal and carry is not None:
            raise refuse_carry(self)
        check_carry(self, carry, x.shape[0])
        check_convolves(self, self.mode, reset=reset, dt=dt)
        log_a, u = self._drive(x, dt)
        if self.mode == "convolution" and x.shape[1]:
            run = functools.partial(_convolve, u, log_a)
        else:
            run = functools.partial(
                ops.linear_scan, u, log_a=log_a, implementation=self.implementation
            )
        h, carry = run(h0=carry, reset=reset)
        y = 2 * from_states(h, self.c_re[...], self.c_im[...], dtype=self.dtype)
        if not self.causal:
            g, _ = run(reset=document_ends(reset), reverse=True)
            c2 = self.c2_re[...], self.c2_im[...]
            y, carry = y + 2 * from_states(g, *c2, dtype=self.dtype), None
        x, d = promote_dtype((x, self.d[...]), dtype=self.dtype)
        return y.astype(x.dtype) + d[None, None] * x, carry

    def system(self, dt: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Gives log a and b, (N / 2,) complex; (B, T, N / 2) for dt."""
        re = self.lambda_re[...]
        re = jnp.minimum(re, -1e-4) if self.clip_eigenvalues else re
        eigenvalues = lax.complex(re, self.lambda_im[...])
        steps = self.rate * jnp.exp(self.log_dt[...])
        if dt is not None:
            steps = dt.astype(steps.dtype)[..., None] * steps[None, None]
            eigenvalues = eigenvalues[None, None]
        return DISCRETIZATIONS[self.discretization](eigenvalues, steps)

    def _drive(self, x, dt):
        """Gives log a, and b * (B x) (B, T, N / 2) complex."""
        log_a, b = self.system(dt)
        b_re, b_im = self.b_re[...], self.b_im[...]
        if dt is not None:
            return log_a, b * to_states(x, b_re, b_im, dtype=self.dtype)
        matrix = b[:, None] * lax.complex(b_re, b_im)
        u = to_states(x, jnp.real(matrix), jnp.imag(matrix), dtype=self.dtype)
        return log_a, u

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        if not self.causal:
            raise refuse_carry(self)
        dtype = jnp.result_type(self.log_dt.dtype, jnp.complex64)
        return jnp.zeros((batch_size, self.d_state // 2), dtype)


def _convolve(u, log_a, *, h0=None, reset=None, reverse=False):
    """What the scan does, by Fourier transforms: u (B, T, N), log_a (N,), h0 (B, N)."""
    time = u.shape[1]
    if reverse:
        u = jnp.flip(u, axis=1)
    steps = jnp.arange(time + 1).astype(jnp.real(log_a).dtype)
    powers = jnp.exp(log_a[:, None] * steps[None])
    h = ops.fft_conv(u, powers[:, :-1])
    if h0 is not None:
        h = h + powers[:, 1:].T[None] * h0[:, None]
    last = h[:, -1]
    return jnp.flip(h, axis=1) if reverse else h, last
