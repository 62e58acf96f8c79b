"""The settings of Pathfinder images, and the tables that drawing needs.

The settings are those that Long Range Arena documents for the generator of Linsley et
al. 2018; "Learning long-range spatial dependencies with horizontal gated-recurrent
units".
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.data.pathfinder_contours import (
    N_DEGREES,
    ONE,
    Lists,
    Tables,
    native,
)
from experiments.data.pathfinder_stamps import dash, disc, disc_image, moved, unit

SCALE = 2  # of the finer grid


@dataclass(frozen=True)
class Settings:
    """What depends on the resolution."""

    dash_length: int
    thickness: float
    margins: tuple[int, ...]  # kept free around a dash; one is drawn for each image
    marker_radius: float
    seed_distance: int  # between the starts of the two contours
    continuity: float  # how much a contour likes to go straight on
    distractor_dashes: int  # asked for, in all distractors together
    contrast: int  # of the two contours, in parts of that of the discs, which is 20
    distractor_contrast: int


SETTINGS = {
    32: Settings(2, 0.5, (1,), 1.5, 7, 1.0, 20, 30, 40),
    64: Settings(5, 1.0, (1,), 2.5, 12, 1.8, 22, 16, 16),
    128: Settings(5, 1.5, (2, 3), 3.0, 20, 1.8, 35, 18, 18),
}
MARKER_CONTRAST = 20


@functools.cache
def tables(resolution: int, margin: int) -> Tables:
    """Return the tables for images of this resolution."""
    settings = SETTINGS[resolution]
    length = settings.dash_length
    reach = length + margin  # from a pivot to where the next dash may end
    pad = 2 * (length + 2 * margin)  # more than a dash or a pivot is ever outside
    row = resolution + 2 * pad
    ends = _circle(reach)
    starts = np.radians(np.arange(-180, 180))
    angles = np.concatenate([starts, np.arctan2(*ends.T)])
    # A contour's first dash leads away from its point; the others back to the pivot.
    drawn = np.concatenate([starts, _reversed(angles[N_DEGREES:])])
    lines, masks = zip(
        *(dash(a, length, settings.thickness, margin, SCALE) for a in drawn.tolist()),
        strict=True,
    )
    solid = [_solid(mask, reach) for mask in masks[:N_DEGREES]]
    first, n_rows, n_columns = _central(solid, settings.seed_distance, resolution, row)
    sides = np.radians(np.arange(N_DEGREES))
    coordinates = np.arange(row) - pad

    def flat_moves(ends: np.ndarray) -> np.ndarray:
        return (ends - coordinates) * [[row], [1]]

    return native(
        Tables(
            row=row,
            pad=pad,
            outside=_window(resolution, pad, inside=0, edge=0, outside=1),
            border=_window(resolution, pad, inside=0, edge=255, outside=0),
            line=_stamps(lines, row),
            mask=_stamps(masks, row),
            solid=_lists([(_flat(o, row), np.zeros(len(o), int)) for o in solid]),
            centre=np.stack([first + pad * (row + 1), n_rows, n_columns], 1),
            head=flat_moves(moved(coordinates, starts, length)),
            back=flat_moves(moved(coordinates, _reversed(starts), reach)),
            apart=flat_moves(
                moved(coordinates, sides, settings.seed_distance, np.round)
            ),
            advance=flat_moves(moved(coordinates, angles, reach + margin)),
            turn=_turns(angles, settings.continuity),
            circle=_flat(ends, row),
            near=_flat(disc(margin), row),
        )
    )


@functools.cache
def marker(radius: float, window: int, row: int, column: int) -> np.ndarray:
    """Return an image (window, window) with a disc."""
    return disc_image(window, np.array([row, column]), radius, SCALE)


def _reversed(angles: np.ndarray) -> np.ndarray:
    return np.where(angles < 0, angles + np.pi, angles - np.pi)


def _flat(offsets: np.ndarray, row: int) -> np.ndarray:
    return offsets @ np.array([row, 1])


def _window(
    resolution: int, pad: int, *, inside: int, edge: int, outside: int
) -> np.ndarray:
    """Return a flat window with one value in the image, on its edge and around it."""
    image = np.pad(np.full((resolution - 2,) * 2, inside), 1, constant_values=edge)
    return np.pad(image, pad, constant_values=outside).astype(np.int16).ravel()


def _stamps(images: Sequence[np.ndarray], row: int) -> Lists:
    """Return what is not 0 in each image, the highest values first."""
    lists = []
    for image in images:
        offsets = np.argwhere(image)
        values = image[tuple(offsets.T)].astype(np.int64)
        order = np.argsort(-values, kind="stable")
        points = _flat(offsets - len(image) // 2, row)
        lists.append((points[order], values[order]))
    return _lists(lists)


def _circle(radius: int) -> np.ndarray:
    """Return the points (n, 2) at arc steps of one on a circle, rounded down."""
    angles = np.arange(0, 2 * np.pi, 1 / radius)
    points = radius * unit(angles)
    return np.unique(np.floor(np.round(points, 9)).astype(np.int64), axis=0)


def _solid(mask: np.ndarray, reach: int) -> np.ndarray:
    """Return the offsets (n, 2) of what is looked at before a contour starts.

    As in the original program, which looks one point too far down and right, and lets
    no contour start in a direction that leaves nothing to look at in some corner of the
    image: at a resolution of 32 that is all but 30 of 360.
    """
    offsets = np.argwhere(mask == 255) - len(mask) // 2 + 1
    offsets = offsets[np.all(np.abs(offsets) <= reach, 1)]
    corners = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    in_image = np.all(offsets[:, None] * corners >= 0, 2)
    return offsets if in_image.any(0).all() else offsets[:0]


def _central(
    solid: list[np.ndarray], seed_distance: int, resolution: int, row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where contour 1 may start: the first point, rows and columns (360,) each.

    What is looked at is farther than twice the seed distance from the edge.
    """
    first, sizes = np.zeros((2, len(solid), 2), np.int64)
    for i, offsets in enumerate(solid):
        if len(offsets):
            first[i] = 2 * seed_distance - offsets.min(0)
            last = resolution - 1 - 2 * seed_distance - offsets.max(0)
            sizes[i] = np.maximum(last - first[i] + 1, 0)
    return _flat(first, row), sizes[:, 0], sizes[:, 1]


def _turns(angles: np.ndarray, continuity: float) -> Lists:
    """Return what may follow each direction: cos^2 of the turn times the continuity."""
    turns = np.abs(angles[:, None] - angles[N_DEGREES:])
    turns = np.minimum(turns, 2 * np.pi - turns)
    weights = np.cos(np.minimum(continuity * turns, np.pi / 2)) ** 2
    weights = np.round(ONE * weights).astype(np.int64)
    return _lists([(np.flatnonzero(w), w[np.flatnonzero(w)]) for w in weights])


def _lists(lists: list[tuple[np.ndarray, np.ndarray]]) -> Lists:
    first = np.cumsum([0, *(len(points) for points, _ in lists)], dtype=np.int64)
    return Lists(
        first, *(np.concatenate(arrays) for arrays in zip(*lists, strict=True))
    )
