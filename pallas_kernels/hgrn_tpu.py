"""The HGRN's recurrence on TPU: forget gate, rotation and scan in one kernel.

l_t = bound + (1 - bound) * sigmoid(f_t)
h_t = l_t * exp(1j theta) * h_{t-1} + (1 - l_t) * x_t             (elementwise)
"""

import jax
import jax.numpy as jnp

from pallas_kernels import gated_scan_tpu
from pallas_kernels.gates import HgrnGates
from pallas_kernels.planes import Planes


def refuse(x: Planes, f: jax.Array) -> str | None:
    """Returns why `hgrn_scan` cannot run here on these arguments, or None."""
    return gated_scan_tpu.refuse({"x": x, "f": (f,)})


def hgrn_scan(
    x: Planes,
    f: jax.Array,
    bound: jax.Array,
    theta: jax.Array | None,
    h0: Planes,
    reset: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[Planes, Planes]:
    """Runs the recurrence of an HGRN over time, on the TPU.

    Args:
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
    return gated_scan_tpu.gated_scan(
        gates, reverse, dtype, (f, *x), (bound, *rotation), h0, reset
    )
