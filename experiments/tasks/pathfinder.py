"""Pathfinder of Long Range Arena, and Path-X: are two discs on the same contour?"""

import shutil
from pathlib import Path
from typing import Any, ClassVar

from experiments.data import (
    archives,
    builders,
    pathfinder_archive,
    pathfinder_generator,
    splits,
)
from experiments.data.pathfinder_generator import Drawing
from experiments.data.progress import counter
from experiments.data.rows import Rows
from experiments.errors import UserError
from experiments.tasks.origin import Origin
from experiments.tasks.pixels import PixelTask

_DIFFICULTIES = {6: "easy", 9: "intermediate", 14: "hard"}  # by contour length
_OFFICIAL_LENGTH, _OFFICIAL_IMAGES = 14, 200_000
_IMAGES = "images"  # the one part that is prepared; splits are cut afterwards


class Pathfinder(PixelTask):
    """Images of 32 x 32 pixels, drawn here or read from Long Range Arena's archive.

    Images are prepared at first use and kept in `cache_dir`. Drawn as many, and as
    hard, as Long Range Arena's they have the distribution of those but are others,
    "regenerated". All other sizes and difficulties are a "stand-in", and then the task
    has another name, such as `pathfinder32_gen`.

    Args:
      resolution: pixels a side: 32, or 64, which is not in Long Range Arena.
      contour_length: dashes of a contour: 14 ("hard"), 9 ("intermediate"), 6 ("easy").
      n_images: of all splits: 80 % to train on, 10 % to choose by, 10 % to report.
      data_seed: of the images drawn.
      split: which are which: "permuted", a fixed draw, or "tail", in their order.
      cache_dir: where prepared images are kept.
      source: where the archive is, packed or not; empty: draw.
    """

    name = "pathfinder"
    mean = (0.5,)
    deviation = (0.5,)
    official_resolution: ClassVar[int] = 32

    def __init__(
        self,
        *,
        resolution: int,
        contour_length: int,
        n_images: int,
        data_seed: int,
        split: str,
        cache_dir: str,
        source: str,
    ):
        if resolution not in (self.official_resolution, 64):
            raise ValueError(
                f"resolution must be {self.official_resolution} or 64, got {resolution}"
            )
        if contour_length not in _DIFFICULTIES:
            raise ValueError(f"contour_length must be 14, 9 or 6, got {contour_length}")
        if not 0 <= data_seed < 2**64:
            raise ValueError(f"data_seed must be from 0 to 2**64 - 1, got {data_seed}")
        splits.cut(_sizes(n_images), split)  # refuses before hours of drawing
        drawing = Drawing(resolution, contour_length)
        official = (
            resolution == self.official_resolution
            and contour_length == _OFFICIAL_LENGTH
            and n_images == _OFFICIAL_IMAGES
        )
        if source == "stand-in":
            raise UserError(
                "data.source=stand-in, but pathfinder draws its images: leave "
                "data.source empty; with FAMILY,tiny in --config they are a stand-in"
            )
        scratch = Path(cache_dir).expanduser() / "pathfinder_scratch"
        if source:
            origin = self._files(source, drawing, official, scratch)
        else:
            origin = self._drawn(drawing, data_seed, n_images, official, scratch)
        self.name, self.provenance = origin.name, origin.provenance
        # What is only known once the images are read is in `about` by then.
        images = origin.load(cache_dir, lambda _: origin.about)[_IMAGES]
        shutil.rmtree(scratch / origin.folder, ignore_errors=True)
        _check(len(images), n_images)
        order = splits.cut(_sizes(len(images)), split)
        images_checksum = builders.manifest(origin.path(cache_dir))["sha256"]
        super().__init__(dict.fromkeys(order, images), order, images_checksum, 2)

    def _files(
        self, source: str, drawing: Drawing, official: bool, scratch: Path
    ) -> Origin:
        found = pathfinder_archive.find(
            source, drawing.resolution, drawing.contour_length
        )
        about = _about(drawing) | {"source": source}
        folder = f"files-{archives.fingerprint(found.files())}_{_kind(drawing)}"

        def make() -> dict[str, Rows]:
            try:
                rows, about["empty_files_left_out"] = found.read(scratch / folder)
            except UserError:
                shutil.rmtree(scratch / folder)
                raise
            return {_IMAGES: rows}

        name = f"pathfinder{drawing.resolution}_{about['difficulty']}"
        return Origin(
            name=self.name if official else name,
            provenance="official archive" if official else "stand-in",
            folder=folder,
            make=make,
            about=about,
        )

    def _drawn(
        self,
        drawing: Drawing,
        seed: int,
        n_images: int,
        official: bool,
        scratch: Path,
    ) -> Origin:
        folder = (
            f"{_kind(drawing)}_images-{n_images}_seed-{seed}"
            f"_v{pathfinder_generator.VERSION}"
        )

        def make() -> dict[str, Rows]:
            rows = pathfinder_generator.generate(
                drawing,
                seed,
                n_images,
                scratch / folder,
                report=counter("drawing", n_images),
            )
            return {_IMAGES: rows}

        return Origin(
            name=self.name if official else f"pathfinder{drawing.resolution}_gen",
            provenance="regenerated" if official else "stand-in",
            folder=folder,
            make=make,
            about=_about(drawing) | {"n_images": n_images, "data_seed": seed},
        )


class PathX(Pathfinder):
    """Path-X of Long Range Arena: images of 128 x 128 pixels, 16,384 steps.

    Its loss stays near that of chance for long. Arguments: those of `Pathfinder`, with
    a resolution of 128, or 64.
    """

    name = "pathx"
    official_resolution = 128


def _sizes(n_images: int) -> dict[str, int]:
    held_out = n_images // 10
    return {
        "train": n_images - 2 * held_out,
        "validation": held_out,
        "test": held_out,
    }


def _kind(drawing: Drawing) -> str:
    return f"resolution-{drawing.resolution}_contour-{drawing.contour_length}"


def _about(drawing: Drawing) -> dict[str, Any]:
    return {
        "resolution": drawing.resolution,
        "contour_length": drawing.contour_length,
        "difficulty": _DIFFICULTIES[drawing.contour_length],
    }


def _check(n_found: int, n_images: int) -> None:
    """Refuse files that are not what the config says, but for a few empty ones."""
    if not 0 <= n_images - n_found <= max(1, n_images // 10_000):
        raise UserError(
            f"data.source has {n_found:,} images, task.n_images is {n_images:,}: "
            f"complete the files, or set --config.task.n_images={n_found}"
        )
