import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments.data.pathfinder_stamps import dash, disc, disc_image, moved, reduced
from experiments.data.pathfinder_tables import SETTINGS

SHAPES = [
    (s.dash_length, s.thickness, margin)
    for s in SETTINGS.values()
    for margin in s.margins
]


def resized(image, size):
    """By the library whose filter the original program used."""
    return np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
    )


@pytest.mark.parametrize(("old", "new"), [(17, 9), (43, 21), (64, 32), (20, 8)])
def test_the_filter_is_that_of_pillow_to_the_bit(old, new):
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.9):
        image = (rng.random((old, old)) < share).astype(np.uint8) * 255
        assert np.array_equal(reduced(image, new), resized(image, new))


@pytest.mark.parametrize(("length", "thickness", "margin"), SHAPES)
def test_dashes_are_pillows_lines_and_masks_their_surroundings(
    length, thickness, margin
):
    half = length + math.ceil(thickness) + margin
    centre = 2 * half
    for degrees in range(-180, 180, 7):
        angle = math.radians(degrees)
        canvas = Image.new("L", (2 * centre + 1,) * 2)
        end = [math.ceil(centre + 2 * length * f(angle)) for f in (math.cos, math.sin)]
        ImageDraw.Draw(canvas).line(
            [(centre, centre), tuple(end)], fill=255, width=round(2 * thickness)
        )
        image, mask = dash(angle, length, thickness, margin, 2)
        line = np.asarray(canvas)
        assert np.array_equal(image, resized(line, 2 * half + 1))

        points = np.argwhere(line)
        grid = np.indices(line.shape).reshape(2, 1, -1)
        distances = np.sum((grid - points.T[..., None]) ** 2, 0).min(0)
        around = (distances <= (2 * margin) ** 2).reshape(line.shape) * np.uint8(255)
        assert np.array_equal(mask, resized(around, 2 * half + 1))


def test_disc_image():
    image = disc_image(32, np.array([10, 20]), 1.5, 2)
    grid = np.indices((64, 64))
    inside = (grid[0] - 20) ** 2 + (grid[1] - 40) ** 2 <= 9
    assert np.array_equal(image, resized(inside * np.uint8(255), 32))
    at_corner = disc_image(32, np.array([0, 31]), 1.5, 2)
    assert at_corner[0, 31] == at_corner.max() > 200


def test_disc():
    assert sorted(map(tuple, disc(1))) == [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
    assert len(disc(2)) == 13 and len(disc(3)) == 29 and len(disc(1.5)) == 9


def test_moves_round_up():
    ends = moved(np.array([10, 20]), np.radians([45, -45]), 2)
    assert ends.tolist() == [[[12, 22], [12, 22]], [[9, 19], [12, 22]]]
