"""A whole set of different ListOps expressions, drawn by several processes."""

import functools
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from experiments.data.listops import Grammar
from experiments.data.listops_generator import Expressions, draw
from experiments.data.rows import Rows
from experiments.data.workers import N_WORKERS, in_processes

_CHUNK = 1_000  # rows drawn at once: enough to keep numpy busy, few enough for a cache


def generate(
    grammar: Grammar,
    seed: int,
    n_rows: int,
    *,
    n_workers: int = N_WORKERS,
    report: Callable[[int], None] = lambda done: None,
) -> Rows:
    """Draw rows 0 to n_rows - 1, all different, by `n_workers` processes.

    A row that equals an earlier one goes on to its next attempt, so the result depends
    on (grammar, seed, n_rows) alone. `report` is told how many rows are done. The
    labels are the values, uint8.

    Raises ValueError if the grammar accepts hardly any expression, UserError if one of
    the processes is killed.
    """
    starts = range(0, n_rows, _CHUNK)
    chunks = [np.arange(start, min(start + _CHUNK, n_rows)) for start in starts]
    seen: set[bytes] = set()
    tokens: list[np.ndarray] = []
    values = []
    drawn_chunks = in_processes(
        functools.partial(_draw_first, grammar, seed), chunks, n_workers
    )
    for rows, drawn in zip(chunks, drawn_chunks, strict=True):
        for i in range(len(rows)):
            while (digest := _digest(drawn.tokens[i])) in seen:
                again = draw(grammar, seed, rows[[i]], drawn.attempts[[i]] + 1)
                drawn.tokens[i] = again.tokens[0]
                drawn.values[i] = again.values[0]
                drawn.attempts[i] = again.attempts[0]
            seen.add(digest)
        tokens += drawn.tokens
        values.append(drawn.values)
        report(len(tokens))
    return Rows.of(tokens, np.concatenate(values))


def _draw_first(grammar: Grammar, seed: int, rows: np.ndarray) -> Expressions:
    return draw(grammar, seed, rows, np.zeros_like(rows))


def _digest(tokens: np.ndarray) -> bytes:
    return blake2b(tokens.tobytes(), digest_size=16).digest()
