"""Which rows are trained on, chosen by and reported: never a matter of a run's seed."""

import hashlib
from collections.abc import Mapping

import numpy as np

from experiments.data.order import split_order


def cut(sizes: Mapping[str, int], how: str) -> dict[str, np.ndarray]:
    """Return the rows of each split, of a set that has as many rows as all together.

    "permuted": consecutive parts of one permutation of the rows; "tail": of the rows
    in the order of their source, as Long Range Arena cuts.

    Raises ValueError if `how` is something else, or a split has no rows.
    """
    if min(sizes.values()) < 1:
        raise ValueError(f"every split needs rows, got {dict(sizes)}")
    n_rows = sum(sizes.values())
    if how == "permuted":
        order = split_order(n_rows)
    elif how == "tail":
        order = np.arange(n_rows)
    else:
        raise ValueError(f"split must be permuted or tail, got {how!r}")
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(order, ends[:-1]), strict=True))


def checksum(rows_checksum: str, splits: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of rows that have one already, and of their splits."""
    digest = hashlib.sha256(rows_checksum.encode())
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        digest.update(splits[split].astype("<i8").data)
    return digest.hexdigest()
