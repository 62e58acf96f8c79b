"""The benchmarks check before they time, and say what missed its goal."""

import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks import run, scan
from benchmarks.harness import at_least, at_most, check_close, interleaved, table


def test_a_wrong_program_is_not_timed():
    with pytest.raises(AssertionError, match=r"ours\['h'\] is off by 5.0e-01"):
        check_close("ours", {"h": jnp.ones(3)}, {"h": 2 * jnp.ones(3)}, 1e-6)
    with pytest.raises(AssertionError, match="off by nan"):
        check_close("ours", jnp.array([jnp.nan]), jnp.ones(1), 1e-6)


def test_a_missed_goal_is_said():
    assert at_least(4.0, 3.5) == "4.0x (goal 3.5x)"
    assert at_least(3.0, 3.5) == "3.0x (goal 3.5x, MISSED)"
    assert at_most(0.25, 0.1, "s") == "0.25 s (goal 0.1 s, MISSED)"


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert interleaved(functions, repeats=2).keys() == {"a", "b"}
    assert calls == ["a", "b"] * 3


def test_table_is_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_scan_case_agrees_on_a_small_shape(dtype: str):
    row = scan.case((2, 9, 3), dtype, 0.0, None, repeats=1)
    assert row[0] == f"(2, 9, 3) {dtype}"


def test_results_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    arguments = ["run", "import_cost", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    assert "| import ssm" in (tmp_path / "import_cost-cpu.md").read_text()


def test_an_unknown_name_lists_the_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["run", "scam"])
    with pytest.raises(SystemExit):
        run.main()
    assert "unknown: scam (known: scan," in capsys.readouterr().err
