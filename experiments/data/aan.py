"""Pairs of papers of the ACL Anthology Network, in the files of Long Range Arena.

`new_aan_pairs.{train,eval,test}.tsv` have no header and five columns, `label`, `id1`,
`id2`, `text1`, `text2`, with a tab between and no quoting: a quote is a character like
any other. The label, 0 or 1, may be written as a float.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from experiments.data import archives
from experiments.data.encoding import beginning
from experiments.data.progress import counter
from experiments.data.rows import Rows
from experiments.errors import UserError

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
SIZES = {"train": 147_086, "validation": 18_090, "test": 17_437}
WANTED = (
    f"{', '.join(FILES.values())} (folder tsv_data of Long Range Arena's archive, "
    "147,086, 18,090 and 17,437 rows of label, id1, id2, text1, text2), or that "
    "archive itself, lra_release.gz (github.com/google-research/long-range-arena)"
)
_MB = 1_000_000
_LABELS = {b"0": 0, b"1": 1, b"0.0": 0, b"1.0": 1}


def find(source: str) -> dict[str, Path]:
    """Return the file of each split at `source`, or one "archive" with all of them.

    Raises UserError, saying what is there, if a file is missing or there are several.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {"archive": path}
    found = sorted(path.rglob(FILES["train"]))
    packed = sorted(path.rglob("lra_release*.gz"))
    if not found and len(packed) == 1:
        return {"archive": packed[0]}
    if len(found) != 1:
        there = ", ".join(map(str, found)) or archives.listing(path)
        raise UserError(
            f"data.source={source} has {len(found)} files {FILES['train']}, not one "
            f"({there}): name the folder of {WANTED}"
        )
    files = {split: found[0].with_name(name) for split, name in FILES.items()}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file} is missing: wanted {WANTED}")
    return files


def read(files: Mapping[str, Path], n_characters: int) -> dict[str, Rows]:
    """Return the rows `text1 TAB text2` of each split.

    Args:
      files: what `find` returns.
      n_characters: how much is kept of a text, from its beginning: papers are long.

    Raises UserError, naming the file and the line, if a row is malformed.
    """
    if "archive" in files:
        return _read_archive(files["archive"], n_characters)
    return {
        split: _parse(_lines(path), str(path), n_characters)
        for split, path in files.items()
    }


def _lines(path: Path) -> Iterator[bytes]:
    total = path.stat().st_size // _MB + 1
    report = counter(f"reading {path.name}", total, "MB")
    done = 0
    with open(path, "rb") as lines:
        for line in lines:
            yield line
            done += len(line)
            report(done // _MB)
    report(total)


def _read_archive(path: Path, n_characters: int) -> dict[str, Rows]:
    def leaf(member: str) -> str:
        return member.rpartition("/")[2]

    def parse(name: str, file: IO[bytes]) -> Rows:
        return _parse(file, f"{path}, {name}", n_characters)

    found: dict[str, Rows] = {}  # of copies the first
    for member, rows in archives.members(
        path, lambda member: leaf(member) in set(FILES.values()) - set(found), parse
    ):
        found[leaf(member)] = rows
        if len(found) == len(FILES):
            break
    if missing := [name for name in FILES.values() if name not in found]:
        raise UserError(f"{path} has no {', '.join(missing)}: wanted {WANTED}")
    return {split: found[name] for split, name in FILES.items()}


def _parse(lines: Iterable[bytes], path: str, n_characters: int) -> Rows:
    values, starts, labels = bytearray(), [0], []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        fields = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
        if len(fields) != 5:
            raise UserError(
                f"{where} has {len(fields)} fields, wanted label, id1, id2, text1 and "
                "text2 with a tab between: get the file again"
            )
        label, _, _, *texts = fields
        if label not in _LABELS:
            raise UserError(
                f"{where}: the label is {label[:20].decode(errors='replace')!r}, "
                "wanted 0, 1, 0.0 or 1.0: get the file again"
            )
        try:
            kept = [beginning(text, n_characters).encode() for text in texts]
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8: get the file again") from error
        values += b"\t".join(kept)
        starts.append(len(values))
        labels.append(_LABELS[label])
    if not labels:
        raise UserError(f"{path} has no rows: get the file again")
    return Rows(
        np.frombuffer(values, np.uint8),
        np.array(starts, np.int64),
        np.array(labels, np.uint8),
    )
