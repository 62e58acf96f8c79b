"""What the runner adds to each training step: data, metrics, progress and logging."""

from benchmarks.harness import ROOT, at_most, table
from experiments.benchmark import benchmark
from experiments.config import load


def run() -> str:
    """Return the table."""
    config, _ = load(str(ROOT / "configs/digits.py"), "lru")
    config.model.n_layers = 1
    config.model.d_model = config.model.mixer.d_state = 8
    result = benchmark(config)
    overhead = result["overhead_ms"]
    assert overhead is not None
    rows = [
        ["the jitted step alone", f"{result['bare_ms']:.2f} ms"],
        ["a step of the loop", f"{result['loop_ms']:.2f} ms"],
        ["overhead", at_most(overhead, 1, "ms")],
    ]
    return (
        "Sequential digits, batch 32, one layer of width 8: a step so short that the "
        "host decides.\nMedians of rounds that alternate, `experiments.benchmark`.\n\n"
        + table(["", "time"], rows)
    )
