import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import aan, stdlib_pairs
from experiments.errors import UserError
from experiments.tasks.retrieval import Retrieval

SIZES = {"train": 5, "validation": 2, "test": 3}
LONG = "é" * 30


def make(cache_dir, method=Retrieval, **changes):
    arguments = {
        "unit": "byte",
        "max_length": 65,
        "train_size": 40,
        "validation_size": 10,
        "test_size": 20,
        "window_length": 64,
        "data_seed": 0,
        "cache_dir": str(cache_dir),
        "source": "stand-in",
    }
    return method(**arguments | changes)


def of_files(cache_dir, source, **changes):
    sizes = {f"{split}_size": size for split, size in SIZES.items()}
    arguments = {"source": str(source), "max_length": 16} | sizes | changes
    return make(cache_dir, **arguments)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def task(cache_dir):
    return make(cache_dir)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    for split, size in SIZES.items():
        lines = [
            f"{i % 2}.0\tA\tB\t{split} {i}\t{LONG if i else ''}\r\n"
            for i in range(size)
        ]
        (folder / aan.FILES[split]).write_bytes("".join(lines).encode())
    return folder


def text(batch, number, row):
    """What the tokens of one text say, byte by byte."""
    tokens, length = batch[f"tokens{number}"][row], batch[f"length{number}"][row]
    assert tokens[length - 1] == 1 and not tokens[length:].any()
    return bytes((tokens[: length - 1] - 2).astype(np.uint8))


def test_windows_of_the_standard_library(task, cache_dir):
    assert (task.name, task.provenance) == ("stdlib_pairs", "stand-in")
    assert task.reference_points == {"chance": 0.5, "majority class": 0.5}
    sizes = {"train": 40, "validation": 10, "test": 20}
    wanted = stdlib_pairs.generate(0, sizes, 64)
    for split, size in sizes.items():
        assert task.size(split) == size
        batch = task.batch(split, np.arange(size))
        assert np.array_equal(batch["label"], wanted[split].labels)
        for row in range(size):
            pair = b"\t".join([text(batch, 1, row), text(batch, 2, row)])
            assert pair == wanted[split][row].tobytes()
    (path,) = (cache_dir / "stdlib_pairs").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["python"] == stdlib_pairs.PYTHON in str(path)
    assert manifest["provenance"] == "stand-in"


def test_batches_of_papers(source, cache_dir):
    task = of_files(cache_dir, source)
    assert (task.name, task.provenance) == ("retrieval", "stand-in")  # of 10 rows
    batch = task.batch("train", np.array([3, 0]))
    assert batch["tokens1"].shape == batch["tokens2"].shape == (2, 16)
    assert batch["tokens1"].dtype == np.uint16 and batch["length1"].dtype == np.int32
    assert batch["label"].tolist() == [1, 0] and batch["weight"].tolist() == [1, 1]
    assert text(batch, 1, 0) == b"train 3" and text(batch, 1, 1) == b"train 0"
    assert text(batch, 2, 0) == LONG.encode()[:15] and text(batch, 2, 1) == b""
    assert batch["length2"].tolist() == [16, 1]


def test_characters_of_the_training_texts(source, cache_dir):
    task = of_files(cache_dir, source, unit="char")
    assert task.model_kwargs == {"vocab_size": 3 + len("é train01234"), "n_classes": 2}
    batch = task.batch("test", np.array([1]))
    assert batch["tokens2"].tolist() == [15 * [3] + [2]]  # the most frequent
    assert 1 in batch["tokens1"][0]  # "s" and "e" are not in the training texts


def test_the_manifest_says_what_is_cut(source, tmp_path, monkeypatch):
    monkeypatch.setattr(aan, "SIZES", SIZES)
    task = of_files(tmp_path, source)
    assert task.provenance == "official archive"
    (path,) = (tmp_path / "retrieval").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["provenance"] == "official archive"
    assert manifest["source"] == str(source)
    share = manifest["share_longer_than_15"]
    assert share["train"] == {"byte": 0.4, "char": 0.4}
    of_files(tmp_path, source, max_length=40)
    (path,) = (tmp_path / "retrieval").glob("*_length-40/manifest.json")
    share = json.loads(path.read_text())["share_longer_than_39"]
    assert share["train"] == {"byte": 0.4, "char": 0.0}


def test_training_batches_are_pure(task, cache_dir):
    batch = task.train_batch(7, 1_000, 32)
    other = make(cache_dir).train_batch(7, 1_000, 32)
    assert all(np.array_equal(batch[name], other[name]) for name in batch)
    assert set(batch) == {"tokens1", "tokens2", "length1", "length2", "label", "weight"}


def test_loss(task):
    read = []

    def model(*inputs, key, train):
        read.extend(np.asarray(array) for array in inputs)
        return 50.0 * jnp.eye(2)[np.arange(len(inputs[0])) % 2]

    batch = task.batch("test", np.arange(10))
    batch["weight"][8:] = 0
    _, weight, sums = task.loss(model, batch)
    names = ("tokens1", "tokens2", "length1", "length2")
    for array, name in zip(read, names, strict=True):
        assert array.dtype == np.int32 and np.array_equal(array, batch[name])
    assert weight == sums["accuracy"][0] == sums["accuracy"][1] == 8


def test_other_counts_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="5 train rows, task.train_size is 147086"):
        of_files(tmp_path, source, train_size=147_086)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"unit": "word"}, "unit='word'"),
        ({"max_length": 1}, "max_length=1"),
        ({"window_length": 65}, "window_length=65, wanted .* less than max_length=65"),
        ({"window_length": 0}, "window_length=0"),
        ({"validation_size": 0}, "every split needs rows"),
        ({"data_seed": -1}, "data_seed=-1"),
    ],
)
def test_wrong_arguments(wrong, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        make(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
