"""Several runs of one command: which they are, and what becomes of each."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.lra import suite
from experiments import main, sweep
from experiments.errors import UserError
from experiments.workdir import Workdir
from tests.experiments.conftest import CONFIG, ROOT

SUITE = """\
from configs.sweep import Point

def sweep(variant="plain"):
    return [
        Point("a", f"fake_config.py:{variant}"),
        Point("b", f"fake_config.py:{variant}", {"optimizer.beta1": 0.5}),
    ]
"""


@pytest.fixture
def suite_file(tmp_path) -> Path:
    """Two points of the fake task."""
    (tmp_path / "fake_config.py").write_text(CONFIG.read_text())
    path = tmp_path / "suite.py"
    path.write_text(SUITE)
    return path


def planned(*flags: str, config: Path = CONFIG) -> sweep.Sweep:
    return sweep.plan(["main", f"--config={config}", "--workdir=w", *flags])


def names(*flags: str, config: Path = CONFIG) -> list[str]:
    return [run.name for run in planned(*flags, config=config).runs]


def test_one_config_and_one_seed_is_one_run():
    plan = planned("--config.seed=3")
    (run,) = plan.runs
    assert plan.is_single and run.command.config.seed == 3
    assert run.command.workdir.name == "w"


def test_each_seed_is_a_run_of_its_own_that_names_no_others():
    plan = planned("--config.seeds=2,0", "--config.train.steps=5")
    assert not plan.is_single
    assert [run.name for run in plan.runs] == ["seed-2", "seed-0"]
    assert [run.command.config.seed for run in plan.runs] == [2, 0]
    for run in plan.runs:
        assert run.command.config.train.steps == 5
        assert run.command.config.seeds == ""
        (again,) = sweep.plan(["main", *run.arguments]).runs
        assert again.command == run.command


def test_the_seeds_of_a_config_file_are_the_default(tmp_path):
    path = tmp_path / "seeded.py"
    text = CONFIG.read_text().replace(
        "    return config", '    config.seeds = "0,1"\n    return config'
    )
    path.write_text(text)
    plan = planned(config=path)
    assert [run.name for run in plan.runs] == ["seed-0", "seed-1"]
    assert sweep.plan(["main", *plan.runs[1].arguments]).is_single
    assert names("--config.seeds=7", config=path) == ["seed-7"]
    assert names("--config.seeds=", config=path) == [""]


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        ("0,0", "twice"),
        ("0,a", "integers"),
        ("0,", "integers"),
        ("1.5", "integers"),
        ("-1", "integers"),
        ("(0,1)", "integers"),
    ],
)
def test_wrong_seeds_are_refused(seeds, named):
    with pytest.raises(UserError, match=named):
        planned(f"--config.seeds={seeds}")


def test_a_seed_beside_seeds_is_refused():
    for seed in (["--config.seed=0"], ["--config.seed", "0"]):
        with pytest.raises(UserError, match="not both"):
            planned("--config.seeds=1,2", *seed)


def test_a_sweep_has_its_points_with_their_seeds(suite_file):
    plan = planned("--config.seeds=0,1", config=suite_file)
    assert [run.name for run in plan.runs] == [
        "a/seed-0",
        "a/seed-1",
        "b/seed-0",
        "b/seed-1",
    ]
    assert [run.command.config.optimizer.beta1 for run in plan.runs] == [
        0.9,
        0.9,
        0.5,
        0.5,
    ]
    assert plan.runs[3].command.workdir.parts[-3:] == ("w", "b", "seed-1")


def test_the_suite_is_six_tasks_for_each_family():
    points = suite.sweep("lru+s5,tiny")
    assert len({point.name for point in points}) == 12
    assert points[0].config == "listops.py:lru,tiny"
    assert points[11].name == "pathx-s5" and points[11].config == "pathx.py:s5,tiny"


def test_every_family_has_all_six_tasks():
    file = Path(suite.__file__)
    families = "lru+s4d+s5+liquid_s4+hgrn+hawk+griffin+hgrn2+transnormer+transformer"
    plan = sweep.plan(["main", f"--config={file}:{families},tiny", "--workdir=w"])
    assert len(plan.runs) == 60
    names = [run.command.config.task.name for run in plan.runs[:6]]
    assert names[0] == "listops" and len(set(names)) == 6


def test_overrides_go_to_every_run_and_a_point_keeps_its_own(suite_file):
    plan = planned("--config.optimizer.beta2=0.5", config=suite_file)
    assert {run.command.config.optimizer.beta2 for run in plan.runs} == {0.5}
    (a, b) = plan.runs
    assert (a.command.config.optimizer.beta1, b.command.config.optimizer.beta1) == (
        0.9,
        0.5,
    )


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.trian.steps=3", "a: unknown config key trian.steps"),
        ("--config.train.steps=many", "a: .*train.steps"),
        ("--mode=trian", "a: .*mode"),
        ("loose", "a: unexpected argument 'loose'"),
        ("--index=2", "from 0 to 1"),
        ("--index=2/2", "from 0 to 1"),
        ("--index=x", "--index is I"),
        ("--config.seeds=1,1", "twice"),
    ],
)
def test_what_is_wrong_is_refused_before_any_run(suite_file, flag, named):
    with pytest.raises(UserError, match=named):
        planned(flag, config=suite_file)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ("[]", "returns no runs"),
        ('[Point("a", "fake_config.py")] * 2', "names a run twice: a"),
        ('[Point("a", "none.py")]', "no config file"),
        ('[Point("a", "fake_config.py:plane")]', "did you mean 'plain'"),
        ('[Point("a", "fake_config.py", {"zzz": 1})]', "unknown config key zzz"),
        ("1 / 0", "suite.py:3: ZeroDivisionError"),
    ],
)
def test_a_sweep_that_is_wrong_is_refused(suite_file, returned, named):
    head = "from configs.sweep import Point\ndef sweep(variant='x'):\n    return "
    suite_file.write_text(head + returned)
    with pytest.raises(UserError, match=named):
        planned(config=suite_file)


def test_an_index_is_one_run_or_a_share(suite_file):
    seeds = "--config.seeds=0,1,2"
    everything = names(seeds, config=suite_file)
    assert names(seeds, "--index=4", config=suite_file) == ["b/seed-1"]
    shares = [names(seeds, f"--index={i}/4", config=suite_file) for i in range(4)]
    assert sorted(sum(shares, [])) == sorted(everything)
    assert [len(share) for share in shares] == [2, 2, 1, 1]


def test_an_array_may_be_larger_than_its_shares():
    assert names("--index=1/2") == []
    assert not planned("--index=0").is_single  # also in a process of its own


def test_prepare_takes_each_data_once(suite_file):
    flags = ("--mode=prepare", "--config.seeds=0,1,2")
    assert names(*flags, config=suite_file) == ["a/seed-0"]


def test_a_directory_of_another_config_is_refused_before_any_run(suite_file, tmp_path):
    workdir = Workdir(tmp_path / "b")
    plan = planned(f"--workdir={tmp_path}", config=suite_file)
    description = plan.runs[1].command.description()
    description["config"]["train"]["steps"] = 7
    workdir.write("config.json", description)
    (workdir.checkpoints / "10").mkdir(parents=True)
    with pytest.raises(UserError, match="train.steps is 7 there"):
        planned(f"--workdir={tmp_path}", config=suite_file)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Run a sweep in this process, of runs that do as they are told."""
    monkeypatch.setattr(sweep, "PROGRAM", "tests.experiments.stub_run")
    monkeypatch.setenv("STUB_LOG", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def stub(*flags: str, config: Path = CONFIG, **orders: str) -> int:
        monkeypatch.setenv("STUB", json.dumps(orders.get("orders", {})))
        where = f"--workdir={tmp_path / 'runs'}"
        return main.main(["main", f"--config={config}", where, *flags])

    return stub


def started(tmp_path) -> list[str]:
    log = tmp_path / "started"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    words = (word for line in lines for word in line.split())
    flag = f"--workdir={tmp_path / 'runs'}/"
    return [word.removeprefix(flag) for word in words if word.startswith(flag)]


def test_all_finished_is_0_and_nothing_is_run_again(stub, tmp_path, suite_file, capsys):
    assert stub("--config.seeds=0,1", config=suite_file) == 0
    assert started(tmp_path) == ["a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"]
    assert "b/seed-1  finished" in capsys.readouterr().out
    assert stub("--config.seeds=0,1,2", config=suite_file) == 0
    assert started(tmp_path) == ["a/seed-2", "b/seed-2"]


def test_a_run_that_fails_is_recorded_and_does_not_stop_the_others(
    stub, tmp_path, capsys
):
    orders = {"--config.seed=1": "fail", "--config.seed=2": "crash"}
    orders["--config.seed=3"] = "die"
    assert stub("--config.seeds=0,1,2,3,4", orders=orders) == 1
    assert len(started(tmp_path)) == 5
    out, err = capsys.readouterr()
    assert err == (
        "error: 3 of 5 runs did not finish: seed-1, seed-2, seed-3; the same command "
        "tries them again\n"
    )
    assert "seed-1  failed: not finite at step 3" in out
    assert "seed-2  failed: exit code 3" in out
    assert "seed-3  failed: killed by SIGKILL, out of memory?" in out
    record = json.loads((tmp_path / "runs/seed-1/failure.json").read_text())
    assert record == {
        "config_file": str(CONFIG),
        "variant": "plain",
        "task": "fake",
        "seed": 1,
        "reason": "not finite at step 3",
    }
    assert stub("--config.seeds=0,1,2,3,4") == 0
    assert started(tmp_path) == ["seed-1", "seed-2", "seed-3"]
    assert not list(tmp_path.glob("runs/*/failure.json"))


def test_a_run_that_another_process_has_is_not_marked_as_failed(stub, tmp_path, capsys):
    workdir = Workdir(tmp_path / "runs/seed-0")
    with workdir.claimed():
        with pytest.raises(UserError, match="another process is training"):
            with Workdir(workdir.path).claimed():
                pass
        assert stub("--config.seeds=0,1", orders={"--config.seed=0": "fail"}) == 1
    assert not (workdir.path / "failure.json").exists()
    assert not workdir.is_claimed()


def test_dry_run_prints_commands_that_a_shell_takes(stub, tmp_path, capsys):
    assert stub("--config.seeds=0", orders={}) == 0
    capsys.readouterr()
    flags = ["--config.seeds=0,1", "--dry-run", "--config.data.source=a b"]
    assert stub(*flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# 0: seed-0  (finished)"
    command = shlex.split(lines[3])
    assert command[:2] == ["python", "-m"]
    (run,) = sweep.plan(command[2:]).runs
    assert run.command.config.seed == 1
    assert run.command.config.data.source == "a b"
    assert started(tmp_path) == ["seed-0"]


def test_dry_run_of_one_run_is_its_command(stub, tmp_path, capsys):
    assert stub("--dry-run") == 0
    assert f"--workdir={tmp_path / 'runs'}" in capsys.readouterr().out
    assert started(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code", "order"),
    [
        (signal.SIGTERM, 75, "wait"),
        (signal.SIGINT, 130, "wait"),
        (signal.SIGTERM, 75, "finish late"),
    ],
)
def test_a_signal_is_handed_on_and_stops_the_sweep(number, code, order, tmp_path):
    process, child = waiting(tmp_path, order)
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert "stopped in seed-1: the same command goes on" in out
    assert started(tmp_path) == ["seed-0", "seed-1"]
    assert not alive(child)


def test_a_run_whose_sweep_is_killed_is_told_to_end(tmp_path):
    process, child = waiting(tmp_path)
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def waiting(tmp_path, order: str = "wait") -> tuple[subprocess.Popen, int]:
    """Start a sweep whose second run waits; return it, and the id of that run."""
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path / 'runs'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.stub_run", "--sweep"]
        + [*arguments, "--config.seeds=0,1,2"],
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "STUB_LOG": str(tmp_path),
            "STUB": json.dumps({"--config.seed=1": order}),
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    file = tmp_path / "waiting"
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    return process, int(file.read_text())


def alive(number: int) -> bool:
    """Whether a process is there, and is not only waited for."""
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
