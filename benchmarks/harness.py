"""What all benchmarks share: fair timing, the correctness gate, tables, the machine."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).parents[1]


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Return the median seconds of each function, timed in turns after one warm-up.

    In turns, because a machine that slows down then slows all of them down.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def check_close(name: str, got: Any, wanted: Any, tolerance: float) -> None:
    """Refuse to time `name` if a leaf of `got` is off by more than `tolerance`.

    The error is relative to the largest entry of the leaf.
    """
    leaves, wanted_leaves = jax.tree.leaves_with_path(got), jax.tree.leaves(wanted)
    for (path, mine), theirs in zip(leaves, wanted_leaves, strict=True):
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        if not error <= tolerance:
            where = jax.tree_util.keystr(path)
            raise AssertionError(f"{name}{where} is off by {error:.1e}; not timed")


def at_least(value: float, goal: float) -> str:
    """Format a ratio beside its goal."""
    return f"{value:.1f}x (goal {goal:g}x{'' if value >= goal else ', MISSED'})"


def at_most(value: float, goal: float, unit: str) -> str:
    """Format a cost beside its goal."""
    missed = "" if value <= goal else ", MISSED"
    return f"{value:.3g} {unit} (goal {goal:g} {unit}{missed})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def environment() -> str:
    """Return the machine, the versions and the date that every table is read with."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("jax", "flax", "numpy")
    )
    device = jax.devices()[0]
    name = _processor() if device.platform == "cpu" else device.device_kind
    return (
        f"{name}, {len(os.sched_getaffinity(0))} CPU cores; "
        f"Python {platform.python_version()}, {versions}; {datetime.date.today()}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            models = [line for line in file if line.startswith("model name")]
        return models[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
