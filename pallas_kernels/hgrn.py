"""The HGRN's recurrence for the kernels of a device: gate, rotation and scan in one.

l_t = bound + (1 - bound) * sigmoid(f_t)
h_t = l_t * exp(1j theta) * h_{t-1} + (1 - l_t) * x_t             (elementwise)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_scan import Kernels, gated_scan
from pallas_kernels.planes import Planes
from pallas_kernels.sigmoid import sigmoid_and_rest


class HgrnGates(NamedTuple):
    """Of the inputs f, x (one plane or two) and the parameters bound, cos, sin.

    Without a rotation the last two are absent: see `gated_scan.Gates`.
    """

    narrow: bool  # whether f comes from bfloat16
    states: int
    decays: int  # 2 with a rotation
    name: str = "hgrn"
    transcendental: int = 1

    def __call__(
        self, inputs: Planes, parameters: Planes, restart: jax.Array | None
    ) -> tuple[Planes, Planes]:
        (f, *x), (bound, *rotation) = inputs, parameters
        keep, forget = sigmoid_and_rest(f, narrow=self.narrow)
        decay, scale = bound + (1.0 - bound) * keep, (1.0 - bound) * forget
        if restart is not None:
            decay = jnp.where(restart, 0.0, decay)
        drive = [scale * plane for plane in x]
        if len(drive) < self.states:
            drive.append(jnp.zeros_like(f))
        return tuple(decay * p for p in rotation) or (decay,), tuple(drive)


def refuse(kernels: Kernels, x: Planes, f: jax.Array) -> str | None:
    """Returns why `hgrn_scan` cannot run here on these arguments, or None."""
    return kernels.refuse({"x": x, "f": (f,)})


def hgrn_scan(
    kernels: Kernels,
    x: Planes,
    f: jax.Array,
    bound: jax.Array,
    theta: jax.Array | None,
    h0: Planes,
    reset: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[Planes, Planes]:
    """Runs the recurrence of an HGRN over time, on the device of `kernels`.

    Args:
      kernels: those of `gated_scan_tpu` or `gated_scan_gpu`.
      x: one plane (B, T, D) or two, float32 or bfloat16, T >= 1.
      f: (B, T, D), before its sigmoid, float32 or bfloat16.
      bound: (D,) float32, the least decay, below 1.
      theta: (D,) float32 in radians, or None for no rotation.
      h0: as many planes (B, D) float32 as h has: two if x has or theta is given.
      reset: (B, T) bool; True clears the state before x_t is added.
      reverse: scan from the last step to the first.

    Inside a `shard_map` that checks it, all arrays must vary over the same mesh axes.

    Returns:
      h, planes (B, T, D) in the dtype of x, in float32 if there are two, and the last
      state, planes (B, D) float32. Differentiable in all but reset, in reverse mode,
      any number of times.
    """
    rotation = () if theta is None else (jnp.cos(theta), jnp.sin(theta))
    gates = HgrnGates(f.dtype == jnp.bfloat16, len(h0), len(rotation) or 1)
    dtype = x[0].dtype if len(h0) == 1 else jnp.float32
    return gated_scan(
        kernels, gates, reverse, dtype, (f, *x), (bound, *rotation), h0, reset
    )
