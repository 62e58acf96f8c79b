"""The RG-LRU on TPU: gates, normaliser and scan in one kernel.

log a_t = rate * sigmoid(r_t)
h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * sigmoid(i_t) * x_t        (elementwise)
"""

import jax
import jax.numpy as jnp

from pallas_kernels import gated_scan_tpu
from pallas_kernels.gates import RgLruGates


def refuse(x: jax.Array, r: jax.Array, i: jax.Array) -> str | None:
    """Returns why `rg_lru_scan` cannot run here on these arguments, or None."""
    return gated_scan_tpu.refuse({"x": (x,), "r": (r,), "i": (i,)})


def rg_lru_scan(
    x: jax.Array,
    r: jax.Array,
    i: jax.Array,
    rate: jax.Array,
    h0: jax.Array,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the RG-LRU over time, on the TPU.

    Args:
      x: (B, T, D), float32 or bfloat16, T >= 1.
      r: (B, T, D), before its sigmoid, float32 or bfloat16.
      i: the same.
      rate: (D,) float32, the logarithm of the decay of an open gate, at most 0.
      h0: (B, D) float32.
      reset: (B, T) bool; where True, a_t is 0 and x_t is not normalised.

    Inside a `shard_map` that checks it, all arrays must vary over the same mesh axes.

    Returns:
      h (B, T, D) in the dtype of x, and the last state (B, D) float32. Differentiable
      in all but reset, in reverse mode, any number of times.
    """
    gates = RgLruGates(r.dtype == i.dtype == jnp.bfloat16)
    (h,), (last,) = gated_scan_tpu.gated_scan(
        gates, False, x.dtype, (r, i, x), (rate,), (h0,), reset
    )
    return h, last
