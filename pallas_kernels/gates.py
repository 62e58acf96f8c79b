"""The gates of the fused scans: from what a layer computes to a decay and a drive.

Elementwise functions on planes, which the kernels of both platforms call on what they
hold of a time step, and differentiate; what they have to be is said in
`gated_scan_tpu.Gates`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.planes import Planes
from pallas_kernels.sigmoid import sigmoid, sigmoid_and_rest


class RgLruGates(NamedTuple):
    """Of the inputs r, i, x and the parameter `rate`: see `gated_scan_tpu.Gates`."""

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


class HgrnGates(NamedTuple):
    """Of the inputs f, x (one plane or two) and the parameters bound, cos, sin.

    Without a rotation the last two are absent: see `gated_scan_tpu.Gates`.
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
