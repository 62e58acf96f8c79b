"""Runs of the fake task, in this process or in another."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments import builders, main
from tests.experiments import fake

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests/experiments/fake_config.py"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fake task and model where the runner looks."""
    monkeypatch.setitem(builders.TASKS, "fake", fake.FakeTask)
    monkeypatch.setattr(builders, "build_model", fake.build_model)


@pytest.fixture
def run(fakes: None) -> Callable[..., int]:
    """Run the command line in this process, on all 8 devices; return the exit code."""

    def run(workdir: Path, *flags: str, variant: str = "plain") -> int:
        config = f"--config={CONFIG}:{variant}"
        common = [f"--workdir={workdir}", "--distributed=off"]
        return main.main(["main", config, *common, *flags])

    return run


@pytest.fixture
def launch(subprocess_env: dict[str, str]) -> Callable[..., subprocess.Popen]:
    """Start a module with these arguments as a process of its own."""

    def launch(
        module: str,
        *arguments: str,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.Popen:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            env=subprocess_env | (env or {}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return launch


@pytest.fixture
def start(launch: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.Popen]:
    """Start the command line, with the fake task, as a process of its own."""

    def start(
        workdir: Path,
        *flags: str,
        variant: str = "plain",
        **options: Any,
    ) -> subprocess.Popen:
        arguments = [f"--config={CONFIG}:{variant}", f"--workdir={workdir}", *flags]
        return launch("tests.experiments.fake", *arguments, **options)

    return start


def logged(workdir: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl without their times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: v
            for name, v in json.loads(line).items()
            if not name.startswith("time/")
        }
        for line in lines
    ]
