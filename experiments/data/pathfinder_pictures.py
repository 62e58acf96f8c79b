"""Pathfinder images, drawn as the program behind Long Range Arena draws them.

Two long dashed contours and short distractors; two discs mark ends of contours. Label
1: both discs are on one contour, 0: they are on different ones. Which ends are marked
matters to nothing but the discs, so only the way along a contour tells the label.

An image is a pure function of (drawing, seed, index). Its random bits are SplitMix64's.
"""

import math
from dataclasses import dataclass

import numpy as np

from experiments.data import pathfinder_contours as contours
from experiments.data.pathfinder_contours import Sheet, Tables, native
from experiments.data.pathfinder_tables import (
    MARKER_CONTRAST,
    SETTINGS,
    Settings,
    marker,
    tables,
)
from experiments.data.splitmix import child

VERSION = 1  # to be raised when the same seed gives other images
_MAX_ATTEMPTS = 200_000  # at the two contours; 64 x 64 images need 4,000 on average
_ATTEMPTS_AT_ONCE = 64
_DISTRACTOR_ATTEMPTS = 5
_FILTER_REACH = 6  # points beyond a disc that the Lanczos filter looks at or changes


@dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Args:
      resolution: of the square image: 32, 64 or 128.
      contour_length: dashes of each of the two contours: 14 in Long Range Arena
        ("hard"); 9 in its intermediate and 6 in its easy images.

    Raises ValueError if there are no such images.
    """

    resolution: int
    contour_length: int

    def __post_init__(self):
        if self.resolution not in SETTINGS:
            known = ", ".join(map(str, SETTINGS))
            raise ValueError(
                f"images are drawn at a resolution of {known}, not {self.resolution}"
            )
        if not 3 <= self.contour_length <= 14:
            raise ValueError(
                f"contour_length must be from 3 to 14 dashes, got {self.contour_length}"
            )

    @property
    def settings(self) -> Settings:
        return SETTINGS[self.resolution]

    @property
    def distractor_length(self) -> int:
        return self.contour_length // 3

    @property
    def n_distractors(self) -> int:
        """Return how many are asked for; there is seldom room for all of them."""
        return self.settings.distractor_dashes // self.distractor_length


@dataclass(frozen=True)
class Picture:
    """An image and how it came about."""

    pixels: np.ndarray  # (resolution, resolution) uint8
    label: int
    attempts: int  # at the two contours
    starts: np.ndarray  # (2 + distractors,) the degrees in which the contours start


def draw(drawing: Drawing, seed: int, index: int) -> Picture:
    """Draw one image.

    Raises ValueError if two contours hardly ever find room.
    """
    key = child(np.array([seed], np.uint64), np.array([index]))
    choices, targets, distractors = child(key, np.arange(3))[:, None]
    words = _words(choices, np.arange(1), 3)[0].tolist()
    label, marked, margin = (
        word * n >> 32
        for word, n in zip(words, (2, 2, len(drawing.settings.margins)), strict=True)
    )
    t = tables(drawing.resolution, drawing.settings.margins[margin])

    n_target = 2 * drawing.contour_length
    n_most = n_target + drawing.n_distractors * drawing.distractor_length
    sheet = contours.sheet(t, n_most)
    attempts = _draw_targets(drawing, targets, t, sheet)
    n_dashes = contours.draw_distractors(
        t,
        sheet,
        n_target,
        drawing.n_distractors,
        drawing.distractor_length,
        _distractor_words(drawing, distractors),
    )
    directions = np.array(sheet.directions)[:n_dashes]
    return Picture(
        _painted(drawing, t, sheet, n_dashes, marked, label),
        label,
        attempts,
        directions[directions < contours.N_DEGREES] - 180,
    )


def _draw_targets(drawing: Drawing, key: np.ndarray, t: Tables, sheet: Sheet) -> int:
    length = drawing.contour_length
    for first in range(0, _MAX_ATTEMPTS, _ATTEMPTS_AT_ONCE):
        rows = np.arange(first, first + _ATTEMPTS_AT_ONCE)
        words = _words(key, rows, contours.n_target_words(length))
        attempts = contours.draw_targets(t, sheet, length, native(words))
        if attempts > 0:
            return first + attempts
    raise ValueError(f"{_MAX_ATTEMPTS:,} attempts at two contours failed: {drawing}")


def _distractor_words(drawing: Drawing, key: np.ndarray) -> np.ndarray:
    rows = np.arange(drawing.n_distractors * _DISTRACTOR_ATTEMPTS)
    n_words = contours.n_distractor_words(drawing.distractor_length)
    return native(_words(key, rows, n_words))


def _words(key: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Return n words of 32 random bits for each of these rows: (rows, n) int64."""
    return (child(child(key, rows)[:, None], np.arange(n)) >> 32).astype(np.int64)


def _painted(
    drawing: Drawing, t: Tables, sheet: Sheet, n_dashes: int, marked: int, label: int
) -> np.ndarray:
    """Return the image, with discs where contour `marked` starts and where one ends."""
    length, settings = drawing.contour_length, drawing.settings
    flat = np.zeros(len(t.border), np.int64)
    image = native(flat)
    contours.paint(t, sheet, 0, 2 * length, settings.contrast, image)
    contours.paint(t, sheet, 2 * length, n_dashes, settings.distractor_contrast, image)
    canvas = flat.reshape(t.row, t.row)[t.pad : -t.pad, t.pad : -t.pad]
    other = marked if label else 1 - marked
    for dash in (marked * length, other * length + length - 1):
        place = np.array(divmod(sheet.points[dash], t.row)) - t.pad
        _mark(canvas, place, settings.marker_radius)
    brightest = int(canvas.max())
    return ((2 * 255 * canvas + brightest) // (2 * brightest)).astype(np.uint8)


def _mark(canvas: np.ndarray, place: np.ndarray, radius: float) -> None:
    """Draw a disc, by a window that holds the edges of the image if they are near."""
    reach = math.ceil(radius) + _FILTER_REACH
    size = min(2 * reach + 1, len(canvas))
    row, column = np.clip(place - reach, 0, len(canvas) - size).tolist()
    disc = marker(radius, size, place[0] - row, place[1] - column).astype(np.int64)
    part = canvas[row : row + size, column : column + size]
    np.maximum(part, MARKER_CONTRAST * disc, out=part)
