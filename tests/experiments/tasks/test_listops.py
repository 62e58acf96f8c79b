import os

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import builders, listops_tsv
from experiments.data.listops import EOS, evaluate
from experiments.errors import UserError
from experiments.tasks.listops import ListOps

SPLITS = ("train", "validation", "test")


def make(cache_dir, method=ListOps, **changes):
    arguments = {
        "train_size": 300,
        "validation_size": 40,
        "test_size": 50,
        "min_length": 10,
        "max_length": 128,
        "max_depth": 6,
        "max_args": 5,
        "end_token": True,
        "data_seed": 0,
        "write_tsv": "",
        "cache_dir": str(cache_dir),
        "source": "",
    }
    return method(**arguments | changes)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def task(cache_dir):
    return make(cache_dir)


def test_splits_are_disjoint_and_of_their_sizes(task):
    sizes = [task.size(split) for split in SPLITS]
    assert sizes == [300, 40, 50]
    rows = set()
    for split in SPLITS:
        tokens = task.batch(split, np.arange(task.size(split)))["tokens"]
        rows |= {row.tobytes() for row in tokens}
    assert len(rows) == 390


def test_labels_are_the_values(task):
    batch = task.batch("validation", np.arange(40))
    assert batch["tokens"].shape == (40, 128) and batch["tokens"].dtype == np.uint8
    for tokens, length, label in zip(
        batch["tokens"], batch["length"], batch["label"], strict=True
    ):
        assert tokens[length - 1] == EOS and not tokens[length:].any()
        assert evaluate(tokens[: length - 1].tolist()) == label


def test_without_an_end_token(task, cache_dir):
    plain = make(cache_dir, end_token=False).batch("test", np.arange(9))
    ended = task.batch("test", np.arange(9))
    assert np.array_equal(plain["length"], ended["length"] - 1)
    assert not np.any(plain["tokens"] == EOS)
    assert plain["length"].dtype == ended["length"].dtype == np.int32


def test_training_batches_are_pure(task, cache_dir):
    batch = task.train_batch(7, 1_000, 32)
    other = make(cache_dir).train_batch(7, 1_000, 32)
    assert all(np.array_equal(batch[name], other[name]) for name in batch)
    assert not np.array_equal(batch["tokens"], task.train_batch(8, 1_000, 32)["tokens"])


def test_the_rows_depend_on_the_data_seed_alone(task, cache_dir, tmp_path):
    assert make(tmp_path).checksum == task.checksum
    assert make(cache_dir, data_seed=1).checksum != task.checksum


def test_loss(task):
    read = {}

    def model(tokens, lengths, *, key, train):
        read.update(tokens=np.asarray(tokens), lengths=np.asarray(lengths))
        return 50.0 * jnp.eye(10)[np.arange(len(tokens)) % 10]

    batch = task.batch("test", np.arange(10))
    batch["weight"][8:] = 0
    _, weight, sums = task.loss(model, batch)
    assert read["tokens"].dtype == np.int32
    assert np.array_equal(read["lengths"], batch["length"])
    assert weight == sums["loss"][1] == sums["accuracy"][1] == 8
    assert sums["accuracy"][0] == np.sum(batch["label"][:8] == np.arange(8))


def test_provenance_and_reference_points(task, cache_dir):
    assert (task.name, task.provenance) == ("listops_tiny", "stand-in")
    test = task.batch("test", np.arange(50))["label"]
    assert task.reference_points["majority class"] == np.bincount(test).max() / 50
    assert task.reference_points["one nested level"] == 0.53
    other = make(cache_dir, max_args=4)
    assert set(other.reference_points) == {"chance", "majority class"}


def test_the_official_settings_are_regenerated(monkeypatch, tmp_path):
    drawn = {}

    def prepare(folder, make, about):
        drawn["folder"] = folder

    def load(folder):
        raise UserError("far enough")

    monkeypatch.setattr(builders, "prepare", prepare)
    monkeypatch.setattr(builders, "load", load)
    official = {
        "train_size": 96_000,
        "validation_size": 2_000,
        "test_size": 2_000,
        "min_length": 500,
        "max_length": 2_000,
        "max_depth": 10,
        "max_args": 10,
    }
    for changes, name, provenance in (
        ({}, "listops", "regenerated"),
        ({"test_size": 1}, "listops_tiny", "stand-in"),
    ):
        task = ListOps.__new__(ListOps)
        with pytest.raises(UserError, match="far enough"):
            make(tmp_path, task.__init__, **official | changes)
        assert (task.name, task.provenance) == (name, provenance)
    assert drawn["folder"].parent == tmp_path / "listops"


def test_files_hold_the_same_rows(task, cache_dir, tmp_path):
    make(cache_dir, ListOps.prepare, write_tsv=str(tmp_path))
    read = make(cache_dir, source=str(tmp_path))
    assert read.checksum == task.checksum
    assert read.provenance == "stand-in"
    (tmp_path / "provenance.txt").unlink()
    assert make(cache_dir, source=str(tmp_path)).provenance == "official archive"

    with pytest.raises(UserError, match="300 train rows, task.train_size is 301"):
        make(cache_dir, source=str(tmp_path), train_size=301)
    with pytest.raises(UserError, match="raise --config.task.max_length"):
        make(cache_dir, source=str(tmp_path), max_length=40)
    (tmp_path / listops_tsv.FILES["test"]).unlink()
    with pytest.raises(UserError, match="basic_test.tsv is missing"):
        make(cache_dir, source=str(tmp_path))


def test_prepare_repairs_what_is_damaged(task, tmp_path):
    make(tmp_path)
    (path,) = tmp_path.rglob("*-train.array_record*")
    os.truncate(path, 70_000)
    with pytest.raises(UserError, match="--mode=prepare") as error:
        make(tmp_path)
    assert str(path) in str(error.value)
    assert make(tmp_path, ListOps.prepare).checksum == task.checksum
    assert make(tmp_path).checksum == task.checksum


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"test_size": 0}, "every split needs rows"),
        ({"data_seed": -1}, "data_seed must be from 0"),
        ({"max_depth": 1}, "max_depth >= 2"),
        ({"min_length": 127}, "no expression"),
    ],
)
def test_wrong_arguments(wrong, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        make(tmp_path, **wrong)
