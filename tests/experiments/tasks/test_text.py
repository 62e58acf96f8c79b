import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import result
from experiments.data import builders, imdb, polarity
from experiments.errors import UserError
from experiments.tasks.text import Text
from tests.experiments.data import test_imdb

SPLITS = ("train", "validation", "test")


def make(cache_dir, method=Text, **changes):
    arguments = {
        "unit": "byte",
        "max_length": 256,
        "protocol": "heldout",
        "train_size": 100,
        "test_size": 30,
        "negation": 0.0,
        "min_bytes": 100,
        "max_bytes": 200,
        "data_seed": 0,
        "cache_dir": str(cache_dir),
        "source": "stand-in",
    }
    return method(**arguments | changes)


def of_files(cache_dir, source, **changes):
    arguments = {"max_length": 4_096, "train_size": 10, "test_size": 10} | changes
    return make(cache_dir, source=str(source), **arguments)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def task(cache_dir):
    return make(cache_dir)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    test_imdb.write_tar(folder)
    return folder


def texts(task, split):
    """What the tokens of a split say, byte by byte."""
    batch = task.batch(split, np.arange(task.size(split)))
    found = []
    for tokens, length in zip(batch["tokens"], batch["length"], strict=True):
        assert tokens[length - 1] == 1 and not tokens[length:].any()
        found.append(bytes((tokens[: length - 1] - 2).astype(np.uint8)))
    return found


def test_splits_are_disjoint_and_of_their_sizes(task):
    assert [task.size(split) for split in SPLITS] == [90, 10, 30]
    assert len({text for split in SPLITS for text in texts(task, split)}) == 130


