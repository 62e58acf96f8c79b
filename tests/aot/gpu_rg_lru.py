"""The kernels of `pallas_kernels.rg_lru` on GPU to be compiled."""

import functools
from collections.abc import Callable
from typing import Any

from pallas_kernels import gated_scan_gpu, rg_lru
from tests.aot import tpu_rg_lru
from tests.aot.tpu_rg_lru import Case, ideal_bytes

__all__ = ["CASES", "OP", "RAGGED", "ideal_bytes", "program"]

OP = "rg_lru"

CASES = {
    "bfloat16": Case(),
    "bfloat16, reset": Case(reset=True),
    "float32": Case(dtype="float32"),
    "bfloat16, one sequence": Case(shape=(1, 16384, 512)),
    "float32, one sequence": Case(dtype="float32", reset=True, shape=(1, 16384, 512)),
}
RAGGED = {
    "ragged bfloat16": Case(shape=(3, 1001, 1500), reset=True),
    "ragged float32, D 96": Case(dtype="float32", shape=(3, 257, 96), reset=True),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""
    _, arguments = tpu_rg_lru.program(case)
    return functools.partial(rg_lru.rg_lru_scan, gated_scan_gpu.KERNELS), arguments
