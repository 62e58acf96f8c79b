"""A whole set of Pathfinder images, drawn by several processes into a file.

What was drawn is on disk at once: a process that is killed and started again goes on.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.data.pathfinder_pictures import VERSION, Drawing, draw
from experiments.data.rows import Rows
from experiments.data.workers import N_WORKERS, in_processes
from experiments.errors import UserError

__all__ = ["VERSION", "Drawing", "generate"]

_CHUNK = 2**16  # pixels that one task of a process draws: 64 or 4 images
_NOT_DRAWN = 255  # in place of a label


def generate(
    drawing: Drawing,
    seed: int,
    n_images: int,
    folder: Path,
    *,
    n_workers: int = N_WORKERS,
    report: Callable[[int], None] = lambda done: None,
) -> Rows:
    """Draw images 0 to n_images - 1 into two files of `folder`, by `n_workers`.

    Images that are there already are not drawn again. The result depends on (drawing,
    seed, n_images) alone. `report` is told how many images are done.

    Returns pixels row by row, uint8, and labels, uint8. The pixels are read from the
    disk when they are used, so they need no memory.

    Raises ValueError if contours hardly ever find room, UserError if the disk is full
    or one of the processes is killed.
    """
    name = (
        f"pathfinder{drawing.resolution}-length{drawing.contour_length}-seed{seed}"
        f"-{n_images}-v{VERSION}"
    )
    size = drawing.resolution**2
    pixels, labels = folder / f"{name}.pixels", folder / f"{name}.labels"
    _create(pixels, labels, n_images, size)

    n_chunk = max(1, _CHUNK // size)
    starts = np.arange(0, n_images, n_chunk)
    drawn = np.fromfile(labels, np.uint8) != _NOT_DRAWN
    wanted = starts[~np.logical_and.reduceat(drawn, starts)].tolist()
    chunks = [range(start, min(start + n_chunk, n_images)) for start in wanted]
    done = n_images - sum(map(len, chunks))
    report(done)
    if chunks:
        draw(drawing, seed, 0)  # compiles, before all processes do so at once
    work = functools.partial(_draw_chunk, drawing, seed, pixels, labels)
    for n_drawn in in_processes(work, chunks, n_workers):
        done += n_drawn
        report(done)
    images = np.memmap(pixels, np.uint8, mode="r", shape=(n_images, size))
    return Rows.table(images, np.fromfile(labels, np.uint8))


def _create(pixels: Path, labels: Path, n_images: int, size: int) -> None:
    """Create the files as if nothing were drawn, unless they are there."""
    sizes = {pixels: n_images * size, labels: n_images}
    if all(p.is_file() and p.stat().st_size == n for p, n in sizes.items()):
        return
    pixels.parent.mkdir(parents=True, exist_ok=True)
    labels.unlink(missing_ok=True)
    with open(pixels, "wb") as file:
        file.truncate(n_images * size)
    complete = labels.with_suffix(".new")
    complete.write_bytes(bytes([_NOT_DRAWN]) * n_images)
    complete.rename(labels)


def _draw_chunk(
    drawing: Drawing, seed: int, pixels: Path, labels: Path, images: range
) -> int:
    """Draw these images and write them: the labels, which say so, last of all."""
    pictures = [draw(drawing, seed, i) for i in images]
    drawn = np.stack([picture.pixels for picture in pictures])
    try:
        _write(pixels, images[0] * drawing.resolution**2, drawn.tobytes())
        _write(labels, images[0], bytes(picture.label for picture in pictures))
    except OSError as error:
        raise UserError(
            f"cannot write {pixels} ({error.strerror}): make room there, or choose "
            "another folder with --config.data.cache_dir"
        ) from error
    return len(pictures)


def _write(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
