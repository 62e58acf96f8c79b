"""What a person sees while a run goes on: a bar on a terminal, else a line at times."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

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
                initial=start, total=total, unit="step", dynamic_ncols=True, smoothing=0
            )
            if enabled and sys.stderr.isatty()
            else None
        )
        self._total = total
        self._interval = REFRESH_SECONDS if self._bar is not None else every_seconds
        self._next = time.monotonic() + self._interval

    def due(self) -> bool:
        """Whether it is time for `show`; cheap enough to ask at every step."""
        return self._enabled and time.monotonic() >= self._next

    def show(
        self,
        step: int,
        metrics: Mapping[str, float],
        examples_per_second: float,
        seconds_left: float,
    ) -> None:
        """Show the state of the run."""
        self._next = time.monotonic() + self._interval
        text = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        text += f" {examples_per_second:.0f} examples/s"
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(text)  # also redraws
        else:
            left = tqdm.format_interval(seconds_left)
            self.say(f"step {step}/{self._total} {text}, {left} left")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        elif self._enabled:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
