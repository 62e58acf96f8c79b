"""The kernels of `pallas_kernels.hgrn` on GPU to be compiled."""

from collections.abc import Callable
from typing import Any

from pallas_kernels import gated_scan_gpu, hgrn
from tests.aot import tpu_hgrn
from tests.aot.tpu_hgrn import Case, ideal_bytes

__all__ = ["CASES", "OP", "RAGGED", "ideal_bytes", "program"]

OP = "hgrn"

CASES = {
    "bfloat16": Case(),
    "bfloat16, reversed, reset": Case(reset=True, reverse=True),
    "float32": Case(dtype="float32"),
    "complex": Case(dtype="float32", planes=2, rotated=True),
    "real x, rotated": Case(dtype="float32", rotated=True),
    "bfloat16, one sequence": Case(shape=(1, 16384, 512)),
    "complex, one sequence": Case(
        dtype="float32", planes=2, rotated=True, reverse=True, shape=(1, 16384, 512)
    ),
}
RAGGED = {
    "ragged bfloat16": Case(shape=(3, 1001, 1500), reset=True, reverse=True),
    "ragged complex, D 96": Case(
        dtype="float32", planes=2, rotated=True, shape=(3, 257, 96), reset=True
    ),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""

    def run(x, f, bound, theta, h0, reset):
        return hgrn.hgrn_scan(
            gated_scan_gpu.KERNELS, x, f, bound, theta, h0, reset, reverse=case.reverse
        )

    _, arguments = tpu_hgrn.program(case)
    return run, arguments
