"""Whole training steps on many devices: `make test-aot`."""

import importlib.util
import math

import pytest

from tests.aot import gpu, train_step
from tests.aot.train_step import BATCH, LENGTH, STATES, STEPS, WIDTH

INSTALLED = {
    "aot_tpu": importlib.util.find_spec("libtpu") is not None,
    "aot_gpu": gpu.is_installed(),
}
# Bytes of a device.
MEMORY = {"v5e:2x2": 16e9, "v5e:4x4": 16e9, "v5p:2x2x2": 95e9, "h100": 80e9}


def targets(step):
    for topology in STEPS[step].meshes:
        extra = "aot_gpu" if topology in gpu.CHIPS else "aot_tpu"
        missing = pytest.mark.skipif(
            not INSTALLED[extra],
            reason=f"the compiler is not installed: the extra {extra}",
        )
        yield pytest.param(topology, marks=(getattr(pytest.mark, extra), missing))


@pytest.mark.parametrize("topology", list(targets("lru")))
def test_the_step_runs_the_kernels_and_exchanges_no_activations(topology):
    report = train_step.report("lru", topology)
    # Forward and backward, each a pass for the state that arrives and one for the rest.
    assert report["kernels"] == 4
    exchanged = report["largest_exchange"]
    assert set(exchanged) >= {"all-gather", "all-reduce"}
    # What one device has of the activations is never sent, nor gathered. Parameters
    # are over `fsdp`, of which none is larger than this one; their gradients are
    # added up, some of them together.
    devices = math.prod(STEPS["lru"].meshes[topology].values())
    activations = BATCH * LENGTH * WIDTH // devices
    assert max(exchanged.values()) < activations // 2
    del exchanged["all-reduce"]
    assert max(exchanged.values()) <= 2 * STATES * WIDTH


@pytest.mark.parametrize("topology", list(targets("griffin")))
def test_griffin_runs_the_kernels(topology):
    report = train_step.report("griffin", topology)
    # Two recurrences, forward and backward; on a GPU with few channels each is cut
    # over time, and a kernel finds the states at the cuts.
    assert report["kernels"] == (8 if topology in gpu.CHIPS else 4)
    # The gradients are added up, and nothing else is exchanged.
    assert set(report["largest_exchange"]) == {"all-reduce"}
    assert report["largest_exchange"]["all-reduce"] <= 1.01 * report["parameters"]


# Three layers, of MiniMax on a TPU two: its third has softmax attention. Each forward
# and backward; on a GPU with few channels HGRN is cut over time, and a kernel finds the
# states at the cuts, and lightning attention has a kernel for each of three gradients.
KERNELS = {
    ("hgrn", "v5e:2x2"): 6,
    ("hgrn", "h100"): 12,
    ("hgrn2", "v5e:2x2"): 6,
    ("transnormer", "v5e:2x2"): 6,
    ("transnormer, by name", "h100"): 12,
    ("minimax", "v5e:2x2"): 4,
    ("minimax, by name", "h100"): 12,
}


@pytest.mark.parametrize(
    ("step", "topology"),
    [
        pytest.param(step, *target.values, marks=target.marks)
        for step in dict.fromkeys(step for step, _ in KERNELS)
        for target in targets(step)
    ],
)
def test_the_kernels_are_run_on_what_is_there(step, topology):
    """No activation is copied or transposed, for a kernel or for anything else."""
    report = train_step.report(step, topology)
    assert report["kernels"] == KERNELS[step, topology]
    assert report["moved"] == []
    assert set(report["largest_exchange"]) == {"all-reduce"}
    assert report["largest_exchange"]["all-reduce"] <= 1.01 * report["parameters"]


# S5 forward and backward. Liquid-S4 runs in chunks of time and in a rest: in a loop and
# after it, forward, and backward, where the loop makes its states again.
STATE_SPACES = {"s5": 2, "liquid_s4": 5}


@pytest.mark.parametrize(
    ("step", "topology"),
    [
        pytest.param(step, *target.values, marks=target.marks)
        for step in STATE_SPACES
        for target in targets(step)
    ],
)
def test_state_spaces_run_the_kernels(step, topology):
    report = train_step.report(step, topology)
    assert report["kernels"] == STATE_SPACES[step]
    # Gradients are added up, and parameters at most gathered: no activations.
    for elements in report["largest_exchange"].values():
        assert elements <= 1.01 * report["parameters"]


# Scans forwards and backwards in time: in the forward pass, made again in the backward
# pass, and their gradients; one layer's, which all are compiled from. Over time, and on
# a GPU with few channels, each is cut, and a kernel finds the states at the cuts.
PATHX = {
    ("pathx lru", "v5e:2x2"): 6,
    ("pathx lru", "h100"): 6,
    ("pathx s5", "v5e:2x2"): 6,
    ("pathx s5", "h100"): 12,
    ("pathx lru, over time", "v5e:2x2"): 12,
    ("pathx lru, over time", "h100"): 12,
    ("pathx s5, over time", "v5e:2x2"): 12,
    ("pathx s5, over time", "h100"): 18,
}


@pytest.mark.parametrize(
    ("step", "topology"),
    [
        pytest.param(step, *target.values, marks=target.marks)
        for step in dict.fromkeys(step for step, _ in PATHX)
        for target in targets(step)
    ],
)
def test_pathx_fits_the_memory(step, topology):
    """32 sequences of 16,384 steps on a device; over time, as many on all of them."""
    report = train_step.report(step, topology)
    assert report["kernels"] == PATHX[step, topology]
    assert report["moved"] == []
    # States at the cuts and gradients: one activation of a device is 2**24 elements.
    assert max(report["largest_exchange"].values()) < 2**18
    assert sum(report["bytes_per_device"].values()) < MEMORY[topology] / 1.5


@pytest.mark.parametrize("topology", list(targets("recurrent_gemma_2b")))
def test_recurrent_gemma_2b_fits_the_memory(topology):
    report = train_step.report("recurrent_gemma_2b", topology)
    assert report["parameters"] == 2_682_862_080
    assert sum(report["bytes_per_device"].values()) < MEMORY[topology]
    assert report["kernels"] > 0
