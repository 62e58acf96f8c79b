"""A whole set of different ListOps expressions, drawn by several processes.

The processes are plain interpreters that run this module: `multiprocessing` would
import the caller's main module, and with it jax, into each of them.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from experiments.data.listops import Grammar
from experiments.data.listops_generator import Expressions, draw
from experiments.data.rows import Rows
from experiments.errors import UserError

_CHUNK = 1_000  # rows drawn at once: enough to keep numpy busy, few enough for a cache
_N_WORKERS = min(os.cpu_count() or 1, 8)  # more would wait for the one that collects


def generate(
    grammar: Grammar,
    seed: int,
    n_rows: int,
    *,
    n_workers: int = _N_WORKERS,
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
    n_workers = min(n_workers, len(chunks))
    seen: set[bytes] = set()
    tokens: list[np.ndarray] = []
    values = []
    drawn_chunks = _draw_in_processes(grammar, seed, chunks, n_workers)
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


def _draw_in_processes(
    grammar: Grammar, seed: int, chunks: list[np.ndarray], n_workers: int
) -> Iterator[Expressions]:
    """Draw the chunks in order; worker w draws those with index w modulo n_workers."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.data.listops_rows"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(n_workers)
    ]
    try:
        for w, worker in enumerate(workers):
            assert worker.stdin is not None
            pickle.dump((grammar, seed, chunks[w::n_workers]), worker.stdin)
            worker.stdin.close()
        for i in range(len(chunks)):
            results = workers[i % n_workers].stdout
            assert results is not None
            drawn = pickle.load(results)
            if isinstance(drawn, ValueError):
                raise drawn
            yield drawn
    except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            "a process that draws rows was killed: give the same command again, with "
            "more memory if that was the reason"
        ) from error
    finally:
        for worker in workers:
            worker.kill()
            with worker:  # closes its pipes and waits
                pass


def _digest(tokens: np.ndarray) -> bytes:
    return blake2b(tokens.tobytes(), digest_size=16).digest()


def _work() -> None:
    """Draw the chunks that standard input names, to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which ends us
    signal.signal(
        signal.SIGPIPE, signal.SIG_DFL
    )  # end with the parent, and say nothing
    grammar, seed, chunks = pickle.load(sys.stdin.buffer)
    for rows in chunks:
        drawn: Expressions | ValueError
        try:
            drawn = draw(grammar, seed, rows, np.zeros_like(rows))
        except ValueError as error:
            drawn = error
        pickle.dump(drawn, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _work()
