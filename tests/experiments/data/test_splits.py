import numpy as np
import pytest

from experiments.data import splits

SIZES = {"train": 80, "validation": 10, "test": 11}


def test_splits_are_disjoint_and_of_their_sizes():
    for how in ("permuted", "tail"):
        cut = splits.cut(SIZES, how)
        assert {split: len(rows) for split, rows in cut.items()} == SIZES
        together = np.concatenate(list(cut.values()))
        assert np.array_equal(np.sort(together), np.arange(101))
    assert np.array_equal(together, np.arange(101))


def test_the_permutation_is_the_same_everywhere():
    cut = splits.cut({"train": 45_000, "validation": 5_000}, "permuted")
    assert cut["validation"][:5].tolist() == [42947, 33367, 31588, 680, 5705]
    assert splits.checksum("", cut).startswith("64ad2b5ff6c47b5d")


def test_the_checksum_sees_rows_and_splits():
    cut = splits.cut(SIZES, "tail")
    sums = {splits.checksum("a", cut), splits.checksum("b", cut)}
    sums.add(splits.checksum("a", cut | {"test": cut["validation"]}))
    sums.add(splits.checksum("a", splits.cut(SIZES, "permuted")))
    assert len(sums) == 4


def test_wrong_arguments():
    with pytest.raises(
        ValueError, match="split must be permuted or tail, got 'random'"
    ):
        splits.cut(SIZES, "random")
    with pytest.raises(ValueError, match="every split needs rows"):
        splits.cut(SIZES | {"test": 0}, "tail")
