"""One function over many inputs, in several processes.

The processes are plain interpreters that run this module: `multiprocessing` would
import the caller's main module, and with it jax, into each of them.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from experiments.errors import UserError

A = TypeVar("A")
B = TypeVar("B")

N_WORKERS = min(os.cpu_count() or 1, 8)  # more would wait for the one that collects


def in_processes(
    function: Callable[[A], B], inputs: Sequence[A], n_workers: int = N_WORKERS
) -> Iterator[B]:
    """Yield what `function` makes of each input, in their order.

    Worker w takes the inputs with index w modulo n_workers; one that is ahead waits.

    Args:
      function: of the top level of a module that does not import jax, or a
        `functools.partial` of one.
      inputs: what can be pickled.

    Raises ValueError or UserError as the function does, and UserError if a process is
    killed.
    """
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.data.workers"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(min(n_workers, len(inputs)))
    ]
    try:
        for w, worker in enumerate(workers):
            assert worker.stdin is not None
            pickle.dump((function, inputs[w :: len(workers)]), worker.stdin)
            worker.stdin.close()
        for i in range(len(inputs)):
            results = workers[i % len(workers)].stdout
            assert results is not None
            result = pickle.load(results)
            if isinstance(result, ValueError | UserError):
                raise result
            yield result
    except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            "a process that prepares data was killed: give the same command again, "
            "with more memory if that was the reason"
        ) from error
    finally:
        for worker in workers:
            worker.kill()
            with worker:  # closes its pipes and waits
                pass


def _work() -> None:
    """Do what standard input says, to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which ends us
    signal.signal(
        signal.SIGPIPE, signal.SIG_DFL
    )  # end with the parent, and say nothing
    function, inputs = pickle.load(sys.stdin.buffer)
    for value in inputs:
        try:
            result = function(value)
        except (ValueError, UserError) as error:
            result = error
        pickle.dump(result, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _work()
