"""Every TPU kernel through the real compiler: `make test-aot`.

What is checked needs no device: one call of one kernel, nothing of the size of its
arrays copied or kept around it, the bytes that it is said to move, and its static
cycles, which are compared with tests/aot/tpu_cycles.json.
"""

import importlib.util
import itertools

import pytest

from tests.aot import tpu
from tests.aot.bundles import cycles
from tests.aot.stored import figures

pytestmark = pytest.mark.aot_tpu
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[aot-tpu]'",
)


@pytest.fixture(
    scope="module",
    params=itertools.product(tpu.FAMILIES, tpu.CHIPS),
    ids="-".join,
)
def compiled(request):
    """The family, the chip, and what its compiler says of every kernel."""
    family, chip = request.param
    return family, chip, tpu.reports(chip, family)


@needs_libtpu
def test_kernels_compile_to_one_call_and_nothing_else(compiled):
    family, chip, reports = compiled
    cases = tpu.FAMILIES[family].CASES | tpu.FAMILIES[family].RAGGED
    overheads = {name: getattr(case, "overhead", 0.04) for name, case in cases.items()}
    assert len(reports) == 2 * len(cases)
    for report in reports:
        name = f"{report['kernel']} on {chip}"
        assert report["custom_calls"] == 1, name
        assert report["kernels"] == 1, name
        if report["cycles"] is None:
            # XLA stores arguments of a length that is no multiple of 8 with another
            # axis last, and small ones in VMEM: that they compile is what is tested.
            continue
        assert report["moved"] == [], name
        # The mask of the resets as numbers, sums of log decays of heads, and states.
        small = 0.02 * report["ideal_bytes"]
        assert report["temporary_bytes"] <= small, name
        overhead = overheads[report["kernel"].rpartition(", ")[0]]
        over = report["bytes"] / report["ideal_bytes"] - 1
        assert 0 <= over <= overhead, name


@needs_libtpu
def test_static_cycles_are_those_of_the_table(compiled):
    family, chip, reports = compiled
    stored = figures(tpu.TABLE, family)
    reports = [report for report in reports if report["cycles"] is not None]
    assert {report["kernel"] for report in reports} == set(stored)
    off = {
        report["kernel"]: (report["cycles"], stored[report["kernel"]][chip])
        for report in reports
        if abs(report["cycles"] / stored[report["kernel"]][chip] - 1) > 0.1
    }
    assert not off, (
        f"cycles (now, stored) on {chip}; python -m tests.aot.tpu --write {family}"
    )


def test_cycles_count_a_loop_as_often_as_it_turns():
    program = """\
     0   :  { %s1 = smov.u32 0 }
   0x1 LB: > { %s2 = sphi %s1, %s3 } /* Start region 7 :: Start region 8 */
   0x2   : > { %s9 = smov.u32 0 } /* End region 8 */
   0x3 LB: >> { %s4_s1 = sadd.s32 2, %s5_s1 } /* Start region 9 */
   0x4   : >> { %p1 = scmp.ge.s32.totalorder %s4_s1, 12 /* loop exit test */ }
   0x5   : >> { %6 = sbr.rel (!%p1) target = $region9
        a second line of this bundle }
   0x6   : >> {} /* End region 9 */
   0x7   : > { %s3 = sadd.s32 1, %s2 }
   0x8   : > { %p2 = scmp.ge.s32.totalorder %s3, 5 /* loop exit test */ }
   0x9   : > { %7 = sbr.rel (!%p2) target = $region7 } /* End region 7 */
   0xa   :  {}
"""
    inner, outer = 6 * 4, 5
    assert cycles(program) == 2 + 5 * (outer + inner)
