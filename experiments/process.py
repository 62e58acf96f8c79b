"""A run in a process of its own: its signals, its exit code, its reason.

Memory, compiled programs and crashes stay inside. A SIGTERM or Control-C is handed on
once, and waited for; a run whose starter is killed is told to save and end.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PREEMPTED = 75
INTERRUPTED = 130

REASON_FILE = "EXPERIMENTS_REASON_FILE"
"""Names, in the environment, the file that a run leaves its reason in."""

_HANDED_ON = {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Ended(NamedTuple):
    """How a process ended: 0, 75, 130, or another code and the reason."""

    code: int
    reason: str = ""


def leave_reason(reason: str) -> None:
    """Tell whoever started this process why it ends."""
    if path := os.environ.get(REASON_FILE):
        Path(path).write_text(reason)


def end_with_starter() -> None:
    """Have the system send a SIGTERM when whoever started this process is killed."""
    if REASON_FILE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run(arguments: Sequence[str]) -> Ended:
    """Run a command to its end, its output here."""
    with tempfile.TemporaryDirectory() as folder:
        reason = Path(folder) / "reason"
        code, told = _run(arguments, os.environ | {REASON_FILE: str(reason)})
        if told is not None:  # perhaps too early or too late for the run to notice
            return Ended(_HANDED_ON[told])
        if code == 0 or code in _HANDED_ON.values():
            return Ended(code)
        return Ended(code, reason.read_text() if reason.exists() else _describe(code))


def _run(
    arguments: Sequence[str], environment: dict[str, str]
) -> tuple[int, signal.Signals | None]:
    """Return the exit code, and the signal that was handed on."""
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        process_group=0,  # a terminal's Control-C comes to it through here alone
    )
    told: signal.Signals | None = None

    def hand_on(number: int, _: Any) -> None:
        nonlocal told
        told = signal.Signals(number)
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in _HANDED_ON}
    try:
        return process.wait(), told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}, see its output"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")
