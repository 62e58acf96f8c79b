"""Runs as processes: killed, pre-empted, interrupted, out of disk, two at once."""

import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.experiments.conftest import logged
from tests.experiments.test_run import final_state, same

VARIANT = "plain,dropout"
# Seconds a step: a signal takes a moment to be seen. No number depends on it.
SLOWLY = "--config.task.delay=0.1"


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """Wait for the exit code; return what was printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err[-3000:]
    return out, err


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Return once that step was logged."""
    deadline = time.monotonic() + 180  # of a busy machine
    while time.monotonic() < deadline and process.poll() is None:
        lines = (workdir / "metrics.jsonl").exists() and logged_steps(workdir)
        if lines and lines[-1] >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached: {process.communicate()}")


def logged_steps(workdir: Path) -> list[int]:
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    return [int(line.split(",")[0].removeprefix('{"step": ')) for line in lines]


def checkpoints(workdir: Path) -> list[int]:
    paths = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in paths if path.name.isdigit())


@pytest.fixture
def cluster() -> list[str]:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    return [f"--coordinator_address=localhost:{port}", "--process_count=2"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, Path]:
    return {"directory": tmp_path_factory.mktemp("reference")}


@pytest.fixture
def uninterrupted(reference, start) -> Path:
    """The directory of a run on one device that nothing disturbed."""
    workdir = reference["directory"] / "run"
    if not workdir.exists():
        finish(start(workdir, variant=VARIANT))
    return workdir


def assert_same_run(workdir: Path, uninterrupted: Path, step: int = 40) -> None:
    assert logged(workdir) == logged(uninterrupted)
    assert same(final_state(workdir, step), final_state(uninterrupted, step))


def test_pre_emption_saves_and_exits_75_and_the_run_ends_the_same(
    start, tmp_path, uninterrupted
):
    process = start(tmp_path, SLOWLY, variant=VARIANT)
    wait_for_step(process, tmp_path, 9)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process, 75)
    assert "pre-empted: saved at step" in out and "Traceback" not in err
    stopped = max(checkpoints(tmp_path))
    assert 9 <= stopped < 40
    out, _ = finish(start(tmp_path, SLOWLY, variant=VARIANT))
    assert f"going on from the checkpoint of step {stopped}" in out
    assert_same_run(tmp_path, uninterrupted)


def test_a_killed_run_ends_the_same(start, tmp_path, uninterrupted):
    process = start(tmp_path, variant=VARIANT)
    wait_for_step(process, tmp_path, 20)
    process.kill()
    finish(process, -signal.SIGKILL)
    finish(start(tmp_path, variant=VARIANT))
    assert_same_run(tmp_path, uninterrupted)


def test_control_c_is_one_line_and_nothing_is_lost(start, tmp_path):
    process = start(tmp_path, SLOWLY)
    wait_for_step(process, tmp_path, 6)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert "interrupted: the same command goes on" in out
    assert "Traceback" not in err
    assert checkpoints(tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(start, tmp_path):
    """A limit on the size of files stands in for the end of the disk."""
    flags = ["--config.model.d_model=4096", SLOWLY]
    process = start(tmp_path, *flags)
    wait_for_step(process, tmp_path, 9)
    process.send_signal(signal.SIGTERM)
    finish(process, 75)
    good = checkpoints(tmp_path)

    limited = ["bash", "-c", 'ulimit -f 32 && exec "$@"', "bash"]  # 32 KiB a file
    out, err = finish(start(tmp_path, *flags, prefix=limited), 1)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "File too large" in errors[0]
    assert f"step {max(good)} is kept" in errors[0]
    assert "Traceback" not in err
    assert checkpoints(tmp_path) == good
    finish(start(tmp_path, *flags))


def test_two_processes_agree_are_pre_empted_together_and_resume_as_one(
    start, tmp_path, uninterrupted, cluster
):
    processes = [
        start(tmp_path, SLOWLY, *cluster, f"--process_id={index}", variant=VARIANT)
        for index in range(2)
    ]
    wait_for_step(processes[0], tmp_path, 12)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, 75)
    assert 12 <= max(checkpoints(tmp_path)) < 40
    four = {"JAX_NUM_CPU_DEVICES": "4"}
    finish(start(tmp_path, SLOWLY, variant=VARIANT, env=four))
    assert_close(tmp_path, uninterrupted)


def test_eight_devices_give_the_same_losses(run, tmp_path, uninterrupted):
    assert run(tmp_path, variant=VARIANT) == 0
    assert_close(tmp_path, uninterrupted)


def assert_close(workdir: Path, uninterrupted: Path) -> None:
    """Equal but for the order of sums: a few float32 roundings, 40 steps long."""
    for ours, theirs in zip(logged(workdir), logged(uninterrupted), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)


@pytest.mark.slow
def test_seeds_on_two_processes_go_on_together_and_each_is_that_of_one_run(
    start, tmp_path, cluster
):
    """Pre-empted in the second of two seeds, through one of the processes."""

    def pair() -> list[subprocess.Popen]:
        flags = [SLOWLY, *cluster, "--config.seeds=0,1"]
        return [
            start(tmp_path / "two", *flags, f"--process_id={index}", variant=VARIANT)
            for index in range(2)
        ]

    processes = pair()
    wait_for_step(processes[0], tmp_path / "two/seed-0", 40)
    wait_for_step(processes[0], tmp_path / "two/seed-1", 9)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, 75)
    assert (tmp_path / "two/seed-0/result.json").exists()
    for process in pair():
        out, _ = finish(process)
        assert "=== 2 of 2: seed-1" in out and "=== 1 of 2" not in out
    flags = [SLOWLY, "--config.seed=1"]
    finish(start(tmp_path / "one", *flags, variant=VARIANT))
    assert_close(tmp_path / "two/seed-1", tmp_path / "one")


@pytest.mark.slow
def test_a_seed_that_is_not_finite_does_not_stop_the_others(start, tmp_path):
    flags = ["--config.seeds=0,1", "--config.task.poison_step=13"]
    _, err = finish(start(tmp_path, *flags), 1)
    assert "2 of 2 runs did not finish: seed-0, seed-1" in err
    for seed in range(2):
        record = (tmp_path / f"seed-{seed}/failure.json").read_text()
        assert "not finite at step 14" in record
        assert max(checkpoints(tmp_path / f"seed-{seed}")) == 12


@pytest.mark.slow
def test_twenty_kills_in_one_run_change_nothing(start, tmp_path):
    """Killed at random times: while training, saving, evaluating, starting."""
    flags = ["--config.train.steps=1200", "--config.evaluate.every_steps=50"]
    finish(start(tmp_path / "whole", *flags, variant=VARIANT))
    workdir, rng = tmp_path / "killed", random.Random(0)
    for kill in range(20):
        process = start(workdir, *flags, variant=VARIANT)
        if kill < 18:
            before = logged_steps(workdir)[-1] if kill else 0
            wait_for_step(process, workdir, before // 4 * 4 + 3)
        time.sleep(rng.uniform(0, 1.0 if kill < 18 else 4.0))
        process.kill()
        finish(process, -signal.SIGKILL)
    finish(start(workdir, *flags, variant=VARIANT))
    assert_same_run(workdir, tmp_path / "whole", 1200)
