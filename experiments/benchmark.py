"""How long a training step takes, bare and inside the runner's loop."""

import contextlib
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
from experiments.program import Program, build
from experiments.progress import Progress
from experiments.train import Training

ROUNDS = 5
ROUND_SECONDS = 1.0
MAX_ROUND_STEPS = 1000


def benchmark(config: ConfigDict) -> dict[str, float | None]:
    """Time a config's training step; return what took how long.

    `bare_ms`: the jitted step on one batch that stays on the device. `loop_ms`: the
    training loop, with batches built, placed and fetched, metrics written and shown,
    without evaluation and checkpoints. Medians of rounds that alternate.
    """
    config = config.copy_and_resolve_references()
    config.train.steps = 10 * ROUNDS * MAX_ROUND_STEPS
    config.evaluate.every_steps = config.checkpoint.every_steps = config.train.steps
    program = build(config)
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

        run_bare(2), run_loop(2)
        steps = min(MAX_ROUND_STEPS, max(5, round(ROUND_SECONDS / run_bare(5))))
        rounds = [(run_bare(steps), run_loop(steps)) for _ in range(ROUNDS)]
    bare, loop = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "bare_ms": bare,
        "loop_ms": loop,
        "overhead_ms": loop - bare,
        "examples_per_second": 1e3 * config.train.batch_size / loop,
        "compile_seconds": compile_seconds,
        "peak_mib": _peak_mib(compiled),
    }


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
        "examples_per_second": "examples/s in the loop",
        "compile_seconds": "s     to compile the step",
        "peak_mib": "MiB   of memory at the peak",
    }
    return "\n".join(
        f"{result[name]:14.3f} {unit}"
        for name, unit in units.items()
        if result[name] is not None
    )
