import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.digits import Digits


@pytest.fixture(scope="module")
def digits():
    return Digits(cache_dir="", source="")


def test_the_split_is_fixed_and_stratified(digits):
    sizes = {split: digits.size(split) for split in ("train", "validation", "test")}
    assert sizes == {"train": 1_293, "validation": 144, "test": 360}
    rows = np.concatenate([digits._rows[split] for split in sizes])
    assert np.array_equal(np.sort(rows), np.arange(1_797))
    labels = digits.batch("test", np.arange(360))["label"]
    assert np.bincount(labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert digits.checksum.startswith("d7ce3e7db4b22218")


def test_training_batches(digits):
    batch = digits.train_batch(seed=1, step=30, batch_size=8)
    assert batch["pixels"].shape == (8, 64) and batch["pixels"].dtype == np.uint8
    assert batch["label"].shape == batch["weight"].shape == (8,)
    again = Digits(cache_dir="", source="").train_batch(1, 30, 8)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    other = digits.train_batch(2, 30, 8)
    assert not np.array_equal(batch["pixels"], other["pixels"])


def test_the_model_reads_centred_pixels_and_padding_counts_for_nothing(digits):
    read = {}

    def model(x, *, key, train):
        read["x"] = np.asarray(x)
        return jnp.zeros((len(x), 10)).at[:, 3].set(1.0)

    batch = digits.batch("train", np.arange(digits.size("train")))
    batch["weight"][100:] = 0
    loss, weight, sums = digits.loss(model, batch)
    assert read["x"].shape == (1_293, 64, 1)
    assert abs(read["x"].mean()) < 1e-6
    assert np.ptp(read["x"]) == 1
    assert weight == 100
    assert sums["accuracy"][0] == np.sum(batch["label"][:100] == 3)
    wrong, right = (np.log(9 + np.e) - logit for logit in (0, 1))
    expected = wrong * (100 - sums["accuracy"][0]) + right * sums["accuracy"][0]
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_reference_points(digits):
    assert digits.reference_points == {
        "chance": 0.1,
        "majority class": 37 / 360,
        "ridge regression": 0.939,
    }


def test_files_are_refused():
    with pytest.raises(ValueError, match="data.source='x', but digits reads no files"):
        Digits(cache_dir="", source="x")
