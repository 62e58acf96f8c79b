"""ListOps in the files of Long Range Arena: `basic_{train,val,test}.tsv`.

A header, `Source<TAB>Target`, then an expression and its value a line, CRLF at the
ends. An operator is written curried, `( ( ( [MIN 3 ) 7 ) ] )`; the round brackets add
nothing, and files without them, or with LF at the ends, read alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.listops import CLOSE, SYMBOLS, ZERO, evaluate
from experiments.data.progress import counter
from experiments.data.rows import Rows
from experiments.errors import UserError

FILES = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
_PROVENANCE = "provenance.txt"  # beside files that are not Long Range Arena's own
_HEADER = "Source\tTarget"
_TOKENS = {SYMBOLS[token]: token for token in range(CLOSE, len(SYMBOLS))}
_NEXT_STEP = "replace the file, or leave data.source empty to generate the set"


def find(source: str) -> dict[str, Path]:
    """Return the file of each split, in the folder `source` or somewhere below it.

    Raises UserError, saying what is there, if a file is missing or there are several.
    """
    folder = Path(source).expanduser()
    found = sorted(folder.rglob(FILES["train"]))
    if len(found) != 1:
        there = (
            sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        )
        raise UserError(
            f"data.source={source} holds {len(found)} files {FILES['train']}, not one "
            f"(in it: {', '.join(there[:10]) or 'nothing'}): name the folder of "
            f"{', '.join(FILES.values())}, or leave data.source empty to generate them"
        )
    files = {split: found[0].with_name(name) for split, name in FILES.items()}
    for path in files.values():
        if not path.is_file():
            raise UserError(f"{path} is missing: {_NEXT_STEP}")
    return files


def provenance(files: Mapping[str, Path]) -> str:
    """Return "official archive", or what `write_all` noted down."""
    note = files["train"].with_name(_PROVENANCE)
    return note.read_text().strip() if note.exists() else "official archive"


def read_all(files: Mapping[str, Path]) -> dict[str, Rows]:
    """Read the files of all splits."""
    return {split: read(path) for split, path in files.items()}


def write_all(folder: str, splits: Mapping[str, Rows], provenance: str) -> None:
    """Write the files of all splits, and a note that says what they are."""
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    (path / _PROVENANCE).write_text(f"{provenance}\n")
    for split, name in FILES.items():
        write(path / name, splits[split])


def read(path: Path) -> Rows:
    """Read one file; every value is held against its expression.

    Raises UserError, naming the file, the row and the column, if a row is malformed.
    """
    expressions, values = [], []
    with open(path, "rb") as lines:
        report = counter(f"reading {path.name}", sum(1 for _ in lines) - 1)
    with open(path, encoding="utf-8", errors="replace") as lines:
        if next(lines, "").rstrip("\n") != _HEADER:
            raise UserError(
                f"{path}, row 1: the header is not {_HEADER!r}: {_NEXT_STEP}"
            )
        for number, line in enumerate(lines, start=2):
            try:
                tokens, value = _parse(line)
            except ValueError as error:
                raise UserError(
                    f"{path}, row {number}, {error}: {_NEXT_STEP}"
                ) from error
            expressions.append(np.array(tokens, np.uint8))
            values.append(value)
            report(len(values))
    if not values:
        raise UserError(f"{path} has no rows: {_NEXT_STEP}")
    return Rows.of(expressions, np.array(values, np.uint8))


def write(path: Path, rows: Rows) -> None:
    """Write one file, byte for byte in the form of Long Range Arena's generator."""
    report = counter(f"writing {path.name}", len(rows))
    with open(path, "w", encoding="utf-8", newline="\r\n") as lines:
        lines.write(f"{_HEADER}\n")
        for row, value in enumerate(rows.labels):
            lines.write(f"{curried(rows[row].tolist())}\t{value}\n")
            report(row + 1)


def tokenize(source: str) -> list[int]:
    """Return the tokens of an expression, curried or not.

    Raises ValueError, naming the word, if it is no token.
    """
    words = source.replace("(", " ").replace(")", " ").split()
    try:
        return [_TOKENS[word] for word in words]
    except KeyError as error:
        raise ValueError(f"{error} is no token") from error


def curried(tokens: Sequence[int]) -> str:
    """Return an expression as the files write it."""
    enclosing: list[tuple[int, list[str]]] = []
    arguments: list[str] = []  # of the innermost open operator
    for token in tokens:
        if token >= ZERO:
            arguments.append(SYMBOLS[token])
        elif token == CLOSE:
            operator, outer = enclosing.pop()
            body = "".join(
                f" {argument} )" for argument in [*arguments, SYMBOLS[CLOSE]]
            )
            outer.append("( " * (len(arguments) + 1) + SYMBOLS[operator] + body)
            arguments = outer
        else:
            enclosing.append((token, arguments))
            arguments = []
    return arguments[0]


def _parse(line: str) -> tuple[list[int], int]:
    """Return the tokens and the value of a row; ValueError names a bad column."""
    columns = line.rstrip("\n").split("\t")
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} columns, where Source and Target are wanted")
    source, target = columns
    try:
        tokens = tokenize(source)
        value = evaluate(tokens)
    except ValueError as error:
        raise ValueError(f"column Source: {error}") from error
    if target != str(value):
        raise ValueError(f"column Target: {target!r}, but the value is {value}")
    return tokens, value
