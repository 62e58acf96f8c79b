"""What Pathfinder is drawn with: dashes, the room that they keep free, and discs.

All are drawn in black and white on a finer grid and reduced by a Lanczos filter of
integer weights. Points and directions are (row, column), images uint8.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

_BITS = 22  # of the weights of the filter


def disc(radius: float) -> np.ndarray:
    """Return the offsets (n, 2) of the points within `radius` of the origin."""
    reach = np.arange(-int(radius), int(radius) + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
    return offsets[np.sum(offsets**2, 1) <= radius**2]


def unit(angles: np.ndarray) -> np.ndarray:
    """Return the directions (..., 2) of these angles (...), in radians."""
    # Not by NumPy, whose last bits depend on the processor.
    sines_and_cosines = [(math.sin(a), math.cos(a)) for a in angles.ravel().tolist()]
    return np.array(sines_and_cosines).reshape(*angles.shape, 2)


def moved(
    start: np.ndarray,
    angles: np.ndarray,
    distance: int,
    rounded: Callable[[np.ndarray], np.ndarray] = np.ceil,
) -> np.ndarray:
    """Return where moves from each start (n,) end, rounded: (..., 2, n).

    At angles of 30 degrees and the like the errors of floating point decide, as they do
    in the original program.
    """
    ends = start + distance * unit(angles)[..., None]
    return rounded(ends).astype(np.int64)


def dash(
    angle: float, length: int, thickness: float, margin: int, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of a dash that starts in the middle, and its mask.

    The mask is 255 where another dash may not be: within `margin` of this one.
    """
    half = length + math.ceil(thickness) + margin
    centre = half * scale
    canvas = np.zeros((2 * centre + 1, 2 * centre + 1), np.uint8)
    end = moved(np.array([centre]), np.array(angle), length * scale)[:, 0] - centre
    canvas[tuple(centre + _line(end, round(thickness * scale)).T)] = 255
    mask = np.zeros_like(canvas)
    for offset in disc(margin * scale):
        mask |= np.roll(canvas, tuple(offset), (0, 1))
    return reduced(canvas, 2 * half + 1), reduced(mask, 2 * half + 1)


def disc_image(
    window: int, centre: np.ndarray, radius: float, scale: int
) -> np.ndarray:
    """Return an image (window, window) with a disc."""
    canvas = np.zeros((window * scale, window * scale), np.uint8)
    points = centre * scale + disc(radius * scale)
    inside = np.all((points >= 0) & (points < len(canvas)), 1)
    canvas[tuple(points[inside].T)] = 255
    return reduced(canvas, window)


def reduced(image: np.ndarray, size: int) -> np.ndarray:
    """Return a square image at another size: Lanczos, along rows, then columns."""
    weights = _lanczos(len(image), size)
    rows = _rounded(image @ weights.T)
    return _rounded(weights @ rows).astype(np.uint8)


def _rounded(sums: np.ndarray) -> np.ndarray:
    return np.clip((sums + (1 << _BITS - 1)) >> _BITS, 0, 255)


@functools.cache
def _lanczos(old: int, new: int) -> np.ndarray:
    """Return the weights (new, old) of every old pixel in every new one."""
    ratio = old / new
    x = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * ratio) / ratio
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    return np.round(weights * 2**_BITS).astype(np.int64)


def _line(end: np.ndarray, width: int) -> np.ndarray:
    """Return the points (n, 2) of a straight line from the origin to `end`."""
    if width == 1:  # Bresenham
        steps = np.abs(end).max()
        along = np.arange(steps + 1)[:, None]
        return np.sign(end) * ((2 * along * np.abs(end) + steps) // (2 * steps))
    half = (width - 1) / 2
    less, more = math.ceil(half - 0.5), math.floor(half + 0.5)  # on its two sides
    sine, cosine = end / math.hypot(*end)
    left = np.array([_half_up(more * cosine), -_half_down(less * sine)])
    right = np.array([-_half_up(less * cosine), _half_down(more * sine)])
    return _filled(np.array([left, end + left, end + right, right]))


def _filled(corners: np.ndarray) -> np.ndarray:
    """Return the points (n, 2) of a convex polygon."""
    points = []
    edges = list(zip(corners, np.roll(corners, -1, 0), strict=True))
    for row in range(corners[:, 0].min(), corners[:, 0].max() + 1):
        columns: list[float] = []
        for start, end in edges:
            if start[0] == end[0] == row:
                columns += [start[1], end[1]]
            elif (start[0] - row) * (end[0] - row) <= 0 and start[0] != end[0]:
                down, right = end - start
                columns.append(start[1] + (row - start[0]) * right / down)
        first, last = math.floor(min(columns) + 0.5), math.ceil(max(columns) - 0.5)
        points += [(row, column) for column in range(first, last + 1)]
    return np.array(points)


def _half_up(x: float) -> int:
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def _half_down(x: float) -> int:
    return int(math.copysign(math.ceil(abs(x) - 0.5), x))
