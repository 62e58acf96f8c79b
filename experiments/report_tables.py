"""Tables of groups of runs, as text in cells, and how they read in Markdown."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from experiments.report_runs import Failure, Group, by_data, points_of

PROTOCOL = (
    "Test metrics over all test examples, at the step with the best validation metric "
    "(the first of equals); ± is the sample standard deviation over seeds. Failed: "
    "unfinished, or at chance (those are in the mean)."
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `note` says what its reader must know."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def markdown(table: Table) -> str:
    """Return the table alone, in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_escape, cells))} |" for cells in lines)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


RUNS = (
    "task",
    "variant",
    "config",
    "direction",
    "test metric",
    "test at best validation",
    "test at last step",
    "seeds",
    "failed",
    "provenance",
    "selection",
    "parameters",
)


def runs_table(groups: Iterable[Group]) -> Table:
    """One row a group: what came out, on what."""
    rows = []
    for group in groups:
        run, result = group.first, group.result
        rows.append(
            (
                run.task,
                run.variant,
                run.config,
                run.direction,
                result["metric"] if result else "",
                score(group),
                score(group, "last"),
                str(len(group.finished)),
                str(group.failed()),
                run.provenance,
                selection(group),
                f"{result['parameter_count']:,}" if result else "",
            )
        )
    return Table("All runs", RUNS, rows)


def selection(group: Group) -> str:
    """Return what chose the step."""
    return group.result["selection"] if group.result else ""


def score(group: Group, at: str = "best", unit: bool = True) -> str:
    """Return mean ± deviation of the test metric, shares in per cent."""
    scores = group.scores(at)
    if not scores:
        return "none finished"
    text = number(group, statistics.mean(scores), unit=False)
    if len(scores) > 1:
        text += f" ± {number(group, statistics.stdev(scores), unit=False)}"
    return text + (" %" if unit and group.larger_is_better else "")


def number(group: Group, value: float, unit: bool = True, digits: int = 2) -> str:
    """Return a value of the metric: a share in per cent, or else as it is."""
    if group.larger_is_better:
        return f"{100 * value:.{digits}f}" + (" %" if unit else "")
    return f"{value:.{digits + 2}f}"


def points_table(groups: Iterable[Group]) -> Table:
    """The reference points of the metric on each data."""
    rows = []
    for name, of_data in by_data(groups).items():
        points, _ = points_of(of_data)
        group = next((g for g in of_data if g.points), of_data[0])
        rows += [
            (name, point, number(group, points[point], digits=1))
            for point in sorted(points, key=points.__getitem__)
        ]
    return Table(
        "Chance and milestones",
        ("task", "answer", "test metric"),
        rows,
        "What answers that need no model of the whole sequence reach.",
    )


SPEED = (
    "task",
    "variant",
    "device",
    "examples/s",
    "waiting for input",
    "seconds",
    "steps",
    "parameters",
)


def speed_table(groups: Iterable[Group]) -> Table:
    """How long training took, and on what."""
    rows = []
    for group in groups:
        run, result = group.first, group.result
        if result is None:
            continue
        rows.append(
            (
                run.task,
                run.variant,
                _device(group),
                _rounded(group.mean("examples_per_second")),
                _percent(group.mean("input_wait_share")),
                _rounded(group.mean("elapsed_seconds")),
                f"{result['steps_done']:,}",
                f"{result['parameter_count']:,}",
            )
        )
    return Table(
        "Speed",
        SPEED,
        rows,
        "Means over seeds. Examples/s without compiling, evaluating and saving; "
        "seconds with them.",
    )


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _device(group: Group) -> str:
    kinds = {
        f"{count} x {kind}" if (count := where.get("device_count", 1)) > 1 else kind
        for run in group.runs
        if (kind := (where := run.environment).get("device"))
    }
    return ", ".join(sorted(kinds)) or "–"


DETAILS = (
    "task",
    "variant",
    "config",
    "seeds",
    "commit",
    "data",
    "provenance",
    "protocol",
    "device",
    "jax",
    "test examples",
)


def details_table(groups: Iterable[Group]) -> Table:
    """What each number hangs on."""
    rows = []
    for group in groups:
        run, result = group.first, group.result
        rows.append(
            (
                run.task,
                run.variant,
                run.config,
                ", ".join(str(run.seed) for run in group.finished),
                ", ".join(sorted({_commit(run.environment) for run in group.runs})),
                run.data_checksum[:12],
                run.provenance,
                run.protocol,
                _device(group),
                ", ".join(sorted({_jax(run.environment) for run in group.runs})),
                f"{result['best']['test']['examples']:,}" if result else "",
            )
        )
    return Table("Details", DETAILS, rows, "A commit with + had uncommitted changes.")


def _commit(environment: dict) -> str:
    commit = environment.get("commit")
    return commit[:10] + "+" * commit.endswith("+") if commit else "–"


def _jax(environment: dict) -> str:
    return environment.get("versions", {}).get("jax", "–")


def failures_table(groups: Iterable[Group], failures: Iterable[Failure]) -> Table:
    """Every run that is not finished, or is no better than chance."""
    rows = [
        (run.task, run.variant, str(run.seed), str(run.path), failure)
        for group in groups
        for run in group.runs
        if (failure := run.failure())
    ]
    rows += [(f.task, f.variant, str(f.seed), str(f.path), f.reason) for f in failures]
    columns = ("task", "variant", "seed", "directory", "why")
    return Table("Failed and unfinished runs", columns, rows)
