"""What a run comes to: the test metrics at its last and at its best step."""

from typing import Any

import jax

from experiments import distributed
from experiments.checkpoint import Checkpoints, Counters
from experiments.config import Command, config_hash, flatten
from experiments.errors import UserError
from experiments.evaluate import evaluate
from experiments.program import Program, State, build, evaluated_params
from experiments.tasks.base import Task
from experiments.workdir import Workdir, environment


def evaluate_run(command: Command, workdir: Workdir) -> dict[str, Any]:
    """Return the result of the newest and the best checkpoint; writes nothing.

    Raises:
      UserError: there is no checkpoint.
    """
    program = build(command.config)
    with jax.set_mesh(program.mesh):
        checkpoints = Checkpoints(
            workdir.checkpoints, read_only=True, say=distributed.say
        )
        restored = checkpoints.restore_latest(program.target)
        if restored is None:
            raise UserError(f"no checkpoint in {workdir.checkpoints}: train first")
        return final_result(command, program, checkpoints, *restored)


def final_result(
    command: Command,
    program: Program,
    checkpoints: Checkpoints,
    state: State,
    counters: Counters,
) -> dict[str, Any]:
    """Evaluate test at the last step and at the one that validation chose.

    Takes `state` over: its memory is free when the best one is restored.
    """
    config, task = program.config, program.task
    raw = "ema_params" not in state
    last = counters.validation if _is_at(counters.validation, counters.step) else None
    last = {
        "step": counters.step,
        "validation": last or evaluate_state(program, state, "validation"),
        "test": evaluate_state(program, state, "test"),
    }
    best = last
    if counters.best is not None and not _is_at(counters.best, counters.step):
        step = counters.best["step"]
        jax.tree.map(lambda array: array.delete(), state)
        state, _ = checkpoints.restore(step, program.target)
        test = evaluate_state(program, state, "test")
        best = {"step": step, "validation": counters.best, "test": test}
    seconds = counters.seconds_per_step()
    return program.data() | {
        "config_file": command.config_file,
        "variant": command.variant,
        "config_hash": config_hash(flatten(config)),
        "seed": config.seed,
        "steps": config.train.steps,
        "steps_done": counters.step,
        "metric": task.selection_metric,
        "larger_is_better": task.larger_is_better,
        "selection": _selection(task),
        "evaluated_parameters": "raw" if raw else "moving average",
        "best": best,
        "last": last,
        "reference_points": task.reference_points,
        "parameter_count": program.parameter_count(),
        "elapsed_seconds": counters.elapsed_seconds,
        "examples_per_second": config.train.batch_size / seconds if seconds else None,
        "input_wait_share": counters.input_wait_share(),
        "environment": environment(),
    }


def evaluate_state(program: Program, state: State, split: str) -> dict[str, Any]:
    """Return the metrics of a train state over a whole split."""
    return evaluate(
        program.eval_step,
        program.task,
        split,
        evaluated_params(state),
        state["model_state"],
        program.config.evaluate.batch_size,
        distributed.by_batch(program.mesh),
    )


def _selection(task: Task) -> str:
    if task.selects_on_test:
        return f"selected on test: first best test {task.selection_metric}"
    return f"first best validation {task.selection_metric}"


def _is_at(validation: dict[str, Any] | None, step: int) -> bool:
    return validation is not None and validation["step"] == step
