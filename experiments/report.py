"""Tables and curves of finished and unfinished runs, read from their directories.

python -m experiments.report DIR [DIR ...] [--out=DIR]

prints a Markdown table and writes `figures/TASK.png` into --out, or the first DIR. Runs
are averaged if only their seeds differ: in their configs, in the provenance and in the
checksum of their data. A run that stayed at chance is averaged in, and counted.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.config import config_hash, flatten
from experiments.errors import UserError
from experiments.workdir import Workdir

COLUMNS = (
    "task",
    "variant",
    "config",
    "test metric",
    "test at best validation",
    "seeds",
    "failed",
    "provenance",
    "selection",
    "parameters",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's directory, read."""

    path: Path
    seed: int
    task: str
    variant: str
    config: str  # hash of the config without its seed
    provenance: str
    data_checksum: str
    result: dict[str, Any] | None  # None: unfinished

    def group(self) -> tuple[str, ...]:
        """Return what must be equal for two runs to be averaged."""
        return (self.task, self.config, self.provenance, self.data_checksum)

    def score(self) -> float:
        """Return the test metric at the step that validation chose."""
        assert self.result is not None
        return self.result["best"]["test"][self.result["metric"]]

    def failed(self) -> bool:
        """Whether it is unfinished, or no better than what needs no input.

        That is a uniform guess ("chance") or the commonest class, by 3 standard errors
        of an accuracy, or the frequencies of the classes.
        """
        if self.result is None:
            return True
        points = self.result["reference_points"]
        if not self.result.get("larger_is_better", True):
            return self.score() >= min(points["chance"], points["frequencies"])
        chance = max(points.get(name, 0.0) for name in ("chance", "majority class"))
        trials = self.result["best"]["test"]["weights"][self.result["metric"]]
        return self.score() <= chance + 3 * math.sqrt(chance * (1 - chance) / trials)


def find_runs(directories: Iterable[Path]) -> list[Run]:
    """Return the runs in and below the directories, in the order of their paths.

    Raises:
      UserError: there are none.
    """
    paths = {
        path.parent.resolve()
        for directory in directories
        for path in directory.rglob("config.json")
    }
    runs = [run for path in sorted(paths) if (run := read_run(path)) is not None]
    if not runs:
        raise UserError("no runs found: name directories that training wrote")
    return runs


def read_run(path: Path) -> Run | None:
    """Return the run of a directory; None if it has not begun, or is no run's."""
    workdir = Workdir(path)
    description = workdir.read("config.json")
    environment = workdir.read("environment.json")
    if environment is None or description is None or "config" not in description:
        return None
    config = flatten(description["config"])
    return Run(
        path=path,
        seed=config.pop("seed"),
        task=environment["task"],
        variant=description["variant"],
        config=config_hash(config)[:8],
        provenance=environment["provenance"],
        data_checksum=environment["data_checksum"],
        result=workdir.read("result.json"),
    )


def group_runs(runs: Iterable[Run]) -> list[list[Run]]:
    """Return groups that differ in their seeds only, one run a seed.

    A seed that was run twice counts once, and a finished run goes before others.
    """
    groups: dict[tuple[str, ...], dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: (run.result is None, run.path)):
        groups[run.group()].setdefault(run.seed, run)
    return [
        sorted(groups[key].values(), key=lambda run: run.seed) for key in sorted(groups)
    ]


def by_data(groups: Sequence[Sequence[Run]]) -> dict[str, list[Sequence[Run]]]:
    """Return the groups on each data, under the task's name, or a longer unique one."""
    checksums: dict[str, set[str]] = defaultdict(set)
    for runs in groups:
        checksums[runs[0].task].add(runs[0].data_checksum)
    named: dict[str, list[Sequence[Run]]] = defaultdict(list)
    for runs in groups:
        run = runs[0]
        unique = len(checksums[run.task]) == 1
        named[run.task if unique else f"{run.task}-{run.data_checksum[:8]}"].append(
            runs
        )
    return named


