"""What `import ssm` costs beyond the Flax NNX that every user of it imports."""

import statistics
import subprocess
import sys

from benchmarks.harness import at_most, table

TIMED = (
    "import time; start = time.perf_counter(); from flax import nnx; "
    "between = time.perf_counter(); import ssm; "
    "print(between - start, time.perf_counter() - between)"
)


def run() -> str:
    """Return the table."""
    runs = []
    for _ in range(5):
        command = [sys.executable, "-c", TIMED]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append([float(word) for word in output.stdout.split()])
    nnx, ours = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    rows = [
        ["from flax import nnx", f"{nnx:.2f} s"],
        ["import ssm, after that", at_most(ours, 0.1, "s")],
    ]
    return "Median of five fresh processes.\n\n" + table(["import", "time"], rows)
