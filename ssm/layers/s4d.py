"""S4D: a diagonal state space for each channel."""

from typing import ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from ssm import initializers, ops
from ssm.initializers import DiagonalKind
from ssm.layers.base import Carry, recurrence_dtype
from ssm.layers.channel_state_space import ChannelStateSpace, check_copies
from ssm.layers.channel_states import in_chunks, scan_states
from ssm.layers.discretization import DISCRETIZATIONS, Discretization
from ssm.layers.modes import MODES, Mode, check_choice
from ssm.layers.vandermonde import exponential_sum, weighted_states


class S4D(ChannelStateSpace):
    """A diagonal state space for each channel, as a convolution or as a recurrence.

        h_t = a h_{t-1} + b x_t         y_t = 2 Re sum_n c_n h_{t,n} + D x_t
        lambda = -exp(log_a_re) + i a_im            dt = rate exp(log_dt)
        a = exp(dt lambda),  b = (a - 1) / lambda B              "zoh"
        a = (1 + dt lambda / 2) / (1 - dt lambda / 2),
        b = dt / (1 - dt lambda / 2) B                           "bilinear"

    or y = K * x + D x with K_l = 2 Re sum_n c_n b_n a_n^l. Each channel has N states of
    its own in conjugate pairs, of which one of each is held.

    With `bidirectional=True` a second kernel with an output map C2 of its own looks
    ahead, from the next step on: y_t += sum_{l >= 0} K2_l x_{t+1+l}.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, d_model, N / 2)
    complex64. The steps may have lengths of their own, for samples at irregular times:
    `layer(x, dt=dt)` with dt (B, T), which multiplies that of the channels; these go
    through the recurrence.

    Parameters: log_dt (d_model,); log_a_re, a_im, b_re, b_im (n_ssm, N / 2); c_re and
    c_im, and c2_re and c2_im if bidirectional (d_model, N / 2), each component of
    variance 1/2; d (d_model,) normal. B is one at first.

    Args:
      d_model: width of the inputs and outputs.
      d_state: N, counting both of each conjugate pair.
      init: the eigenvalues at first, "lin", "inv", "legs" or "real", see
        `ssm.initializers.s4d`.
      discretization: see above.
      n_ssm: how many lambda and B there are, which channels take in turns; None is one
        for each channel.
      dt_min, dt_max: between which dt is drawn, uniformly in its logarithm.
      bidirectional: see above. The layer is then not causal.
      rate: how long a step is compared with those of training, to run at another
        sampling rate.
      mode: "convolution" by Fourier transforms, "recurrent", or None for the faster,
        which is the recurrence for single steps, a `reset` and irregular times only.
      dtype: of the output; None takes that of the inputs and parameters. The states and
        the kernel are never narrower than float32.
      param_dtype: of the parameters; those of the recurrence are float32 at least.
      implementation: of the scan, see `ssm.ops.linear_scan`.

    Raises ValueError if x has another width, for an odd N and unknown names, for a
    `reset` or `dt` in a named convolution, and if a carry is given when bidirectional.

    Source: Gu et al. 2022, S4D (2206.11893); both directions as in S4 (2111.00396).
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = (
        "log_dt",
        "log_a_re",
        "a_im",
        "b_re",
        "b_im",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: DiagonalKind = "lin",
        discretization: Discretization = "zoh",
        n_ssm: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bidirectional: bool = False,
        rate: float = 1.0,
        mode: Mode | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        n_ssm = d_model if n_ssm is None else n_ssm
        check_choice(self, "init", init, get_args(DiagonalKind))
        check_choice(self, "discretization", discretization, DISCRETIZATIONS)
        check_choice(self, "mode", mode, MODES)
        check_copies(self, n_ssm, d_model)
        self.d_model, self.d_state, self.n_ssm = d_model, d_state, n_ssm
        self.discretization, self.rate, self.mode = discretization, rate, mode
        self.causal = not bidirectional
        self.dtype, self.implementation = dtype, implementation
        wide = recurrence_dtype(param_dtype)
        eigenvalues = initializers.s4d(d_state, kind=init)
        of_states, of_channels = (n_ssm, d_state // 2), (d_model, d_state // 2)

        def repeated(row):
            return nnx.Param(jnp.broadcast_to(jnp.asarray(row, wide), of_states))

        def normal(shape, variance):
            draw = jax.random.normal(rngs.params(), shape, param_dtype)
            return nnx.Param(draw * variance**0.5)

        dt = jax.random.uniform(rngs.params(), (d_model,), wide)
        self.log_dt = nnx.Param(initializers.log_dt(dt, dt_min=dt_min, dt_max=dt_max))
        self.log_a_re = repeated(np.log(-eigenvalues.real))
        self.a_im = repeated(eigenvalues.imag)
        self.b_re, self.b_im = repeated(1.0), repeated(0.0)
        self.c_re, self.c_im = normal(of_channels, 0.5), normal(of_channels, 0.5)
        if bidirectional:
            self.c2_re, self.c2_im = normal(of_channels, 0.5), normal(of_channels, 0.5)
        self.d = normal((d_model,), 1.0)

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        mask: jax.Array | None = None,
        dt: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        return self._apply(x, carry, reset, mask, dt)

    def system(self, dt: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Gives log a and b, (d_model, N / 2) complex; (B, T, d_model, N / 2) by dt."""
        eigenvalues, b, steps = self.continuous()
        if dt is not None:
            steps = dt.astype(steps.dtype)[..., None, None] * steps[None, None]
            eigenvalues, b = eigenvalues[None, None], b[None, None]
        log_a, factor = DISCRETIZATIONS[self.discretization](eigenvalues, steps)
        return log_a, factor * b

    def continuous(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gives lambda and B, (d_model, N / 2) complex, and dt, (d_model, 1)."""
        eigenvalues = lax.complex(-jnp.exp(self.log_a_re[...]), self.a_im[...])
        b = lax.complex(self.b_re[...], self.b_im[...])
        copies = self.d_model // self.n_ssm
        eigenvalues, b = jnp.tile(eigenvalues, (copies, 1)), jnp.tile(b, (copies, 1))
        return eigenvalues, b, self.rate * jnp.exp(self.log_dt[...])[:, None]

    def output_map(self, *, backward: bool = False) -> jax.Array:
        """C, or C2, (d_model, N / 2) complex."""
        re, im = (self.c2_re, self.c2_im) if backward else (self.c_re, self.c_im)
        wide = self.log_dt.dtype
        return lax.complex(re[...].astype(wide), im[...].astype(wide))

    def kernel(self, length: int) -> jax.Array:
        """K, (d_model, length); if bidirectional K and K2, (2, d_model, length)."""
        log_a, b = self.system()
        kernel = exponential_sum(log_a, self.output_map() * b, length)
        if self.causal:
            return kernel
        ahead = exponential_sum(log_a, self.output_map(backward=True) * b, length)
        return jnp.stack([kernel, ahead])

    def _convolve(self, u, carry):
        time = u.shape[1]
        y = ops.fft_conv(u, self.kernel(time), bidirectional=not self.causal)
        if not self.causal:
            return y, None
        log_a, b = self.system()
        last = b[None] * weighted_states(log_a, u)
        if carry is not None:
            after_a_step = jnp.exp(log_a) * self.output_map()
            free = exponential_sum(log_a, after_a_step[None] * carry, time)
            y = y + jnp.swapaxes(free, 1, 2)
            last = last + jnp.exp(time * log_a)[None] * carry
        return y, last

    def _run(self, u, dt, reset, carry, *, backward=False):
        return self._scan(self._drive, (u, dt), reset, carry, backward=backward)

    def _scan(self, drive, inputs, reset, h0, *, backward):
        """Reads the states for the a and x that `drive` makes of (B, T, ...) inputs."""
        c = self.output_map(backward=backward)[None, None]

        def run(h, xs):
            a, x = drive(*xs[0])
            h, last = scan_states(a, x, h, xs[1], implementation=self.implementation)
            return last, 2 * jnp.sum(jnp.real(c * h), axis=-1)

        last, y = in_chunks(run, h0, (inputs, reset))
        return y, last

    def _drive(self, u, dt):
        """Gives a, and b u (B, T, d_model, N / 2)."""
        log_a, b = self.system(dt)
        b = b[None, None] if dt is None else b
        return jnp.exp(log_a), b * u[..., None]
