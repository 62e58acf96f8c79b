"""How long a training step takes: bare, in the runner's loop, on a plain scan."""

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import distributed, metrics
from experiments.checkpoint import Checkpoints, Counters
from experiments.errors import UserError
from experiments.program import Batch, Program, build
from experiments.progress import Progress
from experiments.tasks.base import Task
from experiments.train import Training

ROUNDS = 5
ROUND_SECONDS = 1.0
MAX_ROUND_STEPS = 1000


def benchmark(config: ConfigDict) -> dict[str, float | None]:
    """Time a config's training step; return what took how long.

    `bare_ms`: the jitted step on one batch that stays on the device. `loop_ms`: the
    training loop, with batches built, placed and fetched, metrics written and shown,
    without evaluation and checkpoints. `beside_ms`: the jitted step with the
    recurrences computed by `benchmark.beside`. Medians of rounds that alternate.

    Raises:
      UserError: the two steps do not compute the same.
    """
    config = config.copy_and_resolve_references()
    config.train.steps = 10 * ROUNDS * MAX_ROUND_STEPS
    config.evaluate.every_steps = config.checkpoint.every_steps = config.train.steps
    program = build(config)
    beside = _beside(config, program.task)
    with jax.set_mesh(program.mesh), _loop(program) as training:
        first = program.task.train_batch(config.seed, 0, config.train.batch_size)
        batch = distributed.to_global(first, distributed.by_batch(program.mesh))
        key, state = program.key(), program.init()
        jax.config.update("jax_enable_compilation_cache", False)
        began = time.perf_counter()
        compiled = program.train_step.lower(state, batch, key).compile()
        compile_seconds = time.perf_counter() - began
        jax.config.update("jax_enable_compilation_cache", True)

        def run_bare(steps: int) -> float:
            nonlocal state
            began = time.perf_counter()
            for _ in range(steps):
                state, packed = program.train_step(state, batch, key)
            jax.block_until_ready((state, packed))
            return (time.perf_counter() - began) / steps

        def run_loop(steps: int) -> float:
            began = time.perf_counter()
            training.run(training.counters.step + steps)
            jax.block_until_ready(training.state)
            return (time.perf_counter() - began) / steps

        plain = beside.init() if beside else None

        def run_beside(steps: int) -> float:
            nonlocal plain
            if beside is None:
                return math.nan
            began = time.perf_counter()
            for _ in range(steps):
                plain, packed = beside.train_step(plain, batch, key)
            jax.block_until_ready((plain, packed))
            return (time.perf_counter() - began) / steps

        if beside:
            _check_same(program, beside, batch)
        run_bare(2), run_loop(2), run_beside(2)
        steps = min(MAX_ROUND_STEPS, max(5, round(ROUND_SECONDS / run_bare(5))))
        rounds = [
            (run_bare(steps), run_loop(steps), run_beside(max(1, steps // 5)))
            for _ in range(ROUNDS)
        ]
    bare, loop, plain_ms = (
        1e3 * statistics.median(times) for times in zip(*rounds, strict=True)
    )
    return {
        "bare_ms": bare,
        "loop_ms": loop,
        "overhead_ms": loop - bare,
        "beside_ms": plain_ms if beside else None,
        "times_faster": plain_ms / bare if beside else None,
        "examples_per_second": 1e3 * config.train.batch_size / loop,
        "compile_seconds": compile_seconds,
        "peak_mib": _peak_mib(compiled),
    }


def _beside(config: ConfigDict, task: Task) -> Program | None:
    """The same program on another implementation of the recurrences, if one is named.

    A config that names one for itself is not measured beside another.
    """
    if not config.benchmark.beside or config.model.implementation:
        return None
    config = config.copy_and_resolve_references()
    config.model.implementation = config.benchmark.beside
    return build(config, task=task)


def _check_same(program: Program, other: Program, batch: Batch) -> None:
    """Refuse to time two programs of which one is wrong."""
    # Of one update: sums over the batch in another order, in the dtype of the model.
    narrow = program.config.model.dtype in ("bfloat16", "float16")
    tolerance = 5e-2 if narrow else 1e-3

    def losses_and_norms(program: Program) -> Any:
        state, packed = program.train_step(program.init(), batch, program.key())
        report = packed.fetch()
        return metrics.means(report["sums"])["loss"], metrics.norm(
            report["gradient_norms"]
        )

    ours, theirs = losses_and_norms(program), losses_and_norms(other)
    for what, mine, wanted in zip(
        ("loss", "norm of the gradient"), ours, theirs, strict=True
    ):
        if not abs(mine - wanted) <= tolerance * abs(wanted):
            raise UserError(
                f"the {what} of the first step is {mine:.6g}, and {wanted:.6g} with "
                f"model.implementation={other.config.model.implementation}: one of "
                "them is wrong, neither is timed"
            )


@contextlib.contextmanager
def _loop(program: Program) -> Iterator[Training]:
    """Yield a run whose files are thrown away."""
    config = program.config
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        writer = metrics.JsonLines(directory / "metrics.jsonl", 0)
        stack.callback(writer.close)
        checkpoints = Checkpoints(directory / "checkpoints")
        stack.callback(checkpoints.close)
        progress = Progress(0, config.train.steps, config.log.every_seconds, True)
        stack.callback(progress.close)
        yield Training(
            program, checkpoints, writer, progress, program.init(), Counters()
        )


def _peak_mib(compiled: Any) -> float | None:
    """Ask the device, or else the compiler what the step alone needs."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"] / 2**20
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    ) / 2**20


def describe(result: dict[str, float | None]) -> str:
    """Return the lines that are printed."""
    units = {
        "bare_ms": "ms    the jitted step alone",
        "loop_ms": "ms    a step of the training loop",
        "overhead_ms": "ms    the difference",
        "beside_ms": "ms    the jitted step on benchmark.beside",
        "times_faster": "x     as long as ours",
        "examples_per_second": "examples/s in the loop",
        "compile_seconds": "s     to compile the step",
        "peak_mib": "MiB   of memory at the peak",
    }
    return "\n".join(
        f"{result[name]:14.3f} {unit}"
        for name, unit in units.items()
        if result[name] is not None
    )
