"""What a person sees while a run goes on: a bar on a terminal, else a line at times."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from experiments import metrics

REFRESH_SECONDS = 0.2  # of the bar


class Progress:
    """Shows loss, accuracy, examples/s and time left. Silent if not `enabled`.

    Args:
      start, total: steps done before, and of the whole run.
      every_seconds: between lines where there is no terminal.
      enabled: one process of the run prints.
    """

    def __init__(self, start: int, total: int, every_seconds: float, enabled: bool):
        self._enabled = enabled
        self._bar = (
            tqdm(
                initial=start,
                total=total,
                bar_format="{percentage:3.0f}% {bar:20} {n}/{total} {desc}",
            )
            if enabled and sys.stderr.isatty()
            else None
        )
        self._step, self._total = start, total
        self._interval = REFRESH_SECONDS if self._bar is not None else every_seconds
        self._next = time.monotonic() + self._interval

    def due(self, step: int) -> bool:
        """Whether to `show` this step; cheap enough to ask at every one."""
        self._step = step
        return self._enabled and time.monotonic() >= self._next

    def show(
        self,
        values: Mapping[str, float],
        examples_per_second: float,
        seconds_left: float,
    ) -> None:
        """Show how far the run is."""
        self._next = time.monotonic() + self._interval
        left = tqdm.format_interval(seconds_left)
        speed = f"{examples_per_second:.0f} examples/s"
        text = f"{metrics.text(values)}, {speed}, {left} left"
        if self._bar is not None:
            self._bar.n = self._step
            self._bar.set_description_str(text)  # also redraws
        else:
            self.say(f"step {self._step}/{self._total} {text}")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        elif self._enabled:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.n = self._step
            self._bar.close()
