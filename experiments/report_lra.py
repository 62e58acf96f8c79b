"""The table of Long Range Arena, and that of the data that stands in for it.

A number on data drawn anew carries a mark, and so does an average that has one in it; a
stand-in is in a table of its own, under its own name, and in no average.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from configs.lra.published import ROWS, TASKS, Row
from experiments.report_runs import Group
from experiments.report_tables import Table, score, selection

NAMES = {
    "listops": "ListOps",
    "text": "Text",
    "retrieval": "Retrieval",
    "image": "Image",
    "pathfinder": "Pathfinder",
    "pathx": "Path-X",
}
MARKS = {
    "drawn anew": "†",
    "selected on test": "‡",
    "colour": "§",
    "augmented": "§§",
    "validation": "¶",
}
NOTE = (
    "Test accuracy in %. † the examples are drawn anew: the same distribution, other "
    "samples than the archive's. ‡ the test set chose the epoch. § Image in colour, §§ "
    "with augmentation as well. ¶ validation accuracy. An average is the mean of six "
    "tasks, runs at chance included; none if a task is missing. Rows after ours are "
    "published numbers."
)
STAND_INS = "Stand-ins, which are not Long Range Arena"
COLUMNS = ("model", "direction", *NAMES.values(), "average", "seeds", "remarks")


def is_lra(group: Group) -> bool:
    """Whether its number may stand beside published ones."""
    return group.first.task in TASKS and group.first.provenance != "stand-in"


def is_stand_in(group: Group) -> bool:
    """Whether its data only stands in for a task's."""
    return group.first.provenance == "stand-in"


def lra_table(groups: Iterable[Group]) -> Table | None:
    """Our rows, then the published ones; None if there are none of ours."""
    ours = [
        _our_row(variant, chosen, others)
        for variant, chosen, others in _by_variant(filter(is_lra, groups))
    ]
    if not ours:
        return None
    return Table("Long Range Arena", COLUMNS, ours + [_row(row) for row in ROWS], NOTE)


def stand_in_table(groups: Iterable[Group]) -> Table | None:
    """One row a model, one column a stand-in; None if there are none."""
    models = _by_variant(filter(is_stand_in, groups))
    if not models:
        return None
    tasks = list(dict.fromkeys(task for _, chosen, _ in models for task in chosen))
    rows = [
        (
            variant,
            _direction(chosen, {}),
            *(score(chosen[t], unit=False) if t in chosen else "–" for t in tasks),
            _seeds(chosen),
            _remarks(chosen, others, {}),
        )
        for variant, chosen, others in models
    ]
    chance = [_chance([chosen for _, chosen, _ in models], task) for task in tasks]
    rows.append(("chance", "", *chance, "", ""))
    columns = ("model", "direction", *tasks, "seeds", "remarks")
    return Table(STAND_INS, columns, rows, "Test accuracy in %, and no average.")


Chosen = dict[str, Group]  # of each task


def _by_variant(groups: Iterable[Group]) -> list[tuple[str, Chosen, dict[str, int]]]:
    """Return for each variant a group of each task, and among how many it was chosen.

    The archive's data goes before any other, then validation chooses.
    """
    found: dict[str, dict[str, list[Group]]] = {}
    for group in groups:
        tasks = found.setdefault(group.first.variant, {})
        tasks.setdefault(group.first.task, []).append(group)
    return [
        (
            variant,
            {task: max(of_task, key=_preference) for task, of_task in tasks.items()},
            {task: len(of_task) for task, of_task in tasks.items()},
        )
        for variant, tasks in sorted(found.items())
    ]


def _preference(group: Group) -> tuple[bool, float]:
    official = group.first.provenance == "official archive"
    scores = group.scores("best", "validation")
    return (official, statistics.mean(scores) if scores else -1.0)


def _our_row(variant: str, chosen: Chosen, others: Mapping[str, int]) -> list[str]:
    cells = [_cell(chosen[task]) if task in chosen else "–" for task in TASKS]
    return [
        f"{variant} (ours)",
        _direction(chosen, NAMES),
        *cells,
        _average(chosen),
        _seeds(chosen),
        _remarks(chosen, others, NAMES),
    ]


def _cell(group: Group) -> str:
    if not group.finished:
        return "failed"
    return score(group, unit=False) + _marks(_labels(group))


def _labels(group: Group) -> set[str]:
    labels = set()
    if group.first.provenance != "official archive":
        labels.add("drawn anew")
    if selection(group).startswith("selected on test"):
        labels.add("selected on test")
    return labels


def _marks(labels: Iterable[str]) -> str:
    labels = set(labels)
    marks = [mark for label, mark in MARKS.items() if label in labels]
    return " " + " ".join(marks) if marks else ""


def _average(chosen: Chosen) -> str:
    finished = {task: group for task, group in chosen.items() if group.finished}
    if len(finished) < len(TASKS):
        return f"– ({len(finished)} of {len(TASKS)})"
    means = [statistics.mean(group.scores()) for group in finished.values()]
    labels = set().union(*(_labels(group) for group in finished.values()))
    return f"{100 * statistics.mean(means):.2f}{_marks(labels)}"


def _direction(chosen: Chosen, names: Mapping[str, str]) -> str:
    """Return the commonest direction, and which tasks have another."""
    tasks: dict[str, list[str]] = {}
    for task, group in chosen.items():
        tasks.setdefault(group.first.direction, []).append(names.get(task, task))
    common, *others = sorted(tasks, key=lambda direction: -len(tasks[direction]))
    return "; ".join([common] + [f"{d}: {', '.join(tasks[d])}" for d in others])


def _seeds(chosen: Chosen) -> str:
    counts = sorted({len(group.finished) for group in chosen.values()})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])


def _remarks(
    chosen: Chosen, others: Mapping[str, int], names: Mapping[str, str]
) -> str:
    """Return what a reader must know: failures, and choices among configs."""
    remarks = [
        f"{names.get(task, task)}: {group.failed()} of {len(group.runs)} failed"
        for task, group in chosen.items()
        if group.failed()
    ]
    remarks += [
        f"{names.get(task, task)}: of {count} configs the best on validation"
        for task, count in others.items()
        if count > 1
    ]
    return "; ".join(remarks)


def _chance(models: Sequence[Chosen], task: str) -> str:
    points = [chosen[task].points for chosen in models if task in chosen]
    chances = [p["chance"] for p in points if "chance" in p]
    return f"{100 * chances[0]:.1f}" if chances else "–"


def _row(row: Row) -> list[str]:
    cells = []
    for task, accuracy in zip(TASKS, row.accuracies, strict=True):
        text = "–" if accuracy is None else str(accuracy)
        if isinstance(accuracy, float | int):
            text = f"{accuracy:.2f}"
        cells.append(text + _marks({row.labels[task]} if task in row.labels else ()))
    average = "–" if row.average is None else f"{row.average:.2f}"
    average += _marks(set(row.labels.values())) if row.average is not None else ""
    return [row.model, row.direction, *cells, average, "", row.source]
