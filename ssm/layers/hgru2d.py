"""The hierarchically gated recurrent unit over the two axes of a grid."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ssm.layers.base import Carry, check_input, refuse_carry
from ssm.layers.hgru import HGRU


class HGRU2D(HGRU):
    """HGRU over an image: four scans, down and up its columns and along its rows.

        h = sum of the scans over t of column w, s of row r, and both backwards
        y = out_proj(norm([Re h, Im h]) * gate_activation(gate(x)))

    where inputs and forget gates are those of `HGRU`, made once for each pixel, and all
    scans have them. Columns and rows are independent sequences: a pixel sees those of
    its own column and row. Its own input counts four times. Scans forwards have the
    phase theta, those backwards theta_reverse.

    Shapes: x (B, T, D) real -> y (B, T, D), where T = height * width counts the pixels
    row by row. It is not causal: takes no carry, returns None.

        y, _ = layer(x, lower_bound=None)

    Parameters: those of `HGRU`.

    Args:
      d_model: D, width of inputs, outputs and state.
      height: of the grid; None says that it is square.
      **options: those of `HGRU`, without bidirectional.

    Raises ValueError if T is not a multiple of the height, or not a square where there
    is none; if a carry is given, or a reset: a grid holds no documents.

    Source: Qin et al. 2023, HGRN (2311.04823), the two-dimensional form of its code for
    images and Long Range Arena.
    """

    def __init__(self, d_model: int, *, height: int | None = None, **options: Any):
        if height is not None and height < 1:
            raise ValueError(f"HGRU2D: height={height}, wanted at least 1, or None")
        super().__init__(d_model, bidirectional=True, **options)
        self.height = height

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        lower_bound: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        if carry is not None:
            raise refuse_carry(self)
        if reset is not None:
            raise ValueError("HGRU2D: a grid holds no documents, wanted reset=None")
        grid = (x.shape[0], *self._sides(x.shape[1]), self.d_model)
        c, f = (array.reshape(grid) for array in self.inputs(x))
        h = self._both_ways(c, f, lower_bound)
        c, f = (jnp.swapaxes(array, 1, 2) for array in (c, f))
        h = h + jnp.swapaxes(self._both_ways(c, f, lower_bound), 1, 2)
        return self.output(x, h.reshape(x.shape)), None

    def _both_ways(self, c, f, lower_bound):
        """Scans along the last axis but one of (B, S, T, D), both directions added."""
        grid = c.shape
        c, f = (array.reshape(-1, *grid[2:]) for array in (c, f))
        scan = functools.partial(self.scan, c, f, lower_bound)
        forward, _ = scan(theta=self.phase())
        backward, _ = scan(theta=self.phase(reverse=True), reverse=True)
        return (forward + backward).reshape(grid)

    def _sides(self, time):
        height = math.isqrt(time) if self.height is None else self.height
        if height == 0 or time % height or (self.height is None and height**2 != time):
            wanted = f"a multiple of height={height}"
            if self.height is None:
                wanted = "a square number of them, or a height for the layer"
            raise ValueError(f"HGRU2D: x has {time} steps, wanted {wanted}")
        return height, time // height
