import csv

import numpy as np
import pytest

from experiments.data import archives, listops_tsv
from experiments.data.listops import Grammar, evaluate
from experiments.data.listops_rows import generate
from experiments.data.listops_tsv import curried, read, tokenize, write
from experiments.errors import UserError
from tests import golden

# Written by Long Range Arena's own generator.
OFFICIAL = [
    ("( ( ( ( ( [SM 6 ) 3 ) 6 ) 3 ) ] )", 8),
    ("( ( ( ( [MED 0 ) ( ( ( ( [MED 4 ) 4 ) 8 ) ] ) ) 3 ) ] )", 3),
    ("( ( ( [MIN ( ( ( ( ( [SM 5 ) 3 ) 6 ) 1 ) ] ) ) 0 ) ] )", 0),
    ("( ( ( [MAX 8 ) 0 ) ] )", 8),
    ("( ( ( ( ( ( [MED 3 ) 2 ) 0 ) 3 ) 7 ) ] )", 3),
]


@pytest.mark.parametrize(("source", "value"), OFFICIAL)
def test_official_rows(source, value):
    tokens = tokenize(source)
    assert evaluate(tokens) == value
    assert curried(tokens) == source
    assert tokenize(source.replace("(", "").replace(")", "")) == tokens


def test_official_file():
    path = golden.FOLDER / "listops_lra.tsv"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    rows = read(path)
    with open(path, newline="") as file:
        expected = list(csv.reader(file, delimiter="\t"))[1:]
    assert len(rows) == len(expected) == 150
    for i, (source, value) in enumerate(expected):
        assert curried(rows[i].tolist()) == source
        assert str(rows.labels[i]) == value
    assert set(np.unique(rows.values)) == set(range(2, 17))


@pytest.fixture
def rows():
    return generate(Grammar(10, 128, 6, 5), 0, 60, n_workers=1)


def test_what_is_written_is_read(rows, tmp_path):
    write(tmp_path / "a.tsv", rows)
    write(tmp_path / "b.tsv", rows)
    found = read(tmp_path / "a.tsv")
    for name in ("values", "starts", "labels"):
        assert np.array_equal(getattr(found, name), getattr(rows, name))
    written = (tmp_path / "a.tsv").read_bytes()
    assert written == (tmp_path / "b.tsv").read_bytes()
    assert written.startswith(b"Source\tTarget\r\n(") and written.endswith(b"\r\n")
    assert written.count(b"\r\n") == written.count(b"\n") == 61


@pytest.mark.parametrize("change", [(b"\r\n", b"\n"), (b"(", b""), (b")", b" ")])
def test_line_ends_and_round_brackets_do_not_matter(change, rows, tmp_path):
    path = tmp_path / "rows.tsv"
    write(path, rows)
    path.write_bytes(path.read_bytes().replace(*change))
    assert np.array_equal(read(path).values, rows.values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "row 1: the header"),
        ("Target\tSource\n", "row 1: the header"),
        ("Source\tTarget\n", "no rows"),
        ("Source\tTarget\n5\t5\n7\n", "row 3, 1 columns"),
        ("Source\tTarget\n5\t5\n7\t7\t7\n", "row 3, 3 columns"),
        ("Source\tTarget\n5\t5\n\n", "row 3, 1 columns"),
        ("Source\tTarget\n[MIN 5 7 ]\t6\n", "row 2, column Target: '6'.* value is 5"),
        ("Source\tTarget\n[MIN 5 7 ]\tfive\n", "row 2, column Target: 'five'"),
        (
            "Source\tTarget\n[AVG 5 7 ]\t6\n",
            r"row 2, column Source: '\[AVG' is no token",
        ),
        ("Source\tTarget\n[MIN 5 7\t5\n", "row 2, column Source: 1 operators"),
        ("Source\tTarget\n[MIN ]\t5\n", "row 2, column Source: token 2"),
        ("Source\tTarget\n\t5\n", "row 2, column Source: 0 expressions"),
        ("Source\tTarget\n\udcff\t5\n", "row 2, column Source: .* is no token"),
    ],
)
def test_a_malformed_row_is_named(text, reason, tmp_path):
    path = tmp_path / "basic_train.tsv"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_are_found_below_the_folder(rows, tmp_path):
    inner = tmp_path / "lra_release" / "listops-1000"
    splits = {"train": rows, "validation": rows.part(0, 9), "test": rows.part(9, 20)}
    listops_tsv.write_all(str(inner), splits, "stand-in")
    files = listops_tsv.find(str(tmp_path))
    assert files["validation"] == inner / "basic_val.tsv"
    found = listops_tsv.read_all(files)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 60,
        "validation": 9,
        "test": 11,
    }
    assert listops_tsv.provenance(files) == "stand-in"
    (inner / "provenance.txt").unlink()
    assert listops_tsv.provenance(files) == "official archive"
    before = archives.fingerprint(files.values())
    files["test"].write_bytes(files["validation"].read_bytes())
    assert archives.fingerprint(files.values()) != before


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="0 files basic_train.tsv.*in it: nothing"):
        listops_tsv.find(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="in it: notes.txt"):
        listops_tsv.find(str(tmp_path))
    (tmp_path / "basic_train.tsv").touch()
    with pytest.raises(UserError, match="basic_val.tsv is missing"):
        listops_tsv.find(str(tmp_path))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "basic_train.tsv").touch()
    with pytest.raises(UserError, match="2 files"):
        listops_tsv.find(str(tmp_path))
