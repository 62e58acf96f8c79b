"""CIFAR-10 from local files, in the forms in which people have it.

Python pickles and binary records, packed or not; parquet; what tfds has prepared as
array_record. Rows are in the order of the files, so in that of Krizhevsky's batches for
the first two; the others have orders of their own.
"""

import io
import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from experiments.data import archives, images
from experiments.data.progress import counter
from experiments.errors import UserError

SIDE, CHANNELS, CLASSES = 32, 3, 10
SIZES = {"train": 50_000, "test": 10_000}
FORMS = (
    "cifar-10-python.tar.gz, cifar-10-binary.tar.gz, either unpacked, "
    "train-*.parquet and test-*.parquet, or cifar10 of tfds as array_record"
)
_BATCHES = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
_N_PIXELS = SIDE * SIDE * CHANNELS
_GREY = {"mean": (122.6, 0.3), "standard deviation": (61.0, 0.5)}  # and what it may be
_NEXT_STEP = "get the file again from https://www.cs.toronto.edu/~kriz/cifar.html"

Images = tuple[np.ndarray, np.ndarray]  # (n, 32, 32, 3) and labels (n,), both uint8


@dataclass(frozen=True)
class Found:
    """Files that hold the images, and how to read them."""

    form: str
    files: dict[str, list[Path]]  # by split; a tar is that of all

    def paths(self) -> list[Path]:
        return sorted({path for paths in self.files.values() for path in paths})

    def read(self) -> dict[str, Images]:
        """Return "train" and "test": RGB pixels, and labels from 0 to 9.

        Raises UserError, naming the file, if one is not what it should be.
        """
        splits = _READERS[self.form](self.files)
        for split, (pixels, labels) in splits.items():
            _check(split, pixels, labels, self.paths()[0])
        return splits


def find(source: str) -> Found:
    """Return the files of the first known form at `source` or below it, a tar last.

    Raises UserError, saying what is there, if there are none, or some are missing.
    """
    path = Path(source).expanduser()
    if path.suffix == ".parquet":
        path = path.parent
    tars = [path] if path.is_file() else _tars(path)
    for form, names in _NAMES.items():
        firsts = sorted(path.rglob(names["train"][0]))
        folders = {first.parent for first in firsts}
        if len(folders) > 1:
            where = ", ".join(str(first.parent) for first in firsts)
            raise UserError(
                f"data.source={source} holds CIFAR-10 {len(folders)} times, in {where}:"
                " name one of these folders"
            )
        for folder in folders:
            return Found(form, _complete(folder, names))
    if tars:
        return Found("tar", {split: tars[:1] for split in SIZES})
    raise UserError(
        f"data.source={source} holds no CIFAR-10 ({archives.listing(path)}): name a "
        f"file, or a folder with {FORMS}"
    )


def _tars(folder: Path) -> list[Path]:
    return [
        tar
        for form in ("python", "binary")
        for end in ("tar.gz", "tar")
        for tar in sorted(folder.rglob(f"*cifar-10-{form}*.{end}"))  # tfds adds to it
    ]


def _complete(
    folder: Path, names: Mapping[str, Sequence[str]]
) -> dict[str, list[Path]]:
    """Return the files of all names, each of which may be a pattern."""
    files: dict[str, list[Path]] = {}
    for split, patterns in names.items():
        for pattern in patterns:
            found = sorted(folder.glob(pattern))
            if not found:
                raise UserError(f"{folder / pattern} is missing: {_NEXT_STEP}")
            files.setdefault(split, []).extend(found)
    return files


