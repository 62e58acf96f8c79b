"""Run benchmarks, print their tables and keep them in benchmarks/results.

    python -m benchmarks.run [NAME ...] [--peer CHECKOUT] [--recurrent-gemma CHECKOUT]
        [--out DIR]

Every benchmark checks that the programs agree before it times them, and times them in
turns in one process, so that its ratios hold on a machine that is busy elsewhere too.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks import (
    decoding,
    griffin,
    import_cost,
    layers,
    linear_attention,
    listops,
    ops,
    pathfinder,
    recurrent_gemma,
    runner,
    state_spaces,
    train_step,
)
from benchmarks.harness import ROOT, environment

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Run the benchmarks that the command line names, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--peer", type=Path, help="a checkout of minimal-LRU")
    parser.add_argument(
        "--recurrent-gemma", type=Path, help="a checkout of recurrentgemma"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    benchmarks: dict[str, Callable[[], str]] = {
        "ops": functools.partial(ops.run, options.out),
        "layers": layers.run,
        "train_step": functools.partial(train_step.run, options.peer),
        "griffin": griffin.run,
        "decoding": decoding.run,
        "linear_attention": functools.partial(linear_attention.run, options.out),
        "recurrent_gemma": functools.partial(
            recurrent_gemma.run, options.recurrent_gemma
        ),
        "state_spaces": state_spaces.run,
        "runner": runner.run,
        "listops": listops.run,
        "pathfinder": pathfinder.run,
        "import_cost": import_cost.run,
    }
    if unknown := set(options.names) - set(benchmarks):
        known = ", ".join(benchmarks)
        parser.error(f"unknown: {', '.join(sorted(unknown))} (known: {known})")

    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or benchmarks:
        command = f"`python -m benchmarks.run {name}`"
        text = f"# {name}\n\n{command} on {environment()}\n\n{benchmarks[name]()}\n"
        print(text, flush=True)
        (options.out / f"{name}-{jax.default_backend()}.md").write_text(text)


if __name__ == "__main__":
    main()
