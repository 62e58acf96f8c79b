"""S4: a state space for each channel that remembers all of the past."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from ssm import initializers, ops
from ssm.layers import dplr
from ssm.layers.base import Carry, recurrence_dtype
from ssm.layers.channel_state_space import ChannelStateSpace, check_copies
from ssm.layers.modes import MODES, Mode, check_choice


class S4(ChannelStateSpace):
    """A state space for each channel, whose matrix is diagonal plus low rank.

        x'(t) = (diag(lambda) - P P*) x(t) + B u(t)         y(t) = 2 Re(C x(t)) + D u(t)
        lambda = -exp(log_a_re) + i a_im                    dt = rate exp(log_dt)

    made discrete by the bilinear transform with step dt: h_t = Abar h_{t-1} + Bbar u_t,
    y_t = 2 Re(C h_t) + D u_t. As a convolution, y = K * u + D u with K_l = 2 Re(C
    Abar^l Bbar), whose transform is a sum of 1 / (z - dt lambda) at the roots of unity
    z, corrected for P. Each channel has N states of its own in conjugate pairs, of
    which one of each is held. At first A and B are those of HiPPO-LegS.

    With `bidirectional=True` a second kernel with an output map C2 of its own looks
    ahead, from the next step on: y_t += sum_{l >= 0} K2_l x_{t+1+l}.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, d_model, N / 2)
    complex64. Sequences may have any length. Those of up to `l_max` steps are fast to
    convolve with; kernels beyond, and those at another rate, come from powers of Abar.

    Parameters: log_dt (d_model,); log_a_re, a_im, b_re, b_im (n_ssm, N / 2); p_re, p_im
    (rank, n_ssm, N / 2), of rank one at first; c_re and c_im, and c2_re and c2_im if
    bidirectional (d_model, N / 2); d (d_model,) normal. What is held and trained in the
    place of C is C (I - Abar^l_max), at rate one, which is what the transform of K
    wants; C, drawn with variance 1/2 in each component, is worked out again for the
    recurrence. That takes about as long as a kernel; XLA moves it out of a loop over
    steps, but not if that holds a loop over blocks (`scan_layers`).

    Args:
      d_model: width of the inputs and outputs.
      d_state: N, counting both of each conjugate pair.
      l_max: how long sequences are in training.
      n_ssm: how many lambda, P and B there are, which channels take in turns.
      dt_min, dt_max: between which dt is drawn, uniformly in its logarithm.
      bidirectional: see above. The layer is then not causal.
      rate: how long a step is compared with those of training, to run at another
        sampling rate.
      mode: "convolution" by Fourier transforms, "recurrent", or None for the faster,
        which is the recurrence for single steps and a `reset` only.
      dtype: of the output; None takes that of the inputs and parameters. The states and
        the kernel are never narrower than float32.
      param_dtype: of the parameters; those of the recurrence are float32 at least.
      implementation: of the recurrence: "scan", or None, which is the same.

    Raises ValueError if x has another width, for an odd N, for a `reset` in a named
    convolution, and if a carry is given when bidirectional; NotImplementedError for
    another implementation.

    Source: Gu et al. 2022, S4 (2111.00396), sections 2 and 3; with P P* in the place
    of P Q*, for which A is always stable, as in Goel et al. 2022 (2202.09729).
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = (
        "log_dt",
        "log_a_re",
        "a_im",
        "p_re",
        "p_im",
        "b_re",
        "b_im",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        l_max: int,
        n_ssm: int = 1,
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
        check_choice(self, "mode", mode, MODES)
        if implementation not in (None, "scan"):
            raise NotImplementedError(
                f"S4: implementation={implementation!r}, wanted 'scan' or None: its "
                "recurrence is not diagonal, and runs step by step"
            )
        if d_state % 2 or d_state < 2:
            raise ValueError(
                f"S4: d_state={d_state}, wanted an even number: conjugate pairs"
            )
        if l_max < 1:
            raise ValueError(f"S4: l_max={l_max}, wanted the length of sequences")
        check_copies(self, n_ssm, d_model)
        self.d_model, self.d_state, self.n_ssm = d_model, d_state, n_ssm
        self.l_max, self.rate, self.mode = l_max, rate, mode
        self.causal, self.dtype = not bidirectional, dtype
        wide = recurrence_dtype(param_dtype)
        half = d_state // 2
        eigenvalues, p, b, _ = (v[..., :half] for v in initializers.legs_dplr(d_state))

        def repeated(row, *shape):
            return nnx.Param(jnp.broadcast_to(jnp.asarray(row, wide), (*shape, half)))

        def normal(shape, variance):
            return jax.random.normal(rngs.params(), shape, wide) * variance**0.5

        dt = jax.random.uniform(rngs.params(), (d_model,), wide)
        self.log_dt = nnx.Param(initializers.log_dt(dt, dt_min=dt_min, dt_max=dt_max))
        self.log_a_re = repeated(np.log(-eigenvalues.real), n_ssm)
        self.a_im = repeated(eigenvalues.imag, n_ssm)
        self.p_re, self.p_im = (repeated(v, 1, n_ssm) for v in (p.real, p.imag))
        self.b_re, self.b_im = (repeated(v, n_ssm) for v in (b.real, b.imag))
        self.c_re, self.c_im = self._draw_held(normal, param_dtype)
        if bidirectional:
            self.c2_re, self.c2_im = self._draw_held(normal, param_dtype)
        self.d = nnx.Param(normal((d_model,), 1.0).astype(param_dtype))

    def _draw_held(self, normal, param_dtype):
        """C (I - Abar^l_max) of a new C."""
        shape = (self.d_model, self.d_state // 2)
        c = lax.complex(normal(shape, 0.5), normal(shape, 0.5))
        c = dplr.truncated(self.system(), c, self.l_max)
        return [nnx.Param(v.astype(param_dtype)) for v in (jnp.real(c), jnp.imag(c))]

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        return self._apply(x, carry, reset, mask)

    def system(self, *, rate: float = 1.0) -> dplr.System:
        """lambda, P, B and dt of all channels, with steps so many times as long."""
        copies = self.d_model // self.n_ssm

        def of_channels(real, imaginary):
            return jnp.concatenate([lax.complex(real, imaginary)] * copies, axis=-2)

        return dplr.System(
            of_channels(-jnp.exp(self.log_a_re[...]), self.a_im[...]),
            of_channels(self.p_re[...], self.p_im[...]),
            of_channels(self.b_re[...], self.b_im[...]),
            rate * jnp.exp(self.log_dt[...]),
        )

    def step_map(self) -> dplr.Step:
        """Abar and Bbar."""
        return dplr.bilinear(self.system(rate=self.rate))

    def output_map(self, *, backward: bool = False) -> jax.Array:
        """C, or C2, (d_model, N / 2) complex."""
        return dplr.output_map(self.system(), self._held(backward), self.l_max)

    def kernel(self, length: int) -> jax.Array:
        """K, (d_model, length); if bidirectional K and K2, (2, d_model, length)."""
        directions = (False,) if self.causal else (False, True)
        if length <= self.l_max and self.rate == 1:
            held = jnp.stack([self._held(backward) for backward in directions])
            kernels = dplr.kernel(self.system(), held, self.l_max)[..., :length]
        else:
            kernels = jnp.stack([self._long_kernel(b, length) for b in directions])
        return kernels[0] if self.causal else kernels

    def _long_kernel(self, backward, length):
        step, c = self.step_map(), self.output_map(backward=backward)
        return dplr.free_response(step, c, step.b, length)[0].T

    def _held(self, backward):
        re, im = (self.c2_re, self.c2_im) if backward else (self.c_re, self.c_im)
        wide = self.log_dt.dtype
        return lax.complex(re[...].astype(wide), im[...].astype(wide))

    def _convolve(self, u, carry):
        time = u.shape[1]
        y = ops.fft_conv(u, self.kernel(time), bidirectional=not self.causal)
        if not self.causal:
            return y, None
        step = self.step_map()
        if carry is None:
            return y, dplr.last_state(step, u, self._start(u.shape[0]))
        after_a_step = dplr.advance(step, carry)
        y = y + dplr.free_response(step, self.output_map(), after_a_step, time)
        return y, dplr.last_state(step, u, carry)

    def _run(self, u, dt, reset, carry, *, backward=False):
        c = self.output_map(backward=backward)
        return dplr.run(self.step_map(), c, u, carry, reset)
