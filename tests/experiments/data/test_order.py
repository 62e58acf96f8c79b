import numpy as np
import pytest

from experiments.data.order import training_rows


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_every_row_comes_once_an_epoch(batch_size):
    n = 10
    steps = range(-(-3 * n // batch_size))
    rows = np.concatenate([training_rows(n, 5, s, batch_size) for s in steps])
    epochs = rows[: 3 * n].reshape(3, n)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_any_step_at_any_time():
    forward = [training_rows(1_000, 2, step, 96) for step in range(40)]
    for step in (39, 3, 11, 10, 0):
        assert np.array_equal(training_rows(1_000, 2, step, 96), forward[step])
    assert training_rows(1_000, 2, 10**9, 96).shape == (96,)


def test_seeds_and_epochs_are_independent():
    # A seed's second epoch is not the next seed's first one.
    second = training_rows(100, 0, 1, 100)
    assert not np.array_equal(second, training_rows(100, 1, 0, 100))
    assert not np.array_equal(second, training_rows(100, 0, 0, 100))


def test_the_order_is_the_same_for_ever():
    # A release of numpy that changes this changes every run.
    assert training_rows(1_000, 0, 0, 4).tolist() == [175, 70, 468, 637]
    assert training_rows(1_000, 1, 10**6, 3).tolist() == [248, 70, 719]
