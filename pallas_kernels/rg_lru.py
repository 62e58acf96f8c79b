"""The RG-LRU for the kernels of a device: gates, normaliser and scan in one.

log a_t = rate * sigmoid(r_t)
h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * sigmoid(i_t) * x_t        (elementwise)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_scan import Kernels, gated_scan
from pallas_kernels.planes import Planes
from pallas_kernels.sigmoid import sigmoid


class RgLruGates(NamedTuple):
    """Of the inputs r, i, x and the parameter `rate`: see `gated_scan.Gates`."""

    narrow: bool  # whether r and i come from bfloat16
    name: str = "rg_lru"
    states: int = 1
    decays: int = 1
    transcendental: int = 4

    def __call__(
        self, inputs: Planes, parameters: Planes, restart: jax.Array | None
    ) -> tuple[Planes, Planes]:
        (r, i, x), (rate,) = inputs, parameters
        a, normaliser = _decay_and_normaliser(rate * sigmoid(r, narrow=self.narrow))
        if restart is not None:
            a = jnp.where(restart, 0.0, a)
            normaliser = jnp.where(restart, 1.0, normaliser)
        return (a,), (normaliser * (sigmoid(i, narrow=self.narrow) * x),)


@jax.custom_jvp
def _decay_and_normaliser(log_a):
    """Returns a and sqrt(1 - a^2), whose derivative by 1 - a^2 is at most 1000."""
    return _with_slope(log_a)[:2]


@_decay_and_normaliser.defjvp
def _(primals, tangents):
    a, normaliser, slope = _with_slope(*primals)
    d_a = a * tangents[0]
    return (a, normaliser), (d_a, slope * d_a)


def _with_slope(log_a):
    """Returns a, n = sqrt(1 - a^2) and the slope dn/da = -a / n.

    1 - a^2 is a series in y = -2 log a where the difference would cancel: where they
    meet the one is off by y^4 / 120 and the other by 1.2e-7 / y, both below 2e-6.
    """
    a = jnp.exp(log_a)
    y = -2.0 * log_a
    series = y * (1.0 + y * (-1.0 / 2 + y * (1.0 / 6 - y * (1.0 / 24))))
    rest = jnp.where(y < 0.0875, series, 1.0 - a * a)
    root = lax.rsqrt(jnp.maximum(rest, 1e-30))
    return a, rest * root, -a * jnp.minimum(root, 2000.0)


def refuse(kernels: Kernels, x: jax.Array, r: jax.Array, i: jax.Array) -> str | None:
    """Returns why `rg_lru_scan` cannot run here on these arguments, or None."""
    return kernels.refuse({"x": (x,), "r": (r,), "i": (i,)})


def rg_lru_scan(
    kernels: Kernels,
    x: jax.Array,
    r: jax.Array,
    i: jax.Array,
    rate: jax.Array,
    h0: jax.Array,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the RG-LRU over time, on the device of `kernels`.

    Args:
      kernels: those of `gated_scan_tpu` or `gated_scan_gpu`.
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
    (h,), (last,) = gated_scan(
        kernels, gates, False, x.dtype, (r, i, x), (rate,), (h0,), reset
    )
    return h, last
