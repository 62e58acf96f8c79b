"""Several runs of one command: the seeds of a config, the points of a sweep.

    --config.seeds=0,1,2     one run each, in WORKDIR/seed-0, WORKDIR/seed-1 ...
    --config=FILE.py         a file that defines `sweep`: its points, in WORKDIR/NAME
    --index=I, --index=I/N   only run I; only every N-th, from I on
    --dry-run                print the commands instead

One after another, each in a process of its own, in an order that all processes of a
cluster agree on. The command line is checked for all of them before any starts. One
that fails does not stop the others.
"""

import dataclasses
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from configs.sweep import Point
from experiments import config, process
from experiments.errors import UserError
from experiments.workdir import Workdir

PROGRAM = "experiments.main"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its directory below that of the sweep, and its command line."""

    name: str
    arguments: tuple[str, ...]
    command: config.Command

    @property
    def workdir(self) -> Workdir:
        return Workdir(self.command.workdir)

    def is_finished(self) -> bool:
        trains = self.command.mode == "train"
        return trains and self.workdir.read("result.json") is not None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of a command line."""

    runs: list[Run]
    is_single: bool  # one config, one seed
    dry_run: bool


def plan(argv: Sequence[str]) -> Sweep:
    """Return what `argv`, program name first, asks for.

    Raises:
      UserError: for whatever is wrong with it, or with one of the runs.
    """
    own = flags.FlagValues()
    for name in ("config", "workdir", "config.seeds", "index"):
        flags.DEFINE_string(name, None, "", own)
    flags.DEFINE_boolean("dry-run", False, "", own)
    try:
        rest = own(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if own.config is None:
        config.parse(argv)  # says what is wrong

    points = _points(own.config)
    seeds = own["config.seeds"].value
    runs = [
        run
        for point in points or [Point("", own.config)]
        for run in _seeds(point, own.workdir, seeds, rest)
    ]
    _check_names(runs)
    if runs[0].command.mode == "prepare":
        runs = _one_for_each_data(runs)
    is_single = not runs[0].name and own.index is None
    return Sweep(_share(runs, own.index), is_single, bool(own["dry-run"].value))


def _points(config_flag: str) -> list[Point] | None:
    """Return the points of a sweep's file; None for any other file."""
    file, _, variant = config_flag.partition(":")
    module = config.load_module(file)
    if not hasattr(module, "sweep"):
        return None
    with config.inside(file):
        (parameter,) = inspect.signature(module.sweep).parameters.values()
        points = [Point(*point) for point in module.sweep(variant or parameter.default)]
    if not points:
        raise UserError(f"{file}: sweep({variant!r}) returns no runs")
    folder = Path(file).parent
    return [point._replace(config=str(folder / point.config)) for point in points]


def _seeds(
    point: Point, workdir: str | None, seeds: str | None, rest: Sequence[str]
) -> Iterator[Run]:
    """Yield the runs of a point, one a seed."""

    def run(name: str, *extra: str) -> Run:
        where = [] if workdir is None else [f"--workdir={Path(workdir) / name}"]
        chosen = [f"--config.{key}={value}" for key, value in point.overrides.items()]
        arguments = (f"--config={point.config}", *where, *chosen, *extra, *rest)
        try:
            return Run(name, arguments, config.parse([PROGRAM, *arguments]))
        except UserError as error:
            raise UserError(f"{point.name}: {error}" if point.name else error) from None

    one = run(point.name)
    by_default = one.command.config.seeds
    text = by_default if seeds is None else seeds
    if not text:
        yield one if not by_default else run(point.name, "--config.seeds=")
        return
    if any(re.match(r"--?config\.seed(=|$)", argument) for argument in rest):
        raise UserError("give --config.seed or --config.seeds, not both")
    for seed in _parse_seeds(text):
        extra = [f"--config.seed={seed}"] + ["--config.seeds="] * bool(by_default)
        yield run(str(Path(point.name) / f"seed-{seed}"), *extra)


def _parse_seeds(text: str) -> list[int]:
    words = text.split(",")
    if not all(re.fullmatch(r"\s*\d+\s*", word) for word in words):
        raise UserError(
            f"config key seeds must be integers from 0, as in 0,1,2; got {text!r}"
        )
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"config key seeds names a seed twice: {text!r}")
    return seeds


def _check_names(runs: Sequence[Run]) -> None:
    """Refuse two runs in one directory, and a directory of another config."""
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the sweep names a run twice: {twice[0]}")
    for run in runs:
        if run.command.mode in ("train", "evaluate"):
            run.workdir.check_owner(run.command.description())


def _one_for_each_data(runs: Sequence[Run]) -> list[Run]:
    """Keep the first run on each data."""
    first: dict[str, Run] = {}
    for run in runs:
        values = run.command.config.to_dict()
        first.setdefault(json.dumps([values["task"], values["data"]]), run)
    return list(first.values())


def _share(runs: list[Run], index: str | None) -> list[Run]:
    """Return those that --index asks for."""
    if index is None:
        return runs
    match = re.fullmatch(r"(\d+)(?:/(\d+))?", index)
    if match is None:
        raise UserError(f"--index is I, the number of a run, or I/N; got {index!r}")
    first, count = int(match[1]), int(match[2] or len(runs))
    if first >= count:
        raise UserError(f"--index={index} is out of range: from 0 to {count - 1}")
    return runs[first::count]


def run_all(sweep: Sweep) -> int:
    """Run what is not finished; return the exit code.

    Raises:
      UserError: some did not finish, which were named.
    """
    if sweep.dry_run:
        _print_commands(sweep.runs)
        return 0
    outcomes: dict[str, str] = {}
    for number, run in enumerate(sweep.runs, 1):
        if run.is_finished():
            outcomes[run.name] = ""
            continue
        print(f"=== {number} of {len(sweep.runs)}: {run.name}", flush=True)
        code, outcomes[run.name] = _run(run)
        if code in (process.PREEMPTED, process.INTERRUPTED):
            print(f"stopped in {run.name}: the same command goes on", flush=True)
            return code
    _print_outcomes(outcomes)
    failed = [name for name, reason in outcomes.items() if reason]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(outcomes)} runs did not finish: "
            f"{', '.join(failed)}; the same command tries them again"
        )
    return 0


def _run(run: Run) -> process.Ended:
    """Run one, and leave `failure.json` in its directory if it fails."""
    record = run.workdir.path / "failure.json"
    trains = run.command.mode == "train"
    if trains:
        record.unlink(missing_ok=True)
    ended = process.run([sys.executable, "-m", PROGRAM, *run.arguments])
    if ended.reason and trains and not run.workdir.is_claimed():
        run.workdir.write("failure.json", _failure(run.command, ended.reason))
    return ended


def _failure(command: config.Command, reason: str) -> Mapping[str, Any]:
    return {
        "config_file": command.config_file,
        "variant": command.variant,
        "task": command.config.task.name,
        "seed": command.config.seed,
        "reason": reason,
    }


def _print_commands(runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        done = "  (finished)" if run.is_finished() else ""
        print(f"# {number}: {run.name}{done}")
        print(shlex.join(["python", "-m", PROGRAM, *run.arguments]))


def _print_outcomes(outcomes: Mapping[str, str]) -> None:
    width = max(map(len, outcomes), default=0)
    for name, reason in outcomes.items():
        print(f"{name:<{width}}  {'failed: ' + reason if reason else 'finished'}")
    sys.stdout.flush()
