"""Tables average what differs in the seed alone; curves are drawn with no screen."""

import json
from typing import Any

import pytest

from experiments import report
from experiments.errors import UserError

BASE = {"task": {"name": "fake"}, "optimizer": {"learning_rate": 0.1}, "seed": 0}
CHECKSUM = "0" * 64


@pytest.fixture
def make_run(tmp_path):
    """Write the directory of a run that reached some test accuracy, or None."""

    def make_run(
        name: str,
        accuracy: float | None,
        *,
        seed: int = 0,
        provenance: str = "synthetic",
        learning_rate: float = 0.1,
        torn: bool = False,
        changed: dict[str, Any] | None = None,
    ) -> None:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        config = BASE | {"seed": seed, "optimizer": {"learning_rate": learning_rate}}
        description = {"config_file": "f.py", "variant": "plain", "config": config}
        environment = {"task": "fake", "provenance": provenance}
        environment |= {"data_checksum": CHECKSUM}
        (path / "config.json").write_text(json.dumps(description))
        (path / "environment.json").write_text(json.dumps(environment))
        lines = [
            {"step": 10, "train/loss": 1.0},
            {"step": 10, "validation/accuracy": 0.4},
            {"step": 20, "train/loss": 0.5},
            {"step": 20, "validation/accuracy": 0.6},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / "metrics.jsonl").write_text(text + ('{"step": 30, "tr' if torn else ""))
        if accuracy is not None:
            test = {"accuracy": accuracy, "examples": 900, "weights": {"accuracy": 900}}
            test |= {"loss": 0.5}
            at = {"step": 20, "validation": {}, "test": test}
            result = {
                **environment,
                "variant": "plain",
                "seed": seed,
                "metric": "accuracy",
                "selection": "first best validation accuracy",
                "best": at,
                "last": at,
                "reference_points": {
                    "chance": 0.1,
                    "majority class": 0.2,
                    "all": 1.0,
                    "memoryless loss": 0.3,
                },
                "parameter_count": 1234,
                "elapsed_seconds": 1.5,
                "steps": 20,
                "steps_done": 20,
            }
            result |= changed or {}
            (path / "result.json").write_text(json.dumps(result))

    return make_run


def rows(tmp_path) -> list[dict[str, str]]:
    groups = report.group_runs(report.find_runs([tmp_path]))
    lines = report.table(groups).splitlines()[2 : 2 + len(groups)]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return [dict(zip(report.COLUMNS, row, strict=True)) for row in cells]


SCORE = "test at best validation"


def test_seeds_are_averaged_with_the_sample_standard_deviation(make_run, tmp_path):
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        make_run(f"deep/er/{seed}", accuracy, seed=seed)
    (row,) = rows(tmp_path)
    assert row[SCORE] == "60.00 ± 10.00 %"
    assert (row["seeds"], row["failed"], row["parameters"]) == ("3", "0", "1,234")
    assert row["selection"] == "first best validation accuracy"


def test_one_seed_has_no_deviation_and_counts_once(make_run, tmp_path):
    make_run("a", 0.5)
    make_run("again", 0.5)
    make_run("unfinished again", None)
    (row,) = rows(tmp_path)
    assert (row[SCORE], row["seeds"], row["failed"]) == ("50.00 %", "1", "0")


def test_runs_at_chance_stay_in_the_mean_and_unfinished_ones_are_counted(
    make_run, tmp_path
):
    make_run("good", 0.8, seed=0)
    make_run("chance", 0.22, seed=1)  # majority class 0.2, standard error 0.013
    make_run("unfinished", None, seed=2)
    (row,) = rows(tmp_path)
    assert row[SCORE] == "51.00 ± 41.01 %"
    assert (row["seeds"], row["failed"]) == ("2", "2")


def test_provenances_and_configs_are_never_mixed(make_run, tmp_path):
    make_run("a", 0.5, seed=0)
    make_run("b", 0.7, seed=1, provenance="official archive")
    make_run("c", 0.9, seed=1, learning_rate=0.2)
    got = {(row["provenance"], row[SCORE]) for row in rows(tmp_path)}
    assert got == {
        ("synthetic", "50.00 %"),
        ("official archive", "70.00 %"),
        ("synthetic", "90.00 %"),
    }
    assert len({row["config"] for row in rows(tmp_path)}) == 2


def test_the_command_prints_the_table_and_draws(make_run, tmp_path, capsys):
    make_run("a", 0.5, seed=0)
    make_run("b", None, seed=1, torn=True)
    assert report.main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    figure = tmp_path / "out/figures/fake.png"
    assert out.startswith("| task |") and str(figure) in out
    assert (
        "Reference points, fake: chance 10.0 %, majority class 20.0 %, all 100.0 %"
        in out
    )
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_no_runs_is_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    assert "no runs found" in capsys.readouterr().err
    with pytest.raises(UserError):
        report.find_runs([tmp_path])


def test_describe_ranks_the_result_among_the_reference_points(make_run, tmp_path):
    make_run("a", 0.5)
    result = json.loads((tmp_path / "runs/a/result.json").read_text())
    lines = report.describe(result).splitlines()
    assert [line.strip() for line in lines[:-1]] == [
        "fake plain, seed 0",
        "accuracy",
        "1.0000  all",
        "0.5000  test at best validation (step 20)",
        "0.5000  test at last step (20)",
        "0.2000  majority class",
        "0.1000  chance",
        "loss",
        "0.5000  test at best validation (step 20)",
        "0.5000  test at last step (20)",
        "0.3000  memoryless loss",
    ]


def test_bits_are_no_shares_and_fewer_are_better(make_run, tmp_path):
    points = {"chance": 8.0, "frequencies": 4.5}
    bits = {"larger_is_better": False, "reference_points": points}
    make_run("a", 2.25, seed=0, changed=bits)
    make_run("b", 4.75, seed=1, changed=bits)
    (row,) = rows(tmp_path)
    assert row[SCORE] == "3.5000 ± 1.7678"
    assert row["failed"] == "1"
    table = report.table(report.group_runs(report.find_runs([tmp_path])))
    assert "Reference points, fake: frequencies 4.500, chance 8.000" in table
