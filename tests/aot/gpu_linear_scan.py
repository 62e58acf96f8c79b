"""The kernels of `pallas_kernels.linear_scan_gpu` to be compiled."""

from collections.abc import Callable
from typing import Any

from pallas_kernels import linear_scan_gpu
from tests.aot import tpu_linear_scan
from tests.aot.tpu_linear_scan import Case, ideal_bytes

__all__ = ["CASES", "OP", "RAGGED", "ideal_bytes", "program"]

OP = "linear_scan"

CASES = {
    "float32": Case(),
    "float32, reversed": Case(reverse=True),
    "float32, reset": Case(reset=True),
    "float32 log_a": Case(log=True),
    "bfloat16 x, float32 a": Case(dtype="bfloat16"),
    "bfloat16 x, bfloat16 log_a": Case(
        dtype="bfloat16", decay_dtype="bfloat16", log=True
    ),
    "float32, constant a": Case(constant=True),
    "complex": Case(planes=2, decay_planes=2),
    "complex, constant a": Case(planes=2, decay_planes=2, constant=True),
    "complex, real a": Case(planes=2),
    "float32, one sequence": Case(shape=(1, 16384, 512)),
    "bfloat16, one sequence": Case(
        dtype="bfloat16",
        decay_dtype="bfloat16",
        log=True,
        reset=True,
        shape=(1, 16384, 512),
    ),
    "complex, one sequence": Case(
        planes=2, decay_planes=2, reverse=True, shape=(1, 16384, 512)
    ),
}

# Which end amid a block, or have rows that are padded first.
RAGGED = {
    "ragged float32": Case(shape=(3, 257, 1000), reset=True, reverse=True),
    "ragged bfloat16": Case(
        dtype="bfloat16",
        decay_dtype="bfloat16",
        log=True,
        shape=(3, 1001, 1500),
        reverse=True,
    ),
    "ragged complex, constant a": Case(
        planes=2, decay_planes=2, constant=True, shape=(5, 1001, 130), reset=True
    ),
    "seven steps of one channel": Case(shape=(2, 7, 1)),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""

    def run(x, decay, h0, reset):
        return linear_scan_gpu.linear_scan(
            x, decay, h0, reset, log=case.log, reverse=case.reverse
        )

    _, arguments = tpu_linear_scan.program(case)
    return run, arguments
