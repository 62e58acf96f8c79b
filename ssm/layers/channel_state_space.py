"""What the layers with a state space for each channel have in common."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    refuse_carry,
    strictly_ahead,
)
from ssm.layers.modes import Mode, check_convolves


class ChannelStateSpace(SequenceLayer):
    """y = ssm(u) + D * u, where ssm is a convolution or a recurrence of each channel.

    Layers of this kind also take `mask` (B, T) bool, True at the valid steps of
    sequences that are padded at the end: inputs beyond count as zeros, which a
    convolution can do, and `reset` is not looked at.
    """

    per_layer = ("mask",)
    d_model: int
    d_state: int
    mode: Mode | None
    dtype: DTypeLike | None
    log_dt: nnx.Param
    d: nnx.Param

    def _apply(self, x, carry, reset, mask, dt=None):
        """The call; `dt` (B, T) is how long each step is, compared with the others."""
        check_input(self, x, self.d_model)
        if not self.causal and carry is not None:
            raise refuse_carry(self)
        check_carry(self, carry, x.shape[0])
        u = x.astype(self.log_dt.dtype)
        if mask is not None:
            u, reset = jnp.where(mask[..., None], u, 0), None
        check_convolves(self, self.mode, reset=reset, dt=dt)
        if self._convolves(x.shape[1], reset is not None or dt is not None):
            y, carry = self._convolve(u, carry)
        else:
            y, carry = self._recur(u, dt, reset, carry)
        dtype = self.dtype or jnp.promote_types(x.dtype, self.d.dtype)
        y = y + self.d[...].astype(y.dtype)[None, None] * u
        return y.astype(dtype), carry

    def _convolves(self, time, steps_differ):
        if self.mode is not None:
            return self.mode == "convolution"
        return time > 1 and not steps_differ

    def _convolve(self, u, carry):
        """Y without D, and the carry, from u (B, T, d_model) and a carry or None."""
        raise NotImplementedError

    def _run(self, u, dt, reset, carry, *, backward=False):
        """The recurrence forwards, read by C or C2; y and the carry."""
        raise NotImplementedError

    def _recur(self, u, dt, reset, carry):
        start = self._start(u.shape[0])
        y, last = self._run(u, dt, reset, start if carry is None else carry)
        if self.causal:
            return y, last

        def run(inputs, reset):
            u, dt = inputs
            return self._run(u, dt, reset, start, backward=True)[0]

        return y + strictly_ahead(run, (u, dt), reset), None

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        if not self.causal:
            raise refuse_carry(self)
        return self._start(batch_size)

    def _start(self, batch_size: int) -> Carry:
        """No inputs: zeros, (B, d_model, N / 2) complex."""
        shape = (batch_size, self.d_model, self.d_state // 2)
        return jnp.zeros(shape, jnp.result_type(self.log_dt.dtype, jnp.complex64))


def check_copies(layer: nnx.Module, n_ssm: int, d_model: int) -> None:
    """Raises ValueError unless channels can take so many state matrices in turns."""
    if n_ssm < 1 or d_model % n_ssm:
        raise ValueError(
            f"{type(layer).__name__}: n_ssm={n_ssm}, wanted a divisor of the {d_model} "
            "channels"
        )
