"""The orders of rows: in training, a pure function of (seed, step), and for splits."""

import functools

import numpy as np


def training_rows(n_rows: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return the rows (batch_size,) of the batch of a step; any step at any time.

    Every epoch is another permutation of all rows, keyed by (seed, epoch). Batches run
    over the ends of epochs, so every row comes once an epoch.
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n_rows, (stop - 1) // n_rows + 1)
    parts = []
    for epoch in epochs:
        first = epoch * n_rows
        of_epoch = slice(max(start - first, 0), stop - first)
        parts.append(_permutation(n_rows, seed, epoch)[of_epoch])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)  # a batch touches two epochs at most, as a rule
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(n_rows)


def split_order(n_rows: int) -> np.ndarray:
    """Return the order in which rows are cut into splits: the same in every run."""
    return np.random.Generator(np.random.PCG64(42)).permutation(n_rows)
