"""How far a long preparation has come, on standard error."""

import sys
import time
from collections.abc import Callable


def counter(what: str, total: int, unit: str = "rows") -> Callable[[int], None]:
    """Return a function to be told how many of `total` are done.

    On a terminal it keeps one line up to date, elsewhere it prints one now and then.
    """
    terminal = sys.stderr.isatty()
    interval = 0.2 if terminal else 5.0  # seconds
    due = time.monotonic() + interval

    def report(done: int) -> None:
        nonlocal due
        if done < total and time.monotonic() < due:
            return
        due = time.monotonic() + interval
        end = "\r" if terminal and done < total else "\n"
        line = f"{what}: {done:,} of {total:,} {unit}"
        print(line, end=end, file=sys.stderr, flush=True)

    return report
