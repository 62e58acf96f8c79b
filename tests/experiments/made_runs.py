"""Directories as finished and unfinished runs leave them, made up."""

import json
from pathlib import Path
from typing import Any

CHECKSUM = "0" * 64
SELECTED = {
    "": "first best validation accuracy",
    "paper": "selected on test: first best test accuracy",
}
POINTS = {"chance": 0.1, "majority class": 0.2, "all": 1.0, "memoryless loss": 0.3}


def make_run(
    path: Path,
    accuracy: float | None,
    *,
    seed: int = 0,
    task: str = "fake",
    variant: str = "plain",
    provenance: str = "synthetic",
    learning_rate: float = 0.1,
    validation: float = 0.6,
    last: float | None = None,
    bidirectional: bool = False,
    grid: bool = False,
    protocol: str = "",
    points: dict[str, float] = POINTS,
    torn: bool = False,
    reason: str = "",
    changed: dict[str, Any] | None = None,
) -> None:
    """Write a run that reached some test accuracy, or None: that has no result."""
    path.mkdir(parents=True)
    config = {
        "task": {"name": task} | ({"protocol": protocol} if protocol else {}),
        "model": {
            "mixer": {"name": variant, "bidirectional": bidirectional, "grid": grid}
        },
        "optimizer": {"learning_rate": learning_rate},
        "seed": seed,
    }
    description = {"config_file": "f.py", "variant": variant, "config": config}
    environment = {
        "task": task,
        "provenance": provenance,
        "data_checksum": CHECKSUM,
        "commit": "0123456789abcdef+",
        "device": "cpu",
        "device_count": 2,
        "versions": {"jax": "0.10.2"},
    }
    write(path / "config.json", description)
    write(path / "environment.json", environment)
    lines = [
        {"step": 10, "train/loss": 1.0},
        {"step": 10, "validation/accuracy": 0.4},
        {"step": 20, "train/loss": 0.5},
        {"step": 20, "validation/accuracy": 0.6},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + ('{"step": 30, "tr' if torn else ""))
    if reason:
        write(path / "failure.json", {"reason": reason})
    if accuracy is None:
        return
    test = {"accuracy": accuracy, "examples": 900, "weights": {"accuracy": 900}}
    test |= {"loss": 0.5}
    best = {"step": 20, "validation": {"accuracy": validation}, "test": test}
    at_last = accuracy if last is None else last
    result = {
        **environment,
        "variant": variant,
        "seed": seed,
        "metric": "accuracy",
        "selection": SELECTED[protocol],
        "best": best,
        "last": best | {"test": test | {"accuracy": at_last}},
        "reference_points": points,
        "parameter_count": 1234,
        "elapsed_seconds": 1.5,
        "examples_per_second": 1000.0,
        "input_wait_share": 0.02,
        "steps": 20,
        "steps_done": 20,
    }
    write(path / "result.json", result | (changed or {}))


def write(path: Path, value: Any) -> None:
    """Write JSON, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
