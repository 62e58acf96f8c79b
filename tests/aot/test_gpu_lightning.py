"""The forward kernel of lightning attention for Hopper, through the real compiler.

Only that: no interpreter knows its instructions, and it has never run on a device.
"""

import pytest

from tests.aot import gpu, gpu_lightning

pytestmark = [
    pytest.mark.aot_gpu,
    pytest.mark.skipif(
        not gpu.is_installed(),
        reason="XLA for GPU is not installed: pip install -e '.[aot-gpu]'",
    ),
]


def test_compiles_to_one_kernel_on_the_matrix_units_that_spills_nothing():
    reports = gpu_lightning.reports()
    assert len(reports) == len(gpu_lightning.CASES)
    for report in reports:
        (kernel,) = report["compiled"]
        assert report["custom_calls"] == 1, report
        assert report["moved"] == [], report
        assert report["temporary_bytes"] == 0, report
        assert kernel["spilled"] == 0, report
        assert report["products"] > 0, report