def _check(split: str, pixels: np.ndarray, labels: np.ndarray, where: Path) -> None:
    """Hold an official split against what is known of it."""
    if labels.max() >= CLASSES:
        raise UserError(f"{where}: {split} has a label {labels.max()}: {_NEXT_STEP}")
    if len(labels) != SIZES[split]:
        return  # for the task to judge
    counts = np.bincount(labels, minlength=CLASSES)
    if np.any(counts != SIZES[split] // CLASSES):
        raise UserError(
            f"{where}: {split} has {counts.tolist()} images of the classes, not "
            f"{SIZES[split] // CLASSES:,} of each: {_NEXT_STEP}"
        )
    if split == "train":
        grey = images.grey(pixels)
        found = {"mean": grey.mean(), "standard deviation": grey.std()}
        for name, (value, tolerance) in _GREY.items():
            if abs(found[name] - value) > tolerance:
                raise UserError(
                    f"{where}: the {name} of the grey training images is "
                    f"{found[name]:.2f}, not {value}: {_NEXT_STEP}"
                )


def _read_batches(
    files: Mapping[str, Sequence[Path]], parse: Callable[[bytes, str], Images]
) -> dict[str, Images]:
    return {
        split: _join([parse(path.read_bytes(), str(path)) for path in paths])
        for split, paths in files.items()
    }


def _read_pickles(files: Mapping[str, Sequence[Path]]) -> dict[str, Images]:
    return _read_batches(files, _parse_pickle)


def _read_records(files: Mapping[str, Sequence[Path]]) -> dict[str, Images]:
    return _read_batches(files, _parse_records)


def _read_tar(files: Mapping[str, Sequence[Path]]) -> dict[str, Images]:
    (tar,) = files["train"]
    names = list(itertools.chain(*_BATCHES.values()))
    contents = {
        PurePosixPath(name).name: content
        for name, content in archives.members(
            tar, lambda name: PurePosixPath(name).name.removesuffix(".bin") in names
        )
    }
    binary = f"{names[0]}.bin" in contents
    parse = _parse_records if binary else _parse_pickle
    wanted = _NAMES["records" if binary else "pickles"]
    for name in itertools.chain(*wanted.values()):
        if name not in contents:
            raise UserError(
                f"{tar} holds no file {name}, so it is not CIFAR-10: {_NEXT_STEP}"
            )
    return {
        split: _join([parse(contents[name], f"{tar}, {name}") for name in batch])
        for split, batch in wanted.items()
    }


def _join(parts: Sequence[Images]) -> Images:
    pixels, labels = zip(*parts, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _from_planes(planes: np.ndarray, labels: np.ndarray) -> Images:
    """Take images as planes of red, green and blue (n, 3072) to a pixel at a time."""
    pixels = planes.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels


def _parse_records(content: bytes, where: str) -> Images:
    """Read records of a label and the planes, a byte each."""
    n_rows, rest = divmod(len(content), 1 + _N_PIXELS)
    if rest or not n_rows:
        raise UserError(
            f"{where} has {len(content):,} bytes, not a multiple of {1 + _N_PIXELS:,}: "
            f"{_NEXT_STEP}"
        )
    records = np.frombuffer(content, np.uint8).reshape(n_rows, 1 + _N_PIXELS)
    return _from_planes(records[:, 1:], records[:, 0])


class _Unpickler(pickle.Unpickler):
    """Makes arrays and the containers of Python; calls nothing else."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


def _parse_pickle(content: bytes, where: str) -> Images:
    """Read a dict of Python 2 with `data` (n, 3072) uint8 and `labels`, a list."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        planes, labels = batch[b"data"], np.asarray(batch[b"labels"])
        if planes.dtype != np.uint8 or planes.shape != (len(labels), _N_PIXELS):
            raise ValueError(
                f"data is {planes.dtype} {planes.shape} beside {len(labels)} labels"
            )
        if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= CLASSES:
            raise ValueError("labels are not whole numbers from 0 to 9")
    except Exception as error:  # a pickle can fail in every way
        raise UserError(
            f"{where} is not a batch of CIFAR-10 ({type(error).__name__}: {error}): "
            f"{_NEXT_STEP}"
        ) from error
    return _from_planes(planes, labels.astype(np.uint8))


def _read_parquet(files: Mapping[str, Sequence[Path]]) -> dict[str, Images]:
    """Read columns `img`, a struct with the `bytes` of a PNG, and `label`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{files['train'][0]} needs pyarrow: pip install -e '.[parquet]'"
        ) from error

    splits = {}
    for split, paths in files.items():
        encoded, labels = [], []
        for path in paths:
            try:
                table = parquet.read_table(path, columns=["img", "label"])
                column = table["img"].combine_chunks().field("bytes")
                encoded += column.to_pylist()
                labels.append(np.array(table["label"].to_pylist(), np.uint8))
            except (
                pyarrow.ArrowException,
                OSError,
                KeyError,
                AttributeError,  # img is no struct
                TypeError,  # label is no number
                ValueError,
                OverflowError,
            ) as error:
                raise UserError(
                    f"{path} cannot be read as parquet with columns img and label "
                    f"({error}): get plain_text/*.parquet of cifar10 again"
                ) from error
        pixels = _decode_all(encoded, f"{paths[0].parent}, {split}")
        splits[split] = pixels, np.concatenate(labels)
    return splits


def _read_tfds(files: Mapping[str, Sequence[Path]]) -> dict[str, Images]:
    import tensorflow_datasets as tfds

    folder = files["train"][0].parent
    splits = {}
    try:
        builder = tfds.builder_from_directory(folder)
        skip = {"image": tfds.decode.SkipDecoding()}
        for split in SIZES:
            source = builder.as_data_source(split=split, decoders=skip)
            rows = source.__getitems__(range(len(source)))
            labels = np.array([row["label"] for row in rows], np.uint8)
            encoded = [row["image"] for row in rows]
            splits[split] = _decode_all(encoded, f"{folder}, {split}"), labels
    except UserError:
        raise
    except Exception as error:  # tfds and array_record have errors of their own
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{folder} cannot be read as cifar10 of tfds ({reason}): prepare it again"
        ) from error
    return splits


def _decode_all(encoded: Sequence[bytes], where: str) -> np.ndarray:
    pixels = np.empty((len(encoded), SIDE, SIDE, CHANNELS), np.uint8)
    report = counter(f"decoding {where}", len(encoded))
    for i, content in enumerate(encoded):
        try:
            pixels[i] = images.decode(content, "RGB", SIDE)
        except ValueError as error:
            raise UserError(f"{where}, image {i}: {error}: {_NEXT_STEP}") from error
        report(i + 1)
    return pixels


_READERS = {
    "pickles": _read_pickles,
    "records": _read_records,
    "tar": _read_tar,
    "parquet": _read_parquet,
    "tfds": _read_tfds,
}
_NAMES: dict[str, dict[str, list[str]]] = {
    "pickles": _BATCHES,
    "records": {
        split: [f"{name}.bin" for name in names] for split, names in _BATCHES.items()
    },
    "parquet": {"train": ["train-*.parquet"], "test": ["test-*.parquet"]},
    "tfds": {
        "train": ["cifar10-train.array_record*"],
        "test": ["cifar10-test.array_record*"],
    },
}
