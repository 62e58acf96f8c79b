"""The benchmarks check before they time, and say what missed its goal."""

import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks import (
    decoding,
    griffin,
    layers,
    linear_attention,
    ops,
    run,
    state_spaces,
)
from benchmarks.harness import at_least, at_most, check_close, interleaved, table
from tests.pairwise import mostly_slow


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


SMALL_CASES = {
    "float32": lambda: ops.linear_scan_case((2, 9, 3), "float32", {"lax.scan": 1e9}),
    "bfloat16": lambda: ops.linear_scan_case((2, 9, 3), "bfloat16", {}),
    "complex64": lambda: ops.linear_scan_case((2, 9, 3), "complex64", {}),
    "constant": lambda: ops.linear_scan_case((2, 9, 3), "complex64", {}, True),
    "rg_lru": lambda: ops.rg_lru_case((2, 9, 3), "float32"),
    "hgrn": lambda: ops.hgrn_case((2, 9, 3), "bfloat16", False),
    "complex hgrn": lambda: ops.hgrn_case((2, 9, 3), "float32", True),
    "lightning": lambda: ops.lightning_case((1, 64, 2, 3), "float32", True),
}


@pytest.mark.parametrize(
    "name", mostly_slow(list(SMALL_CASES), "float32", "constant", "complex hgrn")
)
def test_all_programs_of_a_case_agree_on_a_small_shape(name):
    case = SMALL_CASES[name]()
    forward, backward = ops.measure(case, repeats=1)
    assert set(forward["seconds"]) >= {"ours", *case.others}
    assert backward["bytes"] > forward["bytes"] > case.arguments[0].nbytes
    assert ops.format_row(backward, {})[1] == "forward and backward"
    if "lax.scan" in case.goals:
        assert "goal 1e+09x, MISSED" in ops.format_row(backward, case.goals)[-1]


def test_a_wrong_case_is_refused():
    case = SMALL_CASES["float32"]()
    wrong = case._replace(others={"wrong": lambda x, a: case.truth(x, 1.01 * a)})
    with pytest.raises(AssertionError, match="linear_scan, wrong is off by"):
        ops.measure(wrong, repeats=1)


@pytest.mark.parametrize("name", ["LRU", "HGRN2"])
def test_layers_agree_on_a_small_shape(name):
    row = layers.measure(name, layers.LAYERS[name], (2, 8, 64), repeats=1)
    assert row[:2] == [name, "(2, 8, 64)"]


@pytest.mark.slow
def test_griffin_is_checked_and_timed_on_a_small_shape():
    text = griffin.run(1, 16, repeats=1)
    assert "| associative_scan |" in text and "| without a scan |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name, carry", [("Griffin", "36,870"), ("HGRN2", "98,304")])
def test_decoding_has_a_carry_of_one_size(name, carry):
    contexts = {"1k": decoding.CHUNK, "2k": 2 * decoding.CHUNK}
    rows, _ = decoding.decoding(name, contexts, repeats=1)
    assert [row[3] for row in rows] == [carry, carry]
    assert [row[4] for row in rows] == ["3,145,740", "6,291,468"]  # keys of every step


def test_the_crossover_is_the_last_one():
    lightning = {1: 1.0, 2: 3.0, 4: 2.0, 16: 9.0}
    assert "from 4 steps on" in linear_attention.crossover(
        lightning, {1: 2.0, 2: 2.0, 4: 3.0}
    )
    assert "not the faster one up to 2" in linear_attention.crossover(
        lightning, {2: 2.0}
    )


def test_linear_attention_is_drawn(tmp_path: Path):
    text = linear_attention.run(tmp_path, lengths=(64, 128))
    assert "| 128 |" in text
    assert (tmp_path / "linear_attention-cpu.png").stat().st_size > 1000


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
    assert "unknown: scam (known: ops," in capsys.readouterr().err


@pytest.mark.slow
def test_state_spaces_agree_on_small_shapes():
    shape = (1, 16, 4)
    text = state_spaces.run(1, [shape], shape, orders=[2], batch=1, length=16)
    assert "| S5, N 64 | (1, 16, 4) |" in text and "| kb, P = 2 |" in text
    assert "| associative_scan |" in text
