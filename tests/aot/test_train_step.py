"""A whole training step, sharded over data, parameters and time: `make test-aot`."""

import importlib.util
import math

import pytest

from tests.aot import gpu, train_step
from tests.aot.train_step import BATCH, LENGTH, STATES, TOPOLOGIES, WIDTH

INSTALLED = {
    "aot_tpu": importlib.util.find_spec("libtpu") is not None,
    "aot_gpu": gpu.is_installed(),
}


def targets():
    for topology in TOPOLOGIES:
        extra = "aot_gpu" if topology in gpu.CHIPS else "aot_tpu"
        missing = pytest.mark.skipif(
            not INSTALLED[extra],
            reason=f"the compiler is not installed: the extra {extra}",
        )
        yield pytest.param(topology, marks=(getattr(pytest.mark, extra), missing))


@pytest.mark.parametrize("topology", list(targets()))
def test_the_step_runs_the_kernels_and_exchanges_no_activations(topology):
    report = train_step.report(topology)
    # Forward and backward, each a pass for the state that arrives and one for the rest.
    assert report["kernels"] == 4
    exchanged = report["largest_exchange"]
    assert set(exchanged) >= {"all-gather", "all-reduce"}
    # What one device has of the activations is never sent, nor gathered. Parameters
    # are over `fsdp`, of which none is larger than this one; their gradients are
    # added up, some of them together.
    activations = BATCH * LENGTH * WIDTH // math.prod(TOPOLOGIES[topology].values())
    assert max(exchanged.values()) < activations // 2
    del exchanged["all-reduce"]
    assert max(exchanged.values()) <= 2 * STATES * WIDTH