def test_made_up_reviews_are_a_stand_in_of_their_own_name(task, cache_dir):
    assert (task.name, task.provenance) == ("polarity", "stand-in")
    assert task.model_kwargs == {"vocab_size": 258, "n_classes": 2}
    rows = polarity.generate(0, 130, polarity.Settings(0.0, 100, 200))
    wanted = [rows[row].tobytes() for row in range(130)]
    assert sorted(texts(task, "train") + texts(task, "validation")) == sorted(
        wanted[:100]
    )
    assert texts(task, "test") == wanted[100:]
    (path,) = cache_dir.glob("polarity/negation-0.0_*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["provenance"] == "stand-in" and manifest["task"] == "polarity"
    assert manifest["rows"] == {"train": 100, "test": 30}


def test_reference_points(task, cache_dir):
    test = task.batch("test", np.arange(30))["label"]
    majority = np.bincount(test).max() / 30
    assert task.reference_points == {"chance": 0.5, "majority class": majority}
    known = make(cache_dir, max_bytes=300, max_length=301)
    assert known.reference_points["word counts"] == 1.0


def test_training_batches_are_pure(task, cache_dir):
    batch = task.train_batch(7, 1_000, 32)
    other = make(cache_dir).train_batch(7, 1_000, 32)
    assert all(np.array_equal(batch[name], other[name]) for name in batch)
    assert not np.array_equal(batch["tokens"], task.train_batch(8, 1_000, 32)["tokens"])
    assert batch["tokens"].dtype == np.uint16 and batch["length"].dtype == np.int32


def test_the_paper_protocol_selects_on_test(task, cache_dir, capsys):
    assert "selected on test" not in capsys.readouterr().out
    paper = make(cache_dir, protocol="paper")
    assert "selected on test" in capsys.readouterr().out
    assert [paper.size(split) for split in SPLITS] == [100, 30, 30]
    assert texts(paper, "validation") == texts(paper, "test") == texts(task, "test")
    assert result._selection(task) == "first best validation accuracy"
    assert result._selection(paper) == "selected on test: first best test accuracy"
    assert paper.checksum != task.checksum


def test_files_of_every_form_are_one_set(source, cache_dir, tmp_path):
    archive = of_files(cache_dir, source)
    for form in ("csv", "tfds"):
        (tmp_path / form).mkdir()
        test_imdb.WRITERS[form](tmp_path / form)
        other = of_files(cache_dir, tmp_path / form)
        assert other.checksum == archive.checksum
        assert texts(other, "train") == texts(archive, "train")
    assert (archive.name, archive.provenance) == ("text", "stand-in")  # of 20 rows
    assert [archive.size(split) for split in SPLITS] == [9, 1, 10]
    labels = {
        texts(archive, split)[row]: label
        for split in SPLITS
        for row, label in enumerate(
            archive.batch(split, np.arange(archive.size(split)))["label"]
        )
    }
    assert labels[b"train a tab\there"] == 1
    assert labels[b"test a comma, and another,"] == 0


def test_the_whole_set_is_the_official_archive(source, cache_dir, monkeypatch):
    monkeypatch.setattr(imdb, "SIZES", {"train": 10, "test": 10})
    task = of_files(cache_dir / "official", source)
    assert task.provenance == "official archive"
    (path,) = (cache_dir / "official" / "text").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["provenance"] == "official archive"
    assert manifest["form"] == "archive" and manifest["source"] == str(source)
    share = {"byte": 0.1, "char": 0.1}
    assert manifest["share_longer_than_4095"] == {"train": share, "test": share}


@pytest.mark.parametrize("unit", ["byte", "char"])
def test_a_long_review_keeps_its_end_token(unit, source, cache_dir):
    task = of_files(cache_dir, source, unit=unit)
    batch = task.batch("test", np.arange(10))
    (long,) = np.flatnonzero(batch["length"] == 4_096)
    assert batch["tokens"].shape == (10, 4_096)
    tokens = batch["tokens"][long]
    eos, x = (1, ord("x") + 2) if unit == "byte" else (2, 3)  # by far the most frequent
    assert tokens[-1] == eos and np.all(tokens[5:-1] == x)


def test_characters_of_the_training_reviews(source, cache_dir):
    task = of_files(cache_dir, source, unit="char")
    counts = {}
    for text, _ in test_imdb.REVIEWS["train"]:
        for char in text[:4_095]:
            counts[char] = counts.get(char, 0) + 1
    wanted = sorted(
        (c for c in counts if counts[c] >= 15), key=lambda c: (-counts[c], c)
    )
    assert task.model_kwargs["vocab_size"] == 3 + len(wanted)
    assert task._encoding.alphabet == "".join(wanted)
    batch = task.batch("test", np.arange(10))
    assert batch["tokens"].dtype == np.uint8
    assert np.any(batch["tokens"] == 1)  # rare ones are unknown


def test_other_counts_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="10 train rows, task.train_size is 12"):
        of_files(tmp_path, source, train_size=12)
    assert not list(tmp_path.rglob("manifest.json"))
    of_files(tmp_path, source)
    with pytest.raises(UserError, match="set --config.task.test_size=10"):
        of_files(tmp_path, source, test_size=9)


def test_prepare_repairs_what_is_damaged(task, tmp_path):
    make(tmp_path)
    (path,) = tmp_path.rglob("*-train.array_record*")
    os.truncate(path, 100)
    with pytest.raises(builders.DamagedError, match="--mode=prepare"):
        make(tmp_path)
    assert make(tmp_path, Text.prepare).checksum == task.checksum


def test_loss(task):
    read = {}

    def model(tokens, lengths, *, key, train):
        read.update(tokens=np.asarray(tokens), lengths=np.asarray(lengths))
        return 50.0 * jnp.eye(2)[np.arange(len(tokens)) % 2]

    batch = task.batch("test", np.arange(10))
    batch["weight"][8:] = 0
    _, weight, sums = task.loss(model, batch)
    assert read["tokens"].dtype == np.int32
    assert np.array_equal(read["lengths"], batch["length"])
    assert weight == sums["loss"][1] == sums["accuracy"][1] == 8
    assert sums["accuracy"][0] == np.sum(batch["label"][:8] == np.arange(8) % 2)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"unit": "word"}, "unit='word'"),
        ({"max_length": 1}, "max_length=1"),
        ({"max_length": 200}, "max_bytes=200, wanted less than max_length=200"),
        ({"protocol": "test"}, "protocol='test', wanted 'heldout' or 'paper'"),
        ({"train_size": 9}, "train_size=9"),
        ({"test_size": 0}, "test_size=0"),
        ({"data_seed": -1}, "data_seed=-1"),
        ({"negation": 2.0}, "negation=2.0"),
    ],
)
def test_wrong_arguments(wrong, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        make(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
