"""Drawing a Pathfinder image on one core, and the start of a process that does."""

import subprocess
import sys
import time

import numpy as np

from benchmarks.harness import ROOT, at_most, table
from experiments.data.pathfinder_contours import COMPILED
from experiments.data.pathfinder_pictures import Drawing, draw

# By resolution: images to draw, milliseconds of the original program, the goal, and the
# mean grey that the images must have.
CASES = {
    32: (2_000, "100 to 135", 10, 0.079),
    64: (200, "4300", None, 0.0533),
    128: (200, "3800", 150, 0.0311),
}
LONG_RANGE_ARENA = 200_000  # images of each task
START = """
import time
start = time.process_time()
from experiments.data.pathfinder_pictures import Drawing, draw
draw(Drawing(32, 14), 0, 0)
print(time.process_time() - start)
"""
PLAIN = """
import sys, time
sys.modules["numba"] = None
from experiments.data.pathfinder_pictures import Drawing, draw
for resolution, n in ((32, 50), (64, 10), (128, 10)):
    draw(Drawing(resolution, 14), 0, 0)
    start = time.process_time()
    for i in range(n):
        draw(Drawing(resolution, 14), 0, i)
    print((time.process_time() - start) / n)
"""


def check(images: np.ndarray, grey: float) -> None:
    """Refuse images that are not as grey as those of the original program."""
    assert abs(images.mean() / 255 / grey - 1) < 0.05, images.mean() / 255


def printed(code: str) -> list[float]:
    """Return the numbers that a program of its own prints."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [float(line) for line in run.stdout.split()]


def run() -> str:
    """Return the table."""
    if not COMPILED:
        return "Numba is not installed: the extra `fast-data`.\n"
    plain = printed(PLAIN)
    rows = []
    for (resolution, (n, original, goal, grey)), slow in zip(
        CASES.items(), plain, strict=True
    ):
        drawing = Drawing(resolution, 14)
        draw(drawing, 0, 0)
        start = time.process_time()
        images = np.stack([draw(drawing, 0, i).pixels for i in range(n)])
        ms = (time.process_time() - start) / n * 1e3
        check(images, grey)
        rows.append(
            [
                f"{resolution} x {resolution}",
                at_most(ms, goal, "ms") if goal else f"{ms:.3g} ms",
                f"{1e3 / ms:.0f}",
                f"{slow * 1e3:.3g} ms",
                f"{original} ms",
                f"{ms * LONG_RANGE_ARENA / 3.6e6:.2g} h",
            ]
        )
    header = [
        "contours of 14 dashes",
        "an image",
        "images a second",
        "without Numba",
        "the original program",
        f"{LONG_RANGE_ARENA:,} images",
    ]
    (seconds,) = printed(START)
    return (
        "On one core, in its own time. The original program's time is that of another "
        "machine.\n\n"
        + table(header, rows)
        + f"\n\nThe first image of a process takes {seconds:.2g} s, imports and tables "
        "included; compiling, once on a machine, some 5 s more."
    )
