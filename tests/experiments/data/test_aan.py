"""Pairs of papers in files built byte by byte, and what is wrong with such files."""

import gzip
import io
import tarfile

import pytest

from experiments.data import aan
from experiments.errors import UserError

ROWS = [  # fields, label
    (b"1\tA00-1\tB00-2\tfirst text\tsecond text", 1),
    (b'0.0\tA\tB\tone " quote\tnone', 0),
    (b'1.0\tA\tB\t"quoted\tand "" more"', 1),
    (b"0\tA\tB\t\tthe first is empty", 0),
    (b"0\tA\tB\tboth are\t", 0),
    (b"1\t\t\tno names\tcaf\xc3\xa9 noir", 1),
    (b"1\tA\tB\ta\rb\tc,d", 1),
]
FIELDS = {"train": ROWS, "validation": ROWS[:3], "test": ROWS[2:]}


def content(split, end=b"\r\n"):
    return b"".join(fields + end for fields, _ in FIELDS[split])


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "lra_release" / "tsv_data"
    inner.mkdir(parents=True)
    for split, name in aan.FILES.items():
        (inner / name).write_bytes(content(split))
    return tmp_path


def train(folder):
    (path,) = folder.rglob(aan.FILES["train"])
    return path


def write_tar(folder, leave_out=()):
    path = folder / "lra_release.gz"
    with tarfile.open(path, "w:gz") as tar:
        for split in ("test", "train", "validation"):  # in an order of its own
            if split in leave_out:
                continue
            for copy in ("", "copy/"):
                member = tarfile.TarInfo(f"lra_release/{copy}{aan.FILES[split]}")
                lines = content(split) if not copy else b"damaged"
                member.size = len(lines)
                tar.addfile(member, io.BytesIO(lines))
        tar.addfile(tarfile.TarInfo("lra_release/new_aan_pairs.train.only_ids.tsv"))
    return path


def check(splits, n_characters=100):
    assert list(splits) == list(FIELDS)
    for split, rows in splits.items():
        wanted = []
        for fields, label in FIELDS[split]:
            texts = fields.decode().split("\t")[3:]
            wanted.append((label, [text[:n_characters] for text in texts]))
        found = [
            (label, rows[row].tobytes().decode().split("\t"))
            for row, label in enumerate(rows.labels.tolist())
        ]
        assert found == wanted


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_both_line_ends(end, folder):
    for split, name in aan.FILES.items():
        train(folder).with_name(name).write_bytes(content(split, end))
    check(aan.read(aan.find(str(folder)), 100))


def test_the_last_line_may_lack_its_end(folder):
    train(folder).write_bytes(content("train").removesuffix(b"\r\n"))
    check(aan.read(aan.find(str(folder)), 100))


@pytest.mark.parametrize("n_characters", [1, 4, 6])
def test_beginnings_are_kept(n_characters, folder):
    check(aan.read(aan.find(str(folder)), n_characters), n_characters)


def test_an_archive_is_read_as_it_is(tmp_path):
    path = write_tar(tmp_path)
    for source in (path, tmp_path):
        check(aan.read(aan.find(str(source)), 100))


def refused(source, reason):
    with pytest.raises(UserError, match=reason) as error:
        aan.read(aan.find(str(source)), 100)
    assert str(source) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1\tA\tB\ttext1\ttext2\tmore", "line 3 has 6 fields"),
        (b"1\tA\tB\ttext1", "line 3 has 4 fields"),
        (b"", "line 3 has 1 fields"),
        (b"label\tid1\tid2\ttext1\ttext2", "line 3: the label is 'label', wanted 0, 1"),
        (b"2\tA\tB\ttext1\ttext2", "line 3: the label is '2'"),
        (b"\xff\tA\tB\ttext1\ttext2", "line 3: the label is '\ufffd'"),
        (b"1\tA\tB\ttext1\tcaf\xe9 noir", "line 3 is not UTF-8"),
    ],
)
def test_a_malformed_row_is_named(line, reason, folder):
    before = b"".join(fields + b"\n" for fields, _ in ROWS[:2])
    train(folder).write_bytes(before + line + b"\n" + content("train"))
    refused(train(folder).parent, f"{train(folder)}, {reason}")


def test_an_empty_file_is_named(folder):
    train(folder).write_bytes(b"")
    refused(folder, "train.tsv has no rows")


def test_missing_files_are_named(folder, tmp_path):
    refused(tmp_path / "nowhere", "has 0 files new_aan_pairs.train.tsv, not one .in it")
    second = folder / "copy" / aan.FILES["train"]
    second.parent.mkdir()
    second.write_bytes(b"")
    refused(folder, "has 2 files .*copy/new_aan_pairs.train.tsv")
    second.unlink()
    train(folder).with_name(aan.FILES["test"]).unlink()
    refused(folder, "new_aan_pairs.test.tsv is missing: wanted .* 17,437 rows")
    train(folder).rename(train(folder).with_name("train.tsv"))
    refused(folder, "has 0 files .*in it: copy, lra_release")


def test_damaged_archives_are_named(tmp_path):
    path = write_tar(tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-20][:40], b"<html>", b""):
        path.write_bytes(damaged)
        refused(path, "cannot be read")
    with gzip.open(path, "wb") as file:
        file.write(b"no tar")
    refused(path, "cannot be read")
    write_tar(tmp_path, leave_out=["validation"])
    refused(path, "has no new_aan_pairs.eval.tsv: wanted")


def test_a_malformed_row_of_an_archive_is_named(tmp_path):
    path = tmp_path / "lra.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(f"tsv_data/{aan.FILES['test']}")
        lines = content("test") + b"1\tA\n"
        member.size = len(lines)
        tar.addfile(member, io.BytesIO(lines))
    refused(path, f"lra.tar, tsv_data/{aan.FILES['test']}, line 6 has 2 fields")
