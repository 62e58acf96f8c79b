"""Small subsets of big grids, and the rest of them for `make test-slow`."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def pairwise(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of `grid` such that any two values of two keys occur together in one.

    Greedy and deterministic: each row starts with an uncovered pair and takes, key by
    key, the value that covers most new ones.
    """
    names = list(grid)
    open_pairs = {
        (i, j, v, w)
        for i, j in itertools.combinations(range(len(names)), 2)
        for v in range(len(grid[names[i]]))
        for w in range(len(grid[names[j]]))
    }
    rows = []
    while open_pairs:
        i, j, v, w = min(open_pairs)
        row = {i: v, j: w}
        for k in range(len(names)):
            if k not in row:
                row[k] = max(
                    range(len(grid[names[k]])),
                    key=lambda value, k=k: sum(
                        pair(k, value, other, row[other]) in open_pairs for other in row
                    ),
                )
        open_pairs -= {
            pair(a, row[a], b, row[b])
            for a, b in itertools.combinations(range(len(names)), 2)
        }
        rows.append({name: grid[name][row[k]] for k, name in enumerate(names)})
    return rows


def pair(i: int, v: int, j: int, w: int) -> tuple[int, int, int, int]:
    return (i, j, v, w) if i < j else (j, i, w, v)


def crossed(
    grid: Mapping[str, Sequence[Any]], dealt: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """All rows of `grid`, each with one value of every name in `dealt`.

    Those are dealt out like shuffled cards, the same in every run: of each name, every
    value occurs equally often, beside whatever comes.
    """
    rows = [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    shuffled = random.Random(0)
    for name, values in dealt.items():
        cards = list(itertools.islice(itertools.cycle(values), len(rows)))
        shuffled.shuffle(cards)
        for row, card in zip(rows, cards, strict=True):
            row[name] = card
    return rows


def affordable(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that an interpreter has run within some seconds.

    Of 1000 channels it takes long: they are tried at 65 steps, not at 63 and 64 too.
    """
    return [row for row in rows if row["width"] < 1000 or row["time"] not in (63, 64)]


def name_of(row: Mapping[str, Any]) -> str:
    return "-".join(map(str, row.values()))


def mostly_slow(values: Sequence[Any], *quick: Any) -> list[Any]:
    """Parameters of which all but the `quick` ones are left to `make test-slow`."""
    return [
        v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values
    ]
