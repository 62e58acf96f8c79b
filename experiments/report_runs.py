"""Runs as their directories tell them, and the groups that may be averaged."""

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config import config_hash, flatten
from experiments.errors import UserError
from experiments.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's directory, read."""

    path: Path
    seed: int
    task: str
    variant: str
    config: str  # hash of the config without its seed
    direction: str  # "causal" | "bidirectional", of scans over a plane with ", 2-D"
    protocol: str  # "heldout" | "paper", which selects on test
    environment: dict[str, Any]  # of its latest start
    result: dict[str, Any] | None  # None: unfinished
    reason: str  # if unfinished, why

    @property
    def provenance(self) -> str:
        return self.environment["provenance"]

    @property
    def data_checksum(self) -> str:
        return self.environment["data_checksum"]

    def group(self) -> tuple[str, ...]:
        """Return what must be equal for two runs to be averaged."""
        return (self.task, self.config, self.provenance, self.data_checksum)

    def score(self, at: str = "best", split: str = "test") -> float:
        """Return the metric at the step that validation chose, or at the last."""
        assert self.result is not None
        return self.result[at][split][self.result["metric"]]

    def failure(self) -> str:
        """Return "" if it is finished and better than what needs no input.

        That is a uniform guess ("chance") or the commonest class, by 3 standard errors
        of an accuracy, or the frequencies of the classes.
        """
        if self.result is None:
            return self.reason
        points = self.result["reference_points"]
        if not self.result.get("larger_is_better", True):
            blind = min(points["chance"], points["frequencies"])
            return "at chance" if self.score() >= blind else ""
        chance = max(points.get(name, 0.0) for name in ("chance", "majority class"))
        trials = self.result["best"]["test"]["weights"][self.result["metric"]]
        margin = 3 * math.sqrt(chance * (1 - chance) / trials)
        return "at chance" if self.score() <= chance + margin else ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that is not there to be shown."""

    path: Path
    task: str
    variant: str
    seed: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only, at least one; one run a seed."""

    runs: Sequence[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.result is not None]

    @property
    def result(self) -> dict[str, Any] | None:
        """Return that of the first finished run, for what all have in common."""
        return self.finished[0].result if self.finished else None

    @property
    def larger_is_better(self) -> bool:
        return self.result is None or self.result.get("larger_is_better", True)

    @property
    def points(self) -> dict[str, float]:
        """Return the reference points; losses are "... loss"."""
        return self.result["reference_points"] if self.result else {}

    def failed(self) -> int:
        return sum(bool(run.failure()) for run in self.runs)

    def scores(self, at: str = "best", split: str = "test") -> list[float]:
        return [run.score(at, split) for run in self.finished]

    def mean(self, key: str) -> float | None:
        """Return the mean of an entry of the results; None if none has it."""
        results = [run.result for run in self.runs if run.result is not None]
        values = [value for result in results if (value := result.get(key)) is not None]
        return statistics.mean(values) if values else None


def find_runs(directories: Iterable[Path]) -> list[Run]:
    """Return the runs in and below the directories, in the order of their paths.

    Raises:
      UserError: there are none.
    """
    runs = [
        run
        for path in _holding("config.json", directories)
        if (run := read_run(path)) is not None
    ]
    if not runs:
        raise UserError("no runs found: name directories that training wrote")
    return runs


def find_failures(directories: Iterable[Path]) -> list[Failure]:
    """Return the runs that failed before they began."""
    failures = []
    for path in _holding("failure.json", directories):
        if (failure := Workdir(path).read("failure.json")) and read_run(path) is None:
            keys = ("task", "variant", "seed", "reason")
            failures.append(Failure(path, *(failure[key] for key in keys)))
    return failures


def _holding(name: str, directories: Iterable[Path]) -> list[Path]:
    return sorted(
        {
            path.parent.resolve()
            for directory in directories
            for path in directory.rglob(name)
        }
    )


def read_run(path: Path) -> Run | None:
    """Return the run of a directory; None if it has not begun, or is no run's."""
    workdir = Workdir(path)
    description = workdir.read("config.json")
    environment = workdir.read("environment.json")
    if environment is None or description is None or "config" not in description:
        return None
    flat = flatten(description["config"])
    failure = workdir.read("failure.json") or {"reason": "unfinished"}
    return Run(
        path=path,
        seed=flat.pop("seed"),
        task=environment["task"],
        variant=description["variant"],
        config=config_hash(flat)[:8],
        direction=_direction(flat),
        protocol=flat.get("task.protocol", "heldout"),
        environment=environment,
        result=workdir.read("result.json"),
        reason="running" if workdir.is_claimed() else failure["reason"],
    )


def _direction(flat: Mapping[str, Any]) -> str:
    both = flat.get("model.mixer.bidirectional", False)
    plane = ", 2-D" if flat.get("model.mixer.grid", False) else ""
    return ("bidirectional" if both else "causal") + plane


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Return groups that differ in their seeds only, by task and by variant.

    A seed that was run twice counts once, and a finished run goes before others.
    """
    groups: dict[tuple[str, ...], dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: (run.result is None, run.path)):
        groups[run.group()].setdefault(run.seed, run)
    found = [
        Group(sorted(seeds.values(), key=lambda run: run.seed))
        for seeds in groups.values()
    ]
    return sorted(found, key=lambda g: (g.first.task, g.first.variant, g.first.group()))


def by_data(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups on each data, under the task's name, or a longer unique one."""
    groups = list(groups)
    checksums: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        checksums[group.first.task].add(group.first.data_checksum)
    named: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        run = group.first
        unique = len(checksums[run.task]) == 1
        name = run.task if unique else f"{run.task}-{run.data_checksum[:8]}"
        named[name].append(group)
    return named


def points_of(groups: Iterable[Group]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the reference points that any states: of the metric, and of the loss."""
    return split_points(next((g.points for g in groups if g.points), {}))


def split_points(points: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the reference points of the metric, and those whose name says "loss"."""
    losses = {name: value for name, value in points.items() if name.endswith("loss")}
    return {name: points[name] for name in points if name not in losses}, losses


def curve(run: Run, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a metric; a torn last line is left out."""
    file = Workdir(run.path).metrics
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    points = [point for line in lines if name in (point := json.loads(line))]
    return [point["step"] for point in points], [point[name] for point in points]
