"""The groups of runs as numbers: one line each, for other programs."""

import csv
import io
import statistics
from collections.abc import Iterable
from typing import Any

from experiments.report_runs import Group
from experiments.report_tables import selection


def csv_text(groups: Iterable[Group]) -> str:
    """Return a header and one line a group; shares are from 0 to 1."""
    rows = [_row(group) for group in groups]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(group: Group) -> dict[str, Any]:
    run, result = group.first, group.result
    return {
        "task": run.task,
        "variant": run.variant,
        "config": run.config,
        "direction": run.direction,
        "protocol": run.protocol,
        "selection": selection(group),
        "provenance": run.provenance,
        "data_checksum": run.data_checksum,
        "metric": result["metric"] if result else "",
        "test_at_best_validation": _mean(group.scores()),
        "test_at_best_validation_deviation": _deviation(group.scores()),
        "test_at_last_step": _mean(group.scores("last")),
        "test_at_last_step_deviation": _deviation(group.scores("last")),
        "chance": group.points.get("chance", ""),
        "seeds": " ".join(str(run.seed) for run in group.finished),
        "failed": group.failed(),
        "test_examples": result["best"]["test"]["examples"] if result else "",
        "parameters": result["parameter_count"] if result else "",
        "steps": result["steps_done"] if result else "",
        "examples_per_second": _or_empty(group.mean("examples_per_second")),
        "input_wait_share": _or_empty(group.mean("input_wait_share")),
        "elapsed_seconds": _or_empty(group.mean("elapsed_seconds")),
        "device": run.environment.get("device", ""),
        "device_count": run.environment.get("device_count", ""),
        "commit": run.environment.get("commit") or "",
        "jax": run.environment.get("versions", {}).get("jax", ""),
    }


def _mean(values: list[float]) -> float | str:
    return statistics.mean(values) if values else ""


def _deviation(values: list[float]) -> float | str:
    return statistics.stdev(values) if len(values) > 1 else ""


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value
