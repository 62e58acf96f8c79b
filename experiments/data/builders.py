"""Prepared rows on disk: a tfds data set of `array_record` files, without TensorFlow.

`manifest.json` says what the rows are. It is written last, so a set appears whole or
not at all, under a lock that the system drops with the process. A record is a block of
rows, which loads several times faster than records of one row. Reading loads all rows
into memory; neither it nor writing holds a second copy of them.
"""

import contextlib
import fcntl
import hashlib
import json
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
_MANIFEST = "manifest.json"
_NAME, _VERSION = "rows", "2.0.0"  # of the records' form
_BLOCK = 256  # rows in a record: memory for some megabytes of them


class DamagedError(UserError):
    """The prepared rows of `folder` cannot be read."""

    def __init__(self, folder: Path, message: str):
        super().__init__(message)
        self.folder = folder


def prepare(folder: Path, make: Callable[[], Splits], about: Mapping[str, Any]) -> None:
    """Make the rows and write them to `folder`, unless they are there already.

    If several processes come here at once, one works and the others wait for it.
    `about` says where the rows come from, in what JSON can hold; `manifest` returns it.
    The rows that `make` returns may be memory maps, with values and labels uint8.

    Raises UserError if the folder cannot be written.
    """
    try:
        with _locked(folder):
            if is_prepared(folder):
                return
            remove(folder)  # what a killed process left
            splits = make()
            _write(_dataset(folder), splits)
            _write_manifest(folder, splits, about)
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        raise UserError(
            f"cannot prepare {folder} ({_first_line(error)}): make room there, or "
            "choose another folder with --config.data.cache_dir"
        ) from error


def remove(folder: Path) -> None:
    """Remove the rows of `folder`, if it has any."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def is_prepared(folder: Path) -> bool:
    """Whether `load` has something to read, in the form that it reads."""
    return (folder / _MANIFEST).is_file() and _dataset(folder).is_dir()


def manifest(folder: Path) -> dict[str, Any]:
    """Return `about`, and "sha256" of the rows and "rows" and "bytes" of each split.

    Raises DamagedError if it cannot be read.
    """
    path = folder / _MANIFEST
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, path, error) from error


def load(folder: Path) -> dict[str, Rows]:
    """Read all rows into memory.

    Raises DamagedError, naming the file and how to make it again, if it is damaged.
    """
    facts = manifest(folder)
    path: str | Path = _dataset(folder)
    try:
        builder = tfds.builder_from_directory(path)
        splits = {}
        for split, info in builder.info.splits.items():
            path = ", ".join(str(file) for file in info.filepaths)
            source = builder.as_data_source(split=split)
            splits[split] = _read(source, facts["rows"][split], facts["bytes"][split])
        path = _dataset(folder)
        if facts["sha256"] != checksum(splits):
            raise ValueError("its rows do not have their checksum")
    except Exception as error:  # each library below has errors of its own
        raise _damaged(folder, path, error) from error
    return splits


def checksum(splits: Splits) -> str:
    """Return the SHA-256 of all rows and labels."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for array in (splits[split].starts, splits[split].values, splits[split].labels):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _write(path: Path, splits: Splits) -> None:
    path.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=_NAME,
        version=tfds.core.Version(_VERSION),
        data_dir=str(path),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(
            {
                "values": _array(np.uint8),
                "lengths": _array(np.int64),
                "labels": _array(np.uint8),
            }
        ),
        disable_shuffling=True,
    )
    # A GeneratorBasedBuilder would collect a split in memory before it writes it.
    writer = tfds.core.SequentialWriter(
        info,
        max_examples_per_shard=max(map(len, splits.values())),
        file_format="array_record",
    )
    writer.initialize_splits(list(splits))
    for split, rows in splits.items():
        report = counter(f"writing {split}", len(rows))
        for start in range(0, len(rows), _BLOCK):
            block = rows.part(start, min(start + _BLOCK, len(rows)))
            record = {
                "values": block.values,
                "lengths": block.lengths,
                "labels": block.labels,
            }
            writer.add_examples({split: [record]})
            report(start + len(block))
    writer.close_all()


def _array(dtype: type) -> tfds.features.Tensor:
    """Return the feature of a flat array, kept as bytes: numbers take much longer."""
    return tfds.features.Tensor(
        shape=(None,), dtype=dtype, encoding=tfds.features.Encoding.BYTES
    )


def _read(source: Any, n_rows: int, n_values: int) -> Rows:
    """Return the rows of one split."""
    rows = Rows(
        np.empty(n_values, np.uint8),
        np.zeros(n_rows + 1, np.int64),
        np.empty(n_rows, np.uint8),
    )
    row = value = 0
    for record in source:
        next_row = row + len(record["labels"])
        next_value = value + len(record["values"])
        rows.values[value:next_value] = record["values"]
        rows.labels[row:next_row] = record["labels"]
        rows.starts[row + 1 : next_row + 1] = value + np.cumsum(record["lengths"])
        row, value = next_row, next_value
    return rows


def _write_manifest(folder: Path, splits: Splits, about: Mapping[str, Any]) -> None:
    facts = {
        **about,
        "sha256": checksum(splits),
        "rows": {split: len(rows) for split, rows in splits.items()},
        "bytes": {split: len(rows.values) for split, rows in splits.items()},
    }
    part = folder / f"{_MANIFEST}.part"
    part.write_text(json.dumps(facts, indent=2) + "\n")
    part.rename(folder / _MANIFEST)


def _damaged(folder: Path, path: str | Path, error: Exception) -> DamagedError:
    message = (
        f"{path} is damaged ({_first_line(error)}): the same command with "
        "--mode=prepare makes it again"
    )
    return DamagedError(folder, message)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _dataset(folder: Path) -> Path:
    return folder / _NAME / _VERSION


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
