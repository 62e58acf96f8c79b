"""Training: config -> program -> steps -> metrics -> checkpoints -> result.

A batch is a pure function of (seed, step), an update one of (state, batch, key): what a
run computes does not depend on where it was interrupted.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import distributed, metrics
from experiments.checkpoint import Checkpoints, Counters, one_failure_told
from experiments.config import Command
from experiments.errors import UserError
from experiments.prefetch import batches
from experiments.program import Batch, Program, State, build
from experiments.progress import Progress
from experiments.result import evaluate_state, final_result
from experiments.workdir import Workdir, environment


def train(command: Command, workdir: Workdir) -> dict[str, Any] | None:
    """Train to the end and return the result; None if pre-empted, with all saved.

    Raises:
      UserError: the run cannot go on.
    """
    config = command.config
    program = build(config)
    main = distributed.is_main()
    with contextlib.ExitStack() as stack:
        if main:
            stack.enter_context(workdir.claimed())
            describe_run(command, workdir, program)
        stack.enter_context(jax.set_mesh(program.mesh))
        stack.enter_context(one_failure_told())
        checkpoints = Checkpoints(
            workdir.checkpoints,
            keep_last=config.checkpoint.keep_last,
            say=distributed.say,
        )
        stack.callback(checkpoints.close)
        state, counters = start(program, checkpoints)
        writer = open_writer(config, workdir, counters.step)
        stack.callback(writer.close)
        progress = Progress(
            counters.step, config.train.steps, config.log.every_seconds, main
        )
        stack.callback(progress.close)

        training = Training(program, checkpoints, writer, progress, state, counters)
        finished = training.run(config.train.steps)
        checkpoints.wait()
        if not finished:
            progress.say(f"pre-empted: saved at step {counters.step}")
            return None
        result = final_result(command, program, checkpoints, training.state, counters)
        if main:
            workdir.write("result.json", result)
        return result


def describe_run(command: Command, workdir: Workdir, program: Program) -> None:
    """Write what the run is: its config, its environment, its parameters."""
    workdir.write("config.json", command.description())
    workdir.write("environment.json", environment() | program.data())
    rows = jax.tree.map(
        lambda x, label: (str(x.shape), str(x.dtype), label),
        program.target["params"],
        program.labels,
    )
    leaves = jax.tree_util.tree_leaves_with_path(
        rows, is_leaf=lambda node: isinstance(node, tuple)
    )
    lines = [
        "\t".join([jax.tree_util.keystr(path, simple=True, separator="/"), *row])
        for path, row in leaves
    ]
    lines.append(f"total\t{program.parameter_count()}")
    workdir.write("parameters.txt", "\n".join(lines) + "\n")


def start(program: Program, checkpoints: Checkpoints) -> tuple[State, Counters]:
    """Return the newest checkpoint, or else the initial state."""
    restored = checkpoints.restore_latest(program.target)
    if restored is None:
        return program.init(), Counters()
    state, counters = restored
    checkpoints.say(f"going on from the checkpoint of step {counters.step}")
    if counters.best and counters.best["step"] not in checkpoints.steps():
        # Only after falling back from a damaged one that was better and replaced it.
        checkpoints.say(f"the best checkpoint, {counters.best['step']}, is gone")
        counters.best = None
    return state, counters


def open_writer(config: ConfigDict, workdir: Workdir, step: int) -> metrics.Writer:
    """Return the writer of all sinks; of none in the processes that do not write."""
    writers: list[metrics.Writer] = []
    if distributed.is_main():
        writers.append(metrics.JsonLines(workdir.metrics, step))
        if config.log.tensorboard:
            writers.append(metrics.TensorBoard(workdir.path, step))
        if config.log.wandb:
            writers.append(metrics.Wandb(workdir.path, config))
    return metrics.Several(writers)


class Training:
    """A run in progress: the loop, and what one step leaves for the next."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        writer: metrics.Writer,
        progress: Progress,
        state: State,
        counters: Counters,
    ):
        self.program = program
        self.state = state
        self.counters = counters
        self._checkpoints = checkpoints
        self._writer = writer
        self._progress = progress
        self._pending: metrics.Packed | None = None
        self._last_fetch: float | None = None  # None: do not time the next step
        self._waited = 0.0  # seconds for batches, since then
        self._began = time.monotonic() - counters.elapsed_seconds

    def run(self, until: int) -> bool:
        """Train until so many steps are done; False if pre-empted before.

        Raises:
          UserError: something is not finite, or a checkpoint cannot be written.
        """
        program, config = self.program, self.program.config
        key = program.key()
        start = int(self.state["step"])
        stream = batches(
            lambda step: program.task.train_batch(
                config.seed, step, config.train.batch_size
            ),
            start,
            until,
            distributed.by_batch(program.mesh),
        )
        for calls, batch in enumerate(self._wait_for(stream), 1):
            step = start + calls
            self.state, packed = program.train_step(self.state, batch, key)
            self._fetch()  # of the step before, while the device works on this one
            self._pending = packed

            last = step == config.train.steps
            evaluating = last or step % config.evaluate.every_steps == 0
            preempted = distributed.preempted(calls)
            if evaluating or preempted or step % config.checkpoint.every_steps == 0:
                self._fetch()
                if evaluating:
                    self._validate(step)
                self._save()
            if preempted:
                return False
        self._fetch()
        return True

    def _wait_for(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and add up how long each took to come."""
        while True:
            began = time.perf_counter()
            batch = next(stream, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _fetch(self) -> None:
        """Take in the report of the step that was dispatched last."""
        if self._pending is None:
            return
        counters, log = self.counters, self.program.config.log
        report, self._pending = self._pending.fetch(), None
        counters.step += 1
        _check_finite(counters.step, report)
        counters.sums = metrics.add(counters.sums, report["sums"])

        now = time.perf_counter()
        if self._last_fetch is not None:
            counters.timed_steps += 1
            counters.training_seconds += now - self._last_fetch
            counters.waiting_seconds += self._waited
        self._last_fetch, self._waited = now, 0.0

        if self._progress.due(counters.step) and counters.timed_steps:
            self._show()
        if counters.step % log.every_steps == 0:
            self._log(report)

    def _log(self, report: Mapping[str, Any]) -> None:
        means = metrics.means(self.counters.sums)
        self._writer.write(
            self.counters.step,
            {f"train/{name}": mean for name, mean in means.items()}
            | {
                "train/learning_rate": report["learning_rate"],
                "train/gradient_norm": metrics.norm(report["gradient_norms"]),
                "train/parameter_norm": metrics.norm(report["parameter_norms"]),
                "time/elapsed_seconds": self._elapsed(),
                "time/examples_per_second": self._speed(),
                "time/input_wait_share": self.counters.input_wait_share(),
            },
        )
        self.counters.sums = {}

    def _validate(self, step: int) -> None:
        result = {"step": step} | evaluate_state(self.program, self.state, "validation")
        values = {name: result[name] for name in result["weights"]}
        self._writer.write(
            step,
            {f"validation/{name}": value for name, value in values.items()}
            | {"time/elapsed_seconds": self._elapsed()},
        )
        counters, task = self.counters, self.program.task
        counters.validation = result
        best = counters.best is None or task.is_better(result, counters.best)
        if best:
            counters.best = result
        mark = " (best)" if best else ""
        self._progress.say(f"step {step} validation {metrics.text(values)}{mark}")

    def _save(self) -> None:
        self.counters.elapsed_seconds = self._elapsed()
        self._checkpoints.save(self.state, self.counters)
        self._last_fetch = None

    def _show(self) -> None:
        counters, steps = self.counters, self.program.config.train.steps
        left = (steps - counters.step) * counters.seconds_per_step()
        means = metrics.means(counters.sums)
        self._progress.show(means, self._speed(), left)

    def _speed(self) -> float:
        seconds = self.counters.seconds_per_step()
        return self.program.config.train.batch_size / seconds if seconds else 0.0

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _check_finite(step: int, report: Mapping[str, Any]) -> None:
    """Raise a UserError that names what is infinite or not a number, if anything is."""
    if metrics.all_finite(report):
        return
    totals = {name: total for name, (total, _) in report["sums"].items()}
    names = [
        prefix + path
        for prefix, tree in (
            ("", totals),
            ("gradient of ", report["gradient_norms"]),
            ("parameter ", report["parameter_norms"]),
        )
        for path in metrics.non_finite(tree)
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"not finite at step {step}: {', '.join(names[:3])}{more}. The last checkpoint "
        "is kept; try a lower optimizer.learning_rate or optimizer.clip_norm=1"
    )
