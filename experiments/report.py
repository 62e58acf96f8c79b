"""Tables and curves of finished and unfinished runs, read from their directories.

python -m experiments.report DIR [DIR ...] [--out=DIR]

prints the tables and writes into --out, or the first DIR:

report.html       all tables and curves on one page that needs no other file
report.md         the tables
report.csv        the numbers, one line for all seeds of a config
figures/TASK.png  curves

Runs are averaged if only their seeds differ: in their configs, in the provenance and in
the checksum of their data. A run that stayed at chance is averaged in, and counted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.report_csv import csv_text
from experiments.report_figures import draw
from experiments.report_lra import lra_table, stand_in_table
from experiments.report_page import page
from experiments.report_runs import (
    Failure,
    Group,
    by_data,
    find_failures,
    find_runs,
    group_runs,
    split_points,
)
from experiments.report_tables import (
    PROTOCOL,
    Table,
    details_table,
    failures_table,
    markdown,
    points_table,
    runs_table,
    speed_table,
)


def tables(groups: Sequence[Group], failures: Sequence[Failure]) -> list[Table]:
    """Return every table that has something to say."""
    found = [
        lra_table(groups),
        stand_in_table(groups),
        runs_table(groups),
        speed_table(groups),
        points_table(groups),
        failures_table(groups, failures),
        details_table(groups),
    ]
    return [table for table in found if table is not None and table.rows]


def text(title: str, parts: Sequence[Table]) -> str:
    """Return the tables as one Markdown document."""
    lines = [f"# {title}", "", PROTOCOL]
    for part in parts:
        lines += ["", f"## {part.title}", "", markdown(part)]
        lines += ["", part.note] if part.note else []
    return "\n".join(lines) + "\n"


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
    """Print the tables and write the files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        runs = find_runs(arguments.directories)
        failures = find_failures(arguments.directories)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return 1
    groups = group_runs(runs)
    title = f"Report of {', '.join(map(str, arguments.directories))}"
    parts = tables(groups, failures)
    printed = text(title, parts)

    out = arguments.out or arguments.directories[0]
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "report.md", out / "report.csv", out / "report.html"]
    contents = (printed, csv_text(groups), page(title, parts, groups))
    for path, content in zip(written, contents, strict=True):
        path.write_text(content)
    for name, of_data in by_data(groups).items():
        written.append(out / "figures" / f"{name}.png")
        draw(of_data, written[-1])
    print(printed)
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
