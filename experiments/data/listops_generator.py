"""Random ListOps expressions, drawn many at a time, each on its own.

From the root down, a node above `max_depth` is an operator with probability 1/4 and has
2 to `max_args` arguments; all else is a digit; every choice is uniform. An expression
is accepted if `min_length < length < max_length`.

Each node has a 64-bit key: that of a root comes from (seed, row, attempt), that of an
argument from its parent's key and its position, as in the splittable generator of
Steele, Lea and Flood 2014; the choices at a node are bits of its key. So an expression
is a pure function of (seed, row, attempt), whoever draws it and beside whichever
others, and no release of a library changes it.
"""

from dataclasses import dataclass

import numpy as np

from experiments.data.listops import CLOSE, MIN, ZERO, Grammar
from experiments.data.rows import Rows
from experiments.data.splitmix import below, child

VERSION = 1  # to be raised when the same seed gives other rows
_MAX_ATTEMPTS = 2_000  # a row; Long Range Arena's grammar needs 3 on average


@dataclass(frozen=True)
class Expressions:
    """What was drawn: the first accepted attempt of every row."""

    tokens: list[np.ndarray]  # (length,) uint8 each
    values: np.ndarray  # (rows,) uint8
    attempts: np.ndarray  # (rows,) which attempt it was


def draw(
    grammar: Grammar, seed: int, rows: np.ndarray, attempts: np.ndarray
) -> Expressions:
    """Draw each row (n,) from its attempt (n,) on, until an expression is accepted.

    Raises ValueError if hardly any expression would be.
    """
    last = attempts + _MAX_ATTEMPTS
    attempts = attempts.copy()
    tokens = [np.empty(0, np.uint8)] * len(rows)
    values = np.zeros(len(rows), np.uint8)
    pending = np.arange(len(rows))
    while len(pending):
        if np.any(attempts[pending] == last[pending]):
            raise ValueError(f"{_MAX_ATTEMPTS} attempts drew nothing as in {grammar}")
        key = np.full(len(pending), seed, np.uint64)
        key = child(child(key, rows[pending]), attempts[pending])
        levels, lengths = _grow(grammar, key)
        accepted = (lengths > grammar.min_length) & (lengths < grammar.max_length)
        written = _write([level.of_trees(accepted) for level in levels])
        values[pending[accepted]] = written.labels
        for i, row in enumerate(pending[accepted]):
            tokens[row] = written[i]
        pending = pending[~accepted]
        attempts[pending] += 1
    return Expressions(tokens, values, attempts)


@dataclass(frozen=True)
class _Level:
    """All nodes at one depth, the arguments of an operator side by side."""

    tree: np.ndarray  # (nodes,) the expression that each belongs to
    token: np.ndarray  # (nodes,) uint8
    n_args: np.ndarray  # (nodes,) 0 for a digit

    def of_trees(self, wanted: np.ndarray) -> "_Level":
        keep = wanted[self.tree]
        return _Level(self.tree[keep], self.token[keep], self.n_args[keep])


def _grow(grammar: Grammar, key: np.ndarray) -> tuple[list[_Level], np.ndarray]:
    """Draw a tree from each key; one that is too long already grows no further.

    Returns the levels from the roots down, and the lengths of the trees in tokens.
    """
    levels = []
    tree = np.arange(len(key))
    lengths = np.ones(len(key), np.int64)
    for depth in range(1, grammar.max_depth + 1):
        # A root that is a digit is always refused, so those attempts are left out.
        is_operator = (depth == 1) | (depth < grammar.max_depth) & (key >> 62 == 0)
        token = np.where(is_operator, MIN + (key >> 60 & 3), ZERO + below(10, key))
        n_args = np.where(is_operator, 2 + below(grammar.max_args - 1, key), 0)
        n_args = n_args.astype(np.int64)
        levels.append(_Level(tree, token.astype(np.uint8), n_args))
        new = np.bincount(tree, n_args + is_operator, minlength=len(lengths))
        lengths += new.astype(np.int64)
        growing = lengths[tree] < grammar.max_length
        parents, n_args, first = _families(np.where(growing, n_args, 0))
        tree = np.repeat(tree[parents], n_args)
        position = np.arange(len(tree)) - np.repeat(first, n_args)
        key = child(np.repeat(key[parents], n_args), position)
    return levels, lengths


def _measure(levels: list[_Level]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the lengths in tokens of all nodes, by level, and the roots' values."""
    sizes: list[np.ndarray] = []
    value = size = np.empty(0, np.int64)
    for level in reversed(levels):
        parents, n_args, first = _families(level.n_args)
        args, arg_size = value, size
        value = level.token.astype(np.int64) - ZERO
        size = np.ones_like(value)
        if len(parents):
            owner = np.repeat(np.arange(len(parents)), n_args)
            ordered = np.sort(10 * owner + args) % 10
            last = n_args - 1
            halves = ordered[first + last // 2] + ordered[first + (last + 1) // 2]
            by_operator = (
                ordered[first],
                ordered[first + last],
                halves // 2,
                np.add.reduceat(args, first) % 10,
            )
            value[parents] = np.choose(level.token[parents] - MIN, by_operator)
            size[parents] = 2 + np.add.reduceat(arg_size, first)
        sizes.insert(0, size)
    return sizes, value.astype(np.uint8)


def _write(levels: list[_Level]) -> Rows:
    """Return the tokens and the values of all trees."""
    sizes, values = _measure(levels)
    starts = np.cumsum([0, *sizes[0]])
    tokens = np.empty(starts[-1], np.uint8)
    position = starts[:-1]
    arg_sizes = [*sizes[1:], np.empty(0, np.int64)]
    for level, size, arg_size in zip(levels, sizes, arg_sizes, strict=True):
        parents, n_args, first = _families(level.n_args)
        tokens[position] = level.token
        tokens[position[parents] + size[parents] - 1] = CLOSE
        before = np.cumsum(arg_size) - arg_size  # tokens of the nodes to the left
        position = np.repeat(position[parents] + 1 - before[first], n_args) + before
    return Rows(tokens, starts, values)


def _families(n_args: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the nodes with arguments, how many, and, one level on, their first one."""
    parents = np.flatnonzero(n_args)
    n_args = n_args[parents]
    return parents, n_args, np.cumsum(n_args) - n_args
