"""The IMDB film reviews of Maas et al. 2011, in the forms that people have them in.

Whatever the form, the rows are the same and in the same order, by label (0 negative,
1 positive) and then by their bytes: the files of the archive, a table on the web and
what tfds prepares have three orders of their own.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import archives
from experiments.data.rows import Rows
from experiments.errors import UserError

SIZES = {"train": 25_000, "test": 25_000}  # half of them positive
WANTED = (
    "25,000 reviews to train on and 25,000 to test on, in one of these: "
    "aclImdb_v1.tar.gz (84 MB, from ai.stanford.edu/~amaas/data/sentiment) or the "
    "folder aclImdb in it; or train-*.parquet and test-*.parquet (21 MB each, from "
    "stanfordnlp/imdb on Hugging Face), train.csv and test.csv, or train.jsonl and "
    "test.jsonl, with columns text and label (0 negative, 1 positive); or "
    "imdb_reviews of tfds in its array_record form"
)
_LABELS = {"neg": 0, "pos": 1}
_MEMBER = re.compile(r"(?:^|/)(?:train|test)/(?:neg|pos)/\d+_\d+\.txt$")

Review = tuple[str, bytes, Any]  # where it is, its text, its label


class Source(NamedTuple):
    """Where the reviews are: the files or folders to read, and their form."""

    form: str
    files: Mapping[str, Path]  # by split, or all in one


def find(source: str) -> Source:
    """Return what is at `source`, a file or a folder that is searched to its bottom.

    Raises UserError, saying what is there, if it is nothing that can be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return Source("archive", {"archive": path})
    for form, patterns in _PATTERNS.items():
        found = {
            name: sorted(path.rglob(pattern)) for name, pattern in patterns.items()
        }
        if not any(found.values()):
            continue
        for name, paths in found.items():
            if len(paths) != 1:
                there = ", ".join(map(str, paths)) or "nothing"
                raise UserError(
                    f"data.source={source} has {len(paths)} of {patterns[name]}, "
                    f"wanted one ({there}): name the folder that has one of each of "
                    f"{', '.join(patterns.values())}"
                )
        return Source(form, {name: paths[0] for name, paths in found.items()})
    if unreadable := sorted(path.rglob("imdb_reviews*.tfrecord*")):
        raise UserError(
            f"{unreadable[0]} is a tfrecord file, which only TensorFlow reads: have "
            "tfds prepare the set with file_format='array_record', or name "
            "aclImdb_v1.tar.gz, which it downloaded"
        )
    raise UserError(
        f"data.source={source} has no reviews ({archives.listing(path)}): wanted "
        f"{WANTED}"
    )


def read(source: Source) -> dict[str, Rows]:
    """Return the reviews of "train" and "test", in the order that all forms have.

    Raises UserError, naming the file and the place in it, for what is damaged, is not
    UTF-8 or has no label.
    """
    splits: dict[str, list[tuple[int, bytes]]] = {split: [] for split in SIZES}
    for split, (where, text, label) in _READERS[source.form](source.files):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} is not UTF-8 at byte {error.start}: get the file again"
            ) from error
        if label not in (0, 1):
            raise UserError(
                f"{where}: the label is {label!r}, wanted 0 (negative) or 1 (positive)"
            )
        splits[split].append((label, text))
    for split, reviews in splits.items():
        n_positive = sum(label for label, _ in reviews)
        if not reviews or len(reviews) == SIZES[split] != 2 * n_positive:
            paths = ", ".join(map(str, source.files.values()))
            raise UserError(
                f"{paths} has {len(reviews)} {split} reviews, {n_positive} of them "
                f"positive, not 25,000 and 12,500: wanted {WANTED}"
            )
    return {split: _rows(sorted(reviews)) for split, reviews in splits.items()}


def _rows(reviews: list[tuple[int, bytes]]) -> Rows:
    texts = [np.frombuffer(text, np.uint8) for _, text in reviews]
    return Rows.of(texts, np.array([label for label, _ in reviews], np.uint8))


def _read_archive(files: Mapping[str, Path]) -> Iterator[tuple[str, Review]]:
    path = files["archive"]
    for name, text in archives.members(path, _is_review):
        split, label, _ = name.split("/")[-3:]
        yield split, (f"{path}, {name}", text, _LABELS[label])


def _read_folder(files: Mapping[str, Path]) -> Iterator[tuple[str, Review]]:
    for name, folder in files.items():
        split, label = name.split("/")
        for path in folder.iterdir():
            if _is_review(path.as_posix()):
                yield split, (str(path), path.read_bytes(), _LABELS[label])


def _read_parquet(path: Path) -> Iterator[Review]:
    import pyarrow  # tfds brings it
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["text", "label"])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no parquet file with columns text and label "
            f"({_first_line(error)}): get it again"
        ) from error
    texts, labels = (table[name].to_pylist() for name in ("text", "label"))
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str):
            raise UserError(f"{path}, row {number} has no text: get the file again")
        yield f"{path}, row {number}", text.encode(), label


def _read_csv(path: Path) -> Iterator[Review]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        if not {"text", "label"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}, line 1: the columns are {reader.fieldnames}, wanted text and "
                "label"
            )
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                text, label = row["text"], row["label"]
                if None in (text, label) or None in row:
                    raise UserError(f"{where}: too few or too many columns")
                label = {"0": 0, "1": 1}.get(label, label)
                yield where, text.encode(errors="surrogateescape"), label
        except csv.Error as error:
            raise UserError(f"{path}, after line {reader.line_num}: {error}") from error


def _read_json_lines(path: Path) -> Iterator[Review]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
                yield where, row["text"].encode(), row["label"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{where} is no JSON object with text and label "
                    f"({_first_line(error)})"
                ) from error


def _read_tfds(path: Path) -> Iterator[Review]:
    import tensorflow_datasets as tfds

    split = "train" if "-train" in path.name else "test"
    try:
        source = tfds.builder_from_directory(path.parent).as_data_source(split)
        rows = source.__getitems__(range(len(source)))
    except Exception as error:  # each library below has errors of its own
        raise UserError(
            f"{path.parent} cannot be read ({_first_line(error)}): have tfds prepare "
            "it again"
        ) from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row["text"], int(row["label"])


def _by_split(
    read_one: Callable[[Path], Iterator[Review]],
) -> Callable[[Mapping[str, Path]], Iterator[tuple[str, Review]]]:
    """A reader of two files from one of one file."""

    def read_both(files: Mapping[str, Path]) -> Iterator[tuple[str, Review]]:
        for split in SIZES:
            for review in read_one(files[split]):
                yield split, review

    return read_both


def _is_review(name: str) -> bool:
    return _MEMBER.search(name) is not None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _of_both(pattern: str) -> dict[str, str]:
    return {split: pattern.format(split) for split in SIZES}


# Of each form, what is looked for; the first one found is read.
_PATTERNS = {
    "folder": {
        f"{split}/{label}": f"{split}/{label}" for split in SIZES for label in _LABELS
    },
    "archive": {"archive": "*aclImdb*.tar.gz"},
    "parquet": _of_both("{}-*.parquet"),
    "csv": _of_both("{}.csv"),
    "json lines": _of_both("{}.jsonl"),
    "tfds": _of_both("imdb_reviews-{}.array_record-00000*"),
}
_READERS: dict[str, Callable[[Mapping[str, Path]], Iterable[tuple[str, Review]]]] = {
    "folder": _read_folder,
    "archive": _read_archive,
    "parquet": _by_split(_read_parquet),
    "csv": _by_split(_read_csv),
    "json lines": _by_split(_read_json_lines),
    "tfds": _by_split(_read_tfds),
}