def table(groups: Sequence[Sequence[Run]]) -> str:
    """Return the Markdown table, one row a group, with reference points below it."""
    lines = [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    for runs in groups:
        run = runs[0]
        finished = [run for run in runs if run.result is not None]
        scores = [run.score() for run in finished]
        result = finished[0].result if finished else None
        scale, unit, digits = _unit(result)
        score = f"{scale * statistics.mean(scores):.{digits}f}" if scores else "none"
        if len(scores) > 1:
            score += f" ± {scale * statistics.stdev(scores):.{digits}f}"
        score += unit if scores else " finished"
        lines.append(
            _row(
                [
                    run.task,
                    run.variant,
                    run.config,
                    result["metric"] if result else "",
                    score,
                    str(len(finished)),
                    str(sum(run.failed() for run in runs)),
                    run.provenance,
                    result["selection"] if result else "",
                    f"{result['parameter_count']:,}" if result else "",
                ]
            )
        )
    lines.append("")
    for name, of_data in by_data(groups).items():
        points, _ = split_points(_reference_points(of_data))
        ranked = sorted(points, key=points.__getitem__)
        results = [run.result for runs in of_data for run in runs if run.result]
        scale, unit, digits = _unit(results[0] if results else None)
        text = ", ".join(
            f"{point} {scale * points[point]:.{digits - 1}f}{unit}" for point in ranked
        )
        lines.append(f"Reference points, {name}: {text}")
    lines.append(
        "± is the sample standard deviation. Failed: unfinished, or at chance (those "
        "are in the mean)."
    )
    return "\n".join(lines)


def _unit(result: dict[str, Any] | None) -> tuple[int, str, int]:
    """Return how to print a score: times what, followed by what, to how many digits."""
    if result is None or result.get("larger_is_better", True):
        return 100, " %", 2  # a share
    return 1, "", 4


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _reference_points(groups: Sequence[Sequence[Run]]) -> dict[str, float]:
    """Return the reference points that any finished run states."""
    results = [run.result for runs in groups for run in runs if run.result is not None]
    return results[0]["reference_points"] if results else {}


def split_points(points: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the reference points of the metric, and those whose name says "loss"."""
    losses = {name: value for name, value in points.items() if name.endswith("loss")}
    return {name: points[name] for name in points if name not in losses}, losses


def draw(groups: Sequence[Sequence[Run]], path: Path) -> None:
    """Draw the training loss and the validation metric of groups on the same data."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    metric = "accuracy"
    for index, group in enumerate(groups):
        for run in group:
            label = f"{run.variant} ({run.config})" if run is group[0] else None
            style = {"color": f"C{index}", "label": label, "linewidth": 1.2}
            if run.result is not None:
                metric = run.result["metric"]
            left.plot(*_curve(run.path, "train/loss"), **style)
            right.plot(*_curve(run.path, f"validation/{metric}"), **style, marker=".")
    title = f"{groups[0][0].task} ({groups[0][0].provenance})"
    of_metric, losses = split_points(_reference_points(groups))
    _draw_points(left, losses)
    _draw_points(right, of_metric)
    left.set(xlabel="step", ylabel="training loss, nats", title=title)
    right.set(xlabel="step", ylabel=f"validation {metric}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(y=0.08)
    left.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_points(axes: Any, points: dict[str, float]) -> None:
    for index, name in enumerate(sorted(points, key=points.__getitem__)):
        axes.axhline(points[name], color="grey", linestyle=":", linewidth=1)
        axes.annotate(
            name,
            (0.01 + 0.24 * (index % 4), points[name]),  # side by side if close
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="grey",
            va="bottom",
        )


def _curve(path: Path, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a metric; a torn last line is left out."""
    file = Workdir(path).metrics
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    points = [point for line in lines if name in (point := json.loads(line))]
    return [point["step"] for point in points], [point[name] for point in points]


def describe(result: dict[str, Any]) -> str:
    """Return a small table: a run's result among the reference points of its task."""
    best, last = result["best"], result["last"]
    of_metric, losses = split_points(result["reference_points"])
    lines = [f"{result['task']} {result['variant']}, seed {result['seed']}"]
    for metric, points in ((result["metric"], of_metric), ("loss", losses)):
        rows = points | {
            f"test at best validation (step {best['step']})": best["test"][metric],
            f"test at last step ({last['step']})": last["test"][metric],
        }
        lines.append(f"  {metric}")
        lines += [
            f"    {rows[name]:.4f}  {name}"
            for name in sorted(rows, key=rows.__getitem__, reverse=True)
        ]
    lines.append(
        f"  {best['test']['examples']} test examples, {result['provenance']} data; "
        f"{result['parameter_count']:,} parameters; "
        f"{result['elapsed_seconds']:.0f} s for {result['steps_done']} of "
        f"{result['steps']} steps"
    )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Print the table and write the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        runs = find_runs(arguments.directories)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return 1
    groups = group_runs(runs)
    print(table(groups))
    out = arguments.out or arguments.directories[0]
    for name, of_data in by_data(groups).items():
        path = out / "figures" / f"{name}.png"
        draw(of_data, path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
