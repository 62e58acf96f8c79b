"""The kernel of lightning attention for Hopper, through the real compiler.

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


def test_compiles_to_kernels_on_the_matrix_units_that_spill_nothing():
    reports = gpu_lightning.reports()
    assert len(reports) == len(gpu_lightning.CASES)
    for report in reports:
        # The gradients are three more passes, two of them of the same program.
        assert report["calls"] == (4 if "gradients" in report["kernel"] else 1), report
        assert report["moved"] == [], report
        # The sums of the decays.
        assert report["temporary_bytes"] <= 0.04 * report["array_bytes"], report
        assert report["products"] > 0, report
        for kernel in report["compiled"]:
            assert kernel["spilled"] == 0, report
