"""Image of Long Range Arena, CIFAR-10 in grey, and the same in colour."""

from typing import ClassVar

from experiments.data import archives, builders, cifar, splits
from experiments.data.images import grey
from experiments.data.rows import Rows
from experiments.errors import UserError
from experiments.tasks.origin import Origin
from experiments.tasks.pixels import PixelTask


class Image(PixelTask):
    """CIFAR-10 in grey, 32 x 32 pixels of one channel.

    Args:
      split: what chooses: "permuted", a fixed draw from the 50,000 training images, or
        "tail", the last of them.
      train_size: images to train on.
      validation_size: images to choose by; with those to train on, all there are.
      test_size: images to report.
      cache_dir: where prepared images are kept.
      source: where CIFAR-10 is, in one of the forms of `experiments.data.cifar`.
    """

    name = "image"
    mean: ClassVar[tuple[float, ...]] = (122.6 / 255,)
    deviation: ClassVar[tuple[float, ...]] = (61.0 / 255,)
    coloured: ClassVar[bool] = False

    def __init__(
        self,
        *,
        split: str,
        train_size: int,
        validation_size: int,
        test_size: int,
        cache_dir: str,
        source: str,
    ):
        chosen = {"train": train_size, "validation": validation_size}
        order = splits.cut(chosen, split) | splits.cut({"test": test_size}, "tail")
        if source in ("", "stand-in"):
            raise UserError(_where_to_get(self.name))
        sizes = {"train": train_size + validation_size, "test": test_size}
        found = cifar.find(source)
        origin = Origin(
            name=self.name,
            provenance="official archive" if sizes == cifar.SIZES else "stand-in",
            folder=f"files-{archives.fingerprint(found.paths())}",
            make=lambda: self._read(found),
            about={"source": source, "form": found.form},
        )
        self.provenance = origin.provenance
        rows = origin.load(cache_dir, lambda _: {})
        for part, size in sizes.items():
            _check(part, len(rows[part]), size)
        super().__init__(
            {"validation": rows["train"], **rows},
            order,
            builders.manifest(origin.path(cache_dir))["sha256"],
            cifar.CLASSES,
        )

    def _read(self, found: cifar.Found) -> dict[str, Rows]:
        return {
            part: Rows.table(pixels if self.coloured else grey(pixels), labels)
            for part, (pixels, labels) in found.read().items()
        }


class ColourImage(Image):
    """CIFAR-10 in colour, 32 x 32 pixels of three channels: not Long Range Arena's.

    Arguments: those of `Image`.
    """

    name = "image_colour"
    mean = (0.4914, 0.4822, 0.4465)
    deviation = (0.247, 0.243, 0.261)
    coloured = True


def _check(part: str, n_images: int, wanted: int) -> None:
    """Refuse files that are not what the config says."""
    if n_images != wanted:
        sizes = "train_size + validation_size" if part == "train" else "test_size"
        raise UserError(
            f"data.source has {n_images:,} {part} images, task.{sizes} is {wanted:,}: "
            f"complete the files, or set --config.task.{sizes.partition(' ')[0]}"
        )


def _where_to_get(name: str) -> str:
    return (
        f"{name} reads CIFAR-10, which nothing here can draw: get "
        "cifar-10-python.tar.gz (170 MB; 50,000 images to train on, 10,000 to test on) "
        "from https://www.cs.toronto.edu/~kriz/cifar.html and give it, or its folder, "
        f"as --config.data.source=PATH; read are {cifar.FORMS}. The stand-in is "
        "another task, digits: --config=configs/lra/image.py:FAMILY,tiny"
    )
