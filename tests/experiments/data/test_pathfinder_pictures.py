import hashlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.data import pathfinder_contours as contours
from experiments.data import pathfinder_pictures
from experiments.data.pathfinder_contours import native
from experiments.data.pathfinder_pictures import Drawing, draw
from experiments.data.pathfinder_tables import SETTINGS, tables
from tests import golden

HARD = Drawing(32, 14)
# A program that prints the checksum of some images.
PRINT = """
import hashlib, sys
{first}
from experiments.data.pathfinder_contours import COMPILED
from experiments.data.pathfinder_pictures import Drawing, draw
assert COMPILED == {compiled}
for resolution, length, n in {which}:
    pictures = [draw(Drawing(resolution, length), 0, i) for i in range(n)]
    print(hashlib.sha256(b"".join(p.pixels.tobytes() for p in pictures)).hexdigest())
"""


def statistics(images):
    return {
        "mean": images.mean() / 255,
        "lit": (images > 0).mean(),
        "bright": (images > 127).mean(),
        "std": images.std() / 255,
    }


def pixels(pictures):
    return np.stack([picture.pixels for picture in pictures])


def n_distractors(pictures):
    return np.array([len(picture.starts) - 2 for picture in pictures])


def digest(pictures):
    return hashlib.sha256(pixels(pictures).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def hard():
    return [draw(HARD, 0, i) for i in range(600)]


def test_images_are_the_same_for_ever(hard):
    # Whoever changes these raises VERSION. They hang on the last bit of the C library's
    # sine and cosine at multiples of 30 degrees.
    assert digest(hard[:100]).startswith("b41d2615a86b548f")
    medium = [draw(Drawing(64, 9), 2**64 - 1, i) for i in range(5)]
    assert digest(medium).startswith("838767c09e9a5bbd")
    large = [draw(Drawing(128, 14), 0, i) for i in range(3)]
    assert digest(large).startswith("db0a651c3c91755b")
    assert [picture.label for picture in hard[:8]] == [0, 1, 1, 0, 0, 1, 1, 0]


def without_numba(which, subprocess_env):
    code = PRINT.format(
        first="sys.modules['numba'] = None", compiled=False, which=which
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=subprocess_env,
        check=True,
        capture_output=True,
        text=True,
    )
    return run.stdout.split()


def test_the_bits_are_the_same_without_numba(hard, subprocess_env):
    assert contours.COMPILED, "the tests need numba"
    which = [(32, 14, 20), (64, 6, 3)]
    easy = [draw(Drawing(64, 6), 0, i) for i in range(3)]
    assert without_numba(which, subprocess_env) == [digest(hard[:20]), digest(easy)]


@pytest.mark.slow
def test_more_bits_are_the_same_without_numba(subprocess_env):
    which = [(32, 14, 200), (32, 9, 100), (64, 14, 5), (128, 14, 4), (128, 6, 4)]
    wanted = [
        digest([draw(Drawing(resolution, length), 0, i) for i in range(n)])
        for resolution, length, n in which
    ]
    assert without_numba(which, subprocess_env) == wanted


def test_an_image_depends_on_nothing_but_its_place(hard):
    for i in (0, 99, 17):
        again = draw(HARD, 0, i)
        assert np.array_equal(again.pixels, hard[i].pixels)
        assert again.label == hard[i].label
        assert again.attempts == hard[i].attempts
        assert not np.array_equal(draw(HARD, 1, i).pixels, hard[i].pixels)
    assert len({picture.pixels.tobytes() for picture in hard}) == len(hard)


def test_images_are_full_scale_bytes(hard):
    images = pixels(hard)
    assert images.shape == (600, 32, 32) and images.dtype == np.uint8
    assert np.all(images.max((1, 2)) == 255) and np.all(images.min((1, 2)) == 0)


def test_statistics(hard):
    # Of 3,000 images; four standard errors of the 600 here.
    found = statistics(pixels(hard))
    assert found["mean"] == pytest.approx(0.079, abs=0.0015)
    assert found["lit"] == pytest.approx(0.341, abs=0.007)
    assert found["bright"] == pytest.approx(0.085, abs=0.0016)
    assert found["std"] == pytest.approx(0.200, abs=0.002)
    assert n_distractors(hard).mean() == pytest.approx(1.15, abs=0.15)
    positives = np.mean([picture.label for picture in hard])
    assert positives == pytest.approx(0.5, abs=4 * 0.5 / 600**0.5)


@pytest.mark.slow
def test_statistics_of_many():
    # The original program: .0787, .340, .0846, .1998, 1.11 on 2,100 images.
    pictures = [draw(HARD, 1, i) for i in range(4_000)]
    found = statistics(pixels(pictures))
    assert found["mean"] == pytest.approx(0.079, abs=0.0006)
    assert found["lit"] == pytest.approx(0.341, abs=0.0025)
    assert found["bright"] == pytest.approx(0.085, abs=0.0005)
    assert found["std"] == pytest.approx(0.2002, abs=0.0005)
    counts = np.bincount(n_distractors(pictures), minlength=6) / len(pictures)
    # Of another program by the same description, 3,000 images.
    expected = np.array([784, 1226, 766, 200, 22, 2]) / 3_000
    error = np.sqrt(expected * (1 / 3_000 + 1 / 4_000))
    assert np.all(np.abs(counts - expected) < 4 * error + 1e-3)
    labels = np.array([picture.label for picture in pictures])
    assert labels.mean() == pytest.approx(0.5, abs=4 * 0.5 / 4_000**0.5)
    grey = pixels(pictures).mean((1, 2)) / 255
    assert grey[labels == 1].mean() == pytest.approx(grey[labels == 0].mean(), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resolution", "n", "mean", "lit", "bright", "std", "placed"),
    [
        (64, 400, 0.0533, 0.265, 0.0465, 0.1628, 2.76),
        (128, 400, 0.0311, 0.138, 0.0304, 0.1402, 7.75),
    ],
)
def test_statistics_of_larger_images(resolution, n, mean, lit, bright, std, placed):
    # From 60 and 20 images of the original program and 150 and 40 of another.
    pictures = [draw(Drawing(resolution, 14), 0, i) for i in range(n)]
    found = statistics(pixels(pictures))
    assert found["mean"] == pytest.approx(mean, rel=0.05)
    assert found["lit"] == pytest.approx(lit, rel=0.05)
    assert found["bright"] == pytest.approx(bright, rel=0.05)
    assert found["std"] == pytest.approx(std, rel=0.03)
    assert n_distractors(pictures).mean() == pytest.approx(placed, rel=0.08)


@pytest.mark.parametrize(
    ("kind", "length", "n", "most"),
    [
        ("hard_len14", 14, 300, 4),
        ("intermediate_len9", 9, 300, 4),
        ("easy_len6", 6, 300, 4),
    ],
)
def test_images_of_the_original_program_have_these_statistics(kind, length, n, most):
    file = golden.load("pathfinder32.npz")
    images = file[f"{kind}/images"]
    ours = pixels([draw(Drawing(32, length), 0, i) for i in range(n)])
    found, expected = statistics(images), statistics(ours)
    for name, each in (
        ("mean", ours.mean((1, 2)) / 255),
        ("lit", (ours > 0).mean((1, 2))),
        ("bright", (ours > 127).mean((1, 2))),
    ):
        error = each.std() * (1 / len(images) + 1 / n) ** 0.5
        assert abs(found[name] - expected[name]) < most * error, name


def test_directions_in_which_contours_start(hard):
    first = [picture.starts[0] for picture in hard]
    distractors = np.concatenate([picture.starts[2:] for picture in hard])
    for starts in (first, distractors):
        assert min(starts) == -150 and max(starts) == -121
    second = np.array([picture.starts[1] for picture in hard])
    found = np.bincount((second + 180) // 30, minlength=12)
    # Some directions lead out of the image, or to where no contour fits.
    assert found.min() > 600 / 12 / 3 and found.max() < 600 / 12 * 2
    for resolution, margin, n_allowed in [(64, 1, 95), (128, 2, 354), (128, 3, 360)]:
        first = np.array(tables(resolution, margin).solid.first)
        assert np.count_nonzero(np.diff(first)) == n_allowed


def ridge_accuracy(images, labels):
    """Five folds, on raw pixels."""
    x = images.reshape(len(images), -1) / 255
    x = x - x.mean(0)
    y = 2.0 * labels - 1
    folds = np.arange(len(x)) % 5
    right = 0
    for fold in range(5):
        train, test = folds != fold, folds == fold
        gram = x[train].T @ x[train] + 30 * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[train].T @ y[train])
        right += np.sum((x[test] @ weights > 0) == (y[test] > 0))
    return right / len(x)


@pytest.mark.slow
def test_no_linear_classifier_tells_the_label():
    pictures = [draw(HARD, 2, i) for i in range(3_000)]
    labels = np.array([picture.label for picture in pictures])
    images = pixels(pictures)
    assert ridge_accuracy(images, labels) <= 0.53
    # That it can tell something at all: one bright row.
    images[labels == 1, 5] |= 128
    assert ridge_accuracy(images, labels) > 0.95


@pytest.mark.parametrize("marked", [0, 1])
@pytest.mark.parametrize("label", [0, 1])
def test_discs_are_on_one_contour_or_on_two(monkeypatch, marked, label):
    drawing = Drawing(128, 3)
    t = tables(128, 2)
    sheet = contours.sheet(t, 6)
    # Tails in the upper eighths, tips in the lower ones; contour 0 on the left.
    places = [(12, 12), (60, 12), (116, 12), (12, 116), (60, 116), (116, 116)]
    for dash, (row, column) in enumerate(places):
        sheet.points[dash] = (row + t.pad) * t.row + column + t.pad
    monkeypatch.setattr(contours, "paint", lambda *_: None)
    image = pathfinder_pictures._painted(drawing, t, sheet, 6, marked, label)
    lit = {place for place in places if image[place] > 200}
    assert np.count_nonzero(image > 200) < 2 * 49
    tail, tip = places[3 * marked], places[3 * (marked if label else 1 - marked) + 2]
    assert lit == {tail, tip}


def test_discs_near_an_edge_are_those_of_the_whole_image():
    for resolution in SETTINGS:
        radius = SETTINGS[resolution].marker_radius
        for place in [(0, 0), (3, resolution - 1), (resolution // 2, 5), (1, 16)]:
            canvas = np.zeros((resolution, resolution), np.int64)
            pathfinder_pictures._mark(canvas, np.array(place), radius)
            whole = pathfinder_pictures.marker(radius, resolution, *place)
            assert np.array_equal(canvas, 20 * whole.astype(np.int64)), (
                resolution,
                place,
            )


@pytest.mark.parametrize(
    ("resolution", "length", "message"),
    [
        (256, 14, "resolution of 32, 64, 128, not 256"),
        (32, 15, "from 3 to 14 dashes, got 15"),
        (32, 2, "from 3 to 14 dashes, got 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(resolution, length, message):
    with pytest.raises(ValueError, match=message):
        Drawing(resolution, length)


def test_contours_without_room_are_given_up(monkeypatch):
    monkeypatch.setattr(pathfinder_pictures, "_MAX_ATTEMPTS", 64)
    with pytest.raises(ValueError, match="64 attempts at two contours failed"):
        for i in range(20):
            draw(Drawing(64, 14), 0, i)


def test_a_failed_attempt_leaves_no_trace(hard):
    # What later attempts see depends on nothing that earlier ones drew.
    t = tables(32, 1)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (4_000, contours.n_target_words(14)))
    sheet = contours.sheet(t, 28)
    attempts = contours.draw_targets(t, sheet, 14, native(words))
    assert attempts > 1
    fresh = contours.sheet(t, 28)
    last = native(words[attempts - 1 : attempts])
    assert contours.draw_targets(t, fresh, 14, last) == 1
    assert np.array_equal(fresh.points, sheet.points)
    assert np.array_equal(fresh.mask, sheet.mask)


def test_without_a_folder_to_write_to_nothing_is_kept(monkeypatch):
    def njit(function, cache=False, **_):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(contours, "njit", njit)
    assert contours._compiled(statistics) is statistics
