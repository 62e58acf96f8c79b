"""Prepared rows on disk: a tfds data set of `array_record` files, without TensorFlow.

A prepared folder appears whole or not at all: it is written beside its place and moved
there, under a lock that the system drops with the process. Reading loads all rows into
memory, where taking a batch by its indices is far faster than reading records one by
one.
"""

import contextlib
import fcntl
import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.progress import counter
from experiments.data.rows import Rows
from experiments.errors import UserError

Splits = Mapping[str, Rows]


class Sequences(tfds.core.GeneratorBasedBuilder):
    """Labelled sequences of bytes: `values` (length,) uint8 and `label` uint8."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits: Splits, data_dir: Path):
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "values": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
            "label": tfds.features.Scalar(np.uint8),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(sha256=checksum(self._splits)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = self._splits[split]
        report = counter(f"writing {split}", len(rows))
        for i, label in enumerate(rows.labels):
            yield i, {"values": rows[i], "label": label}
            report(i + 1)


class DamagedError(UserError):
    """The prepared rows of `folder` cannot be read."""

    def __init__(self, folder: Path, message: str):
        super().__init__(message)
        self.folder = folder


def prepare(folder: Path, make: Callable[[], Splits]) -> None:
    """Make the rows and write them to `folder`, unless they are there already.

    If several processes come here at once, one works and the others wait for it.

    Raises UserError if the folder cannot be written.
    """
    try:
        with _locked(folder):
            if is_prepared(folder):
                return
            remove(folder)  # what a killed process left
            builder = Sequences(make(), folder)
            tfds.disable_progress_bar()  # ours takes one line
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        raise UserError(
            f"cannot prepare {folder} ({_first_line(error)}): make room there, or "
            "choose another folder with --config.data.cache_dir"
        ) from error


def remove(folder: Path) -> None:
    """Remove the rows of `folder`, if it has any."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def is_prepared(folder: Path) -> bool:
    """Whether `load` has something to read."""
    return _dataset(folder).is_dir()


def load(folder: Path) -> dict[str, Rows]:
    """Read all rows into memory.

    Raises DamagedError, naming the file and how to make it again, if it is damaged.
    """
    path: str | Path = _dataset(folder)
    try:
        builder = tfds.builder_from_directory(path)
        splits = {}
        for split, info in builder.info.splits.items():
            path = ", ".join(str(file) for file in info.filepaths)
            source = builder.as_data_source(split=split)
            records = source.__getitems__(range(len(source)))
            labels = np.array([record["label"] for record in records], np.uint8)
            splits[split] = Rows.of([record["values"] for record in records], labels)
        path = _dataset(folder)
        if builder.info.metadata["sha256"] != checksum(splits):
            raise ValueError("its rows do not have their checksum")
    except Exception as error:  # each library below has errors of its own
        message = (
            f"{path} is damaged ({_first_line(error)}): the same command with "
            "--mode=prepare makes it again"
        )
        raise DamagedError(folder, message) from error
    return splits


def checksum(splits: Splits) -> str:
    """Return the SHA-256 of all rows and labels."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for array in (splits[split].starts, splits[split].values, splits[split].labels):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _dataset(folder: Path) -> Path:
    return folder / Sequences.name / str(Sequences.VERSION)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
