"""The same reviews in every form that people have them in, built here; and damage."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from experiments.data import imdb
from experiments.errors import UserError

TEXTS = [
    "Plain.",
    'It was "odd", this "one',
    "a comma, and another,",
    "two lines<br /><br />in one",
    "line one\nline two\r\nline three",
    "a tab\there",
    "café, 𝄞 and — ",
    " spaces around ",
    "Plain.",  # twice, once of each label
    "x" * 5_000,
]
REVIEWS = {
    split: [(f"{split} {text}", i % 2) for i, text in enumerate(TEXTS)]
    for split in ("train", "test")
}


def shuffled(split):
    order = np.random.default_rng(len(split)).permutation(len(TEXTS))
    return [REVIEWS[split][i] for i in order]


def files():
    """Names and contents as in the archive."""
    for split in ("test", "train"):
        for i, (text, label) in enumerate(shuffled(split)):
            folder = f"aclImdb/{split}/{('neg', 'pos')[label]}"
            yield f"{folder}/{i}_{9 - i % 9}.txt", text.encode()
            yield f"{folder}/._{i}_7.txt", b"what some systems leave in archives"
        yield f"aclImdb/{split}/urls_pos.txt", b"http://"
    yield "aclImdb/train/unsup/0_0.txt", b"without a label"
    yield "aclImdb/README", b"a review set"


def write_tar(folder, mode="w:gz", name="aclImdb_v1.tar.gz"):
    with tarfile.open(folder / name, mode) as tar:
        for name, content in files():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_folder(folder):
    for name, content in files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_parquet(folder):
    inner = folder / "plain_text"
    inner.mkdir()
    for split in REVIEWS:
        text, label = zip(*shuffled(split), strict=True)
        label = pyarrow.array(label, pyarrow.int64())
        table = pyarrow.table({"text": list(text), "label": label})
        parquet.write_table(table, inner / f"{split}-00000-of-00001.parquet")
    table = pyarrow.table({"text": ["no"], "label": [-1]})
    parquet.write_table(table, inner / "unsupervised-00000-of-00001.parquet")


def write_csv(folder):
    for split in REVIEWS:
        lines = [b"label,text\r\n"]
        for text, label in shuffled(split):
            quoted = text.replace('"', '""').encode()
            lines.append(b'%d,"%s"\r\n' % (label, quoted))
        (folder / f"{split}.csv").write_bytes(b"".join(lines))


def write_json_lines(folder):
    for split in REVIEWS:
        rows = [{"text": text, "label": label} for text, label in shuffled(split)]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)


def write_tfds(folder):
    path = folder / "imdb_reviews" / "plain_text" / "1.0.0"
    path.mkdir(parents=True)
    features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["neg", "pos"]),
    }
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="imdb_reviews",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(path),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features)
    )
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=100, file_format="array_record"
    )
    writer.initialize_splits(["train", "test", "unsupervised"])
    for split in REVIEWS:
        rows = [{"text": text, "label": label} for text, label in shuffled(split)]
        writer.add_examples({split: rows})
    writer.add_examples({"unsupervised": [{"text": "no", "label": -1}]})
    writer.close_all()


WRITERS = {
    "archive": write_tar,
    "folder": write_folder,
    "parquet": write_parquet,
    "csv": write_csv,
    "json lines": write_json_lines,
    "tfds": write_tfds,
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_rows(form, tmp_path):
    WRITERS[form](tmp_path)
    source = imdb.find(str(tmp_path))
    assert source.form == form
    splits = imdb.read(source)
    assert set(splits) == set(REVIEWS)
    for split, rows in splits.items():
        found = [
            (label, rows[row].tobytes().decode())
            for row, label in enumerate(rows.labels.tolist())
        ]
        assert found == sorted((label, text) for text, label in REVIEWS[split])
        assert rows.labels.dtype == rows.values.dtype == np.uint8


def test_a_tar_may_be_named_itself_and_packed_otherwise(tmp_path):
    write_tar(tmp_path, "w:xz", "reviews")
    splits = imdb.read(imdb.find(str(tmp_path / "reviews")))
    assert len(splits["train"]) == len(splits["test"]) == len(TEXTS)


def refused(source, reason):
    with pytest.raises(UserError, match=reason) as error:
        imdb.read(imdb.find(str(source)))
    assert str(source) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_reviews_is_listed(tmp_path):
    refused(tmp_path, "no reviews .in it: nothing.: wanted .* aclImdb_v1.tar.gz")
    refused(tmp_path / "nowhere", "in it: nothing")
    (tmp_path / "notes.md").touch()
    refused(tmp_path, "in it: notes.md")


def test_half_of_a_form_is_named(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "test.csv").unlink()
    refused(tmp_path, "has 0 of test.csv, wanted one .nothing.")
    (tmp_path / "inner").mkdir()
    write_csv(tmp_path)
    write_csv(tmp_path / "inner")
    refused(tmp_path, "has 2 of train.csv, wanted one .*inner/train.csv")


def test_tfrecord_is_named(tmp_path):
    path = tmp_path / "imdb_reviews-train.tfrecord-00000-of-00001"
    path.touch()
    refused(tmp_path, f"{path} is a tfrecord file.*array_record.*aclImdb_v1.tar.gz")


def test_a_damaged_tar_is_named(tmp_path):
    write_tar(tmp_path)
    path = tmp_path / "aclImdb_v1.tar.gz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"<html>not found</html>", b""):
        path.write_bytes(damaged)
        refused(path, "cannot be read")


def test_misnamed_files_are_missed(tmp_path):
    write_folder(tmp_path)
    for label in ("pos", "neg"):
        for path in (tmp_path / "aclImdb" / "train" / label).iterdir():
            path.rename(path.with_suffix(".text"))
    refused(tmp_path, "has 0 train reviews, 0 of them positive, not 25,000")


def test_the_classes_of_the_whole_set_are_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(imdb, "SIZES", {"train": 10, "test": 10})
    write_folder(tmp_path)
    train = tmp_path / "aclImdb" / "train"
    imdb.read(imdb.find(str(tmp_path)))
    path = next(path for path in (train / "neg").iterdir() if path.name[0] != ".")
    path.rename(train / "pos" / "99_9.txt")
    refused(tmp_path, "has 10 train reviews, 6 of them positive")


def test_what_is_not_utf8_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "aclImdb/test/pos/99_9.txt").write_bytes(b"caf\xe9 noir")
    refused(tmp_path, "test/pos/99_9.txt is not UTF-8 at byte 3")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1: the columns are None"),
        (b"review,sentiment\nfine,1\n", r"line 1: the columns are \['review'"),
        (b"text,label\nfine,1\nbad,2\n", "line 3: the label is '2'"),
        (b"text,label\nfine,pos\n", "line 2: the label is 'pos'"),
        (b"text,label\nfine\n", "line 2: too few or too many columns"),
        (b"text,label\nfine,1,2\n", "line 2: too few or too many columns"),
        (b'text,label\n"fine"er,1\n', "after line 1: .*expected after"),
        (
            b'text,label\nfine,1\n"not closed,0\n',
            "after line 2: unexpected end of data",
        ),
        (b"text,label\ncaf\xe9,1\n", "line 2 is not UTF-8 at byte 3"),
        (b"text,label\n", "has 0 train reviews"),
    ],
)
def test_a_malformed_csv_is_named(content, reason, tmp_path):
    write_csv(tmp_path)
    (tmp_path / "train.csv").write_bytes(content)
    refused(tmp_path, reason)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "fine", "label": 1', "line 2 is no JSON object"),
        (b'{"text": "fine"}', "line 2 is no JSON object with text and label"),
        (b'{"text": 5, "label": 1}', "line 2 is no JSON object with text and label"),
        (b'["fine", 1]', "line 2 is no JSON object with text and label"),
        (b'{"text": "\\ud800", "label": 1}', "line 2 is no JSON object"),
        (b"\xff", "line 2 is no JSON object"),
        (b'{"text": "fine", "label": "1"}', "line 2: the label is '1'"),
    ],
)
def test_malformed_json_lines_are_named(line, reason, tmp_path):
    write_json_lines(tmp_path)
    first = b'{"text": "fine", "label": 1}\n'
    (tmp_path / "train.jsonl").write_bytes(first + line + b"\n")
    refused(tmp_path, reason)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"text": ["a"], "label": [-1]}, "row 0: the label is -1"),
        ({"text": ["a", None], "label": [0, 1]}, "row 1 has no text"),
        ({"review": ["a"], "label": [1]}, "no parquet file with columns text"),
    ],
)
def test_malformed_parquet_is_named(table, reason, tmp_path):
    write_parquet(tmp_path)
    (path,) = tmp_path.rglob("train-*.parquet")
    parquet.write_table(pyarrow.table(table), path)
    refused(tmp_path, reason)


def test_cut_parquet_is_named(tmp_path):
    write_parquet(tmp_path)
    (path,) = tmp_path.rglob("train-*.parquet")
    os.truncate(path, 900)
    refused(tmp_path, "train-00000-of-00001.parquet is no parquet file")


def test_damaged_tfds_is_named(tmp_path):
    write_tfds(tmp_path)
    (path,) = tmp_path.rglob("*-train.array_record*")
    os.truncate(path, 900)
    refused(tmp_path, "plain_text/1.0.0 cannot be read .*prepare it again")
