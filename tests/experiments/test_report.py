"""Tables average what differs in the seed alone; curves are drawn with no screen."""

import csv
import json

import pytest

from experiments import report
from experiments.errors import UserError
from experiments.report_csv import csv_text
from experiments.report_runs import find_runs, group_runs
from experiments.report_tables import RUNS, markdown, points_table, runs_table
from experiments.workdir import Workdir
from tests.experiments.made_runs import make_run, write


@pytest.fixture
def make(tmp_path):
    """Make the directory of a run below `runs`."""
    return lambda name, *a, **k: make_run(tmp_path / "runs" / name, *a, **k)


def rows(tmp_path) -> list[dict[str, str]]:
    table = runs_table(group_runs(find_runs([tmp_path])))
    lines = markdown(table).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return [dict(zip(RUNS, row, strict=True)) for row in cells]


SCORE = "test at best validation"


def test_seeds_are_averaged_with_the_sample_standard_deviation(make, tmp_path):
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        make(f"deep/er/{seed}", accuracy, seed=seed, last=accuracy - 0.1)
    (row,) = rows(tmp_path)
    assert row[SCORE] == "60.00 ± 10.00 %"
    assert row["test at last step"] == "50.00 ± 10.00 %"
    assert (row["seeds"], row["failed"], row["parameters"]) == ("3", "0", "1,234")
    assert row["selection"] == "first best validation accuracy"
    assert row["direction"] == "causal"


def test_one_seed_has_no_deviation_and_counts_once(make, tmp_path):
    make("a", 0.5)
    make("again", 0.5)
    make("unfinished again", None)
    (row,) = rows(tmp_path)
    assert (row[SCORE], row["seeds"], row["failed"]) == ("50.00 %", "1", "0")


def test_runs_at_chance_stay_in_the_mean_and_unfinished_ones_are_counted(
    make, tmp_path
):
    make("good", 0.8, seed=0)
    make("chance", 0.22, seed=1)  # majority class 0.2, standard error 0.013
    make("unfinished", None, seed=2)
    (row,) = rows(tmp_path)
    assert row[SCORE] == "51.00 ± 41.01 %"
    assert (row["seeds"], row["failed"]) == ("2", "2")


def test_provenances_and_configs_are_never_mixed(make, tmp_path):
    make("a", 0.5, seed=0)
    make("b", 0.7, seed=1, provenance="official archive")
    make("c", 0.9, seed=1, learning_rate=0.2)
    got = {(row["provenance"], row[SCORE]) for row in rows(tmp_path)}
    assert got == {
        ("synthetic", "50.00 %"),
        ("official archive", "70.00 %"),
        ("synthetic", "90.00 %"),
    }
    assert len({row["config"] for row in rows(tmp_path)}) == 2


def test_a_run_that_goes_on_says_so(make, tmp_path):
    make("a", None, reason="not finite at step 3")  # when it ran before
    workdir = Workdir(tmp_path / "runs/a")
    with workdir.claimed():
        (run,) = find_runs([tmp_path])
        assert run.failure() == "running"
    (run,) = find_runs([tmp_path])
    assert run.failure() == "not finite at step 3"


def test_what_the_test_set_chose_says_so(make, tmp_path):
    make("a", 0.5, protocol="paper")
    (row,) = rows(tmp_path)
    assert row["selection"] == "selected on test: first best test accuracy"


def test_the_command_prints_the_tables_and_writes_the_files(make, tmp_path, capsys):
    make("a", 0.5, seed=0)
    make("b", None, seed=1, torn=True, reason="not finite at step 14")
    never = {"task": "text", "variant": "lru", "seed": 3, "reason": "no files"}
    write(tmp_path / "runs/text/failure.json", never)
    assert report.main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    figure = tmp_path / "out/figures/fake.png"
    assert figure.read_bytes().startswith(b"\x89PNG") and str(figure) in out
    text = (tmp_path / "out/report.md").read_text()
    assert text in out
    assert "fake,plain," in (tmp_path / "out/report.csv").read_text()
    assert "<svg" in (tmp_path / "out/report.html").read_text()
    assert f"| fake | plain | 1 | {tmp_path}/runs/b | not finite at step 14 |" in text
    assert f"| text | lru | 3 | {tmp_path}/runs/text | no files |" in text
    assert "| fake | plain | 2 x cpu | 1,000 | 2.0 % | 1.5 | 20 | 1,234 |" in text
    assert "| 0123456789+ | 000000000000 | synthetic | heldout |" in text


def test_the_numbers_are_there_for_other_programs(make, tmp_path):
    make("a", 0.5, seed=0)
    make("b", 0.75, seed=4)
    make("c", None, learning_rate=0.2)
    text = csv_text(group_runs(find_runs([tmp_path])))
    found = list(csv.DictReader(text.splitlines()))
    finished = next(row for row in found if row["seeds"])
    (unfinished,) = (row for row in found if not row["seeds"])
    assert float(finished["test_at_best_validation"]) == 0.625
    assert finished["seeds"] == "0 4" and finished["device"] == "cpu"
    assert unfinished["failed"] == "1" and unfinished["test_at_last_step"] == ""


def test_no_runs_is_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    assert "no runs found" in capsys.readouterr().err
    with pytest.raises(UserError):
        find_runs([tmp_path])


def test_describe_ranks_the_result_among_the_reference_points(make, tmp_path):
    make("a", 0.5)
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


def test_bits_are_no_shares_and_fewer_are_better(make, tmp_path):
    points = {"chance": 8.0, "frequencies": 4.5}
    bits = {"larger_is_better": False, "reference_points": points}
    make("a", 2.25, seed=0, changed=bits)
    make("b", 4.75, seed=1, changed=bits)
    (row,) = rows(tmp_path)
    assert row[SCORE] == "3.5000 ± 1.7678"
    assert row["failed"] == "1"
    assert points_table(group_runs(find_runs([tmp_path]))).rows == [
        ("fake", "frequencies", "4.500"),
        ("fake", "chance", "8.000"),
    ]


def test_chance_and_milestones_are_ranked(make, tmp_path):
    make("a", 0.5)
    assert points_table(group_runs(find_runs([tmp_path]))).rows == [
        ("fake", "chance", "10.0 %"),
        ("fake", "majority class", "20.0 %"),
        ("fake", "all", "100.0 %"),
    ]
