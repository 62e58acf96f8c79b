"""Train, evaluate, prepare or benchmark what a config file describes.

python -m experiments.main --config=configs/FILE.py:VARIANT --workdir=DIR
    [--config.SECTION.KEY=VALUE ...]     override a value of configs/base.py
    [--config.seeds=0,1,2]               one run a seed, in DIR/seed-0 ...
    [--mode=train|evaluate|prepare|benchmark]
    [--distributed=auto|on|off]          on: ask the cluster for the other processes
    [--coordinator_address=HOST:PORT --process_count=N --process_id=I]
    [--index=I | --index=I/N]            of several runs only I, or every N-th from I
    [--dry-run]                          print the commands, numbered

A file that defines `sweep`, as configs/lra/suite.py does, stands for several runs, each
in DIR/NAME and a process of its own.

The same command again goes on where the run was interrupted. Exit code 0: finished;
75: pre-empted after saving, run again; 1: cannot go on, for the reason in one line
(some of several runs cannot, the others are finished).
"""

import errno
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import config, process, report, sweep
from experiments.errors import UserError
from experiments.process import INTERRUPTED, PREEMPTED
from experiments.workdir import Workdir

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str]) -> int:
    """Run a command line; return the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        planned = sweep.plan(argv)
        if planned.is_single and not planned.dry_run:
            return run(planned.runs[0].command)
        return sweep.run_all(planned)
    except (UserError, NotImplementedError) as error:  # the latter: no such kernel here
        return _fail(str(error))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _fail(f"{error}: make room, then give the same command again")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint")
        return INTERRUPTED


def _fail(reason: str) -> int:
    reason = " ".join(reason.split())
    print("error:", reason, file=sys.stderr)
    process.leave_reason(reason)
    return 1


def run(command: config.Command) -> int:
    """Do what a checked command says; return the exit code."""
    workdir = Workdir(command.workdir)
    if command.mode in ("train", "evaluate"):
        workdir.check_owner(command.description())
    if command.mode == "train" and (result := workdir.read("result.json")):
        print(report.describe(result))
        return 0

    # jax, orbax and grain take seconds to import: only now.
    import jax

    from experiments import benchmark, builders, distributed, train
    from experiments.result import evaluate_run

    # Only the training loop stops at a step of its choice; the rest is simply ended.
    loops = command.mode in ("train", "benchmark")
    jax.config.update("jax_enable_preemption_service", loops)
    distributed.initialize(
        command.distributed,
        command.coordinator_address,
        command.process_count,
        command.process_id,
    )
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        cache_dir = Path(command.config.data.cache_dir).expanduser() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))

    if command.mode == "prepare":
        distributed.main_first(lambda: builders.prepare_task(command.config))
        return 0
    if command.mode == "benchmark":
        print(benchmark.describe(benchmark.benchmark(command.config)))
        return 0
    if command.mode == "evaluate":
        result = evaluate_run(command, workdir)
    else:
        result = train.train(command, workdir)
    if result is None:
        return PREEMPTED
    if distributed.is_main():
        print(report.describe(result))
    return 0


def end(*_: object) -> None:
    """Take a SIGTERM that comes before training does, which saves first."""
    sys.exit(PREEMPTED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    process.end_with_starter()
    sys.exit(main(sys.argv))
