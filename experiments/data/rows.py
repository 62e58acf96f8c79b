"""Labelled rows of different lengths, in flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Rows end to end: row i is `values[starts[i] : starts[i + 1]]`.

    Shapes: values (total,), starts (n + 1,) int64, labels (n,).
    """

    values: np.ndarray
    starts: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], labels: np.ndarray) -> "Rows":
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(np.concatenate(rows), starts, labels)

    @classmethod
    def table(cls, rows: np.ndarray, labels: np.ndarray) -> "Rows":
        """Return rows of one length: `rows` is (n, ...), and is not copied."""
        values = rows.reshape(-1)
        starts = np.arange(len(rows) + 1, dtype=np.int64) * (values.size // len(rows))
        return cls(values, starts, labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.starts[index + 1]]

    def part(self, start: int, stop: int) -> "Rows":
        """Return the rows from `start` to before `stop`."""
        starts = self.starts[start : stop + 1]
        values = self.values[starts[0] : starts[-1]]
        return Rows(values, starts - starts[0], self.labels[start:stop])

    def take(self, indices: np.ndarray) -> "Rows":
        """Return these rows, in this order."""
        return Rows.of([self[index] for index in indices], self.labels[indices])

    def padded(self, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return these rows (n, width), zeros on the right, and their lengths (n,)."""
        starts, ends = self.starts[indices], self.starts[indices + 1]
        batch = np.zeros((len(indices), width), self.values.dtype)
        for out, start, end in zip(batch, starts.tolist(), ends.tolist(), strict=True):
            out[: end - start] = self.values[start:end]
        return batch, ends - starts
