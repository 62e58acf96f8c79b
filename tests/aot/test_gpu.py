"""Every GPU kernel through the real compiler: `make test-aot`.

What is checked needs no device: nothing but the kernels is called, nothing of the size
of their arrays is copied or kept around them, and in a kernel the threads wait for each
other between blocks only, spill nothing, and have the registers of
tests/aot/gpu_registers.json.
"""

import itertools

import pytest

from tests.aot import gpu
from tests.aot.stored import figures

pytestmark = [
    pytest.mark.aot_gpu,
    pytest.mark.skipif(
        not gpu.is_installed(),
        reason="XLA for GPU is not installed: pip install -e '.[aot-gpu]'",
    ),
]


@pytest.fixture(
    scope="module",
    params=itertools.product(gpu.FAMILIES, gpu.CHIPS),
    ids="-".join,
)
def compiled(request):
    """The family, the chip, and what its compiler says of every kernel."""
    family, chip = request.param
    return family, chip, gpu.reports(chip, family)


def test_kernels_compile_to_themselves_and_nothing_else(compiled):
    family, chip, reports = compiled
    cases = gpu.FAMILIES[family].CASES | gpu.FAMILIES[family].RAGGED
    assert len(reports) == 2 * len(cases)
    for report in reports:
        name = f"{report['kernel']} on {chip}"
        direction = report["kernel"].rpartition(", ")[2]
        kernels = [f"{family}_{direction}"]
        if "one sequence" in name:  # too few channels: time is cut
            kernels += [f"{kernels[0]}_summary"]
        called = gpu.registers(report)
        assert report["custom_calls"] == len(report["compiled"]), name
        if report["ragged"]:  # rows are padded, and time may be cut
            assert kernels[0] in called, name
            continue
        assert sorted(called) == sorted(kernels), name
        assert report["moved"] == [], name
        # The resets as numbers, and states, an array of one time step each.
        assert report["temporary_bytes"] <= 0.01 * report["ideal_bytes"], name


def test_threads_wait_between_blocks_only(compiled):
    """After the start, before and after the rows of a block, and at the end.

    Also once in a backward sweep, where it reaches the first state.
    """
    _, chip, reports = compiled
    for report in reports:
        for kernel in report["compiled"]:
            most = 5 if kernel["name"].endswith("backward") else 4
            assert kernel["barriers"] <= most, f"{report['kernel']} on {chip}"


def test_registers_are_not_more_than_those_of_the_table(compiled):
    family, chip, reports = compiled
    stored = figures(gpu.TABLE, family)
    assert {report["kernel"] for report in reports} == set(stored)
    off = {}
    for report in reports:
        name, now = report["kernel"], gpu.registers(report)
        assert all(kernel["spilled"] == 0 for kernel in report["compiled"]), name
        then = stored[name][chip]
        assert now.keys() == then.keys(), name
        if any(now[k] > 1.1 * then[k] for k in now):  # versions of JAX differ by less
            off[name] = now, then
    assert not off, (
        f"registers (now, stored) on {chip}; python -m tests.aot.gpu --write {family}"
    )
