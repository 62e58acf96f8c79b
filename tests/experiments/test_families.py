"""Small models of each family: killed, gone on with, and asked for text."""

import signal
import time

import pytest

from tests.experiments.test_process import (
    assert_same_run,
    checkpoints,
    finish,
    wait_for_step,
)

STEPS = 30
SHORT = (
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.evaluate.every_steps=15",
    "--config.evaluate.batch_size=8",
    "--config.checkpoint.every_steps=3",
    "--config.log.every_steps=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hgrn", "hgrn2", "transnormer", "minimax"])
def test_a_killed_run_ends_the_same_and_generates(family, launch, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 500)
    flags = (
        f"--config=configs/lm/bytes.py:{family},tiny",
        f"--config.data.path={text}",
        "--config.task.length=32",
    )
    workdir = run_killed_and_whole(launch, tmp_path, *flags)
    flags = ["--prompt=to be", "--max_new_tokens=8", f"--workdir={workdir}"]
    out, _ = finish(launch("experiments.generate", *flags))
    assert out.startswith("to be") and len(out.strip()) > len("to be")


@pytest.mark.slow
def test_a_killed_run_draws_the_same_zoneout(launch, tmp_path):
    run_killed_and_whole(
        launch,
        tmp_path,
        "--config=configs/copying/delayed.py:lstm,chrono",
        "--config.task.delay=10",
        "--config.model.mixer.zoneout_h=0.2",
        "--config.model.mixer.zoneout_c=0.2",
    )


def run_killed_and_whole(launch, tmp_path, *flags):
    """Hold that both runs end the same; return the folder of the killed one."""

    def start(workdir):
        return launch("experiments.main", f"--workdir={workdir}", *flags, *SHORT)

    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    process = start(workdir)
    wait_for_step(process, workdir, STEPS // 3)
    while not checkpoints(workdir):  # they are written beside the training
        time.sleep(0.01)
    process.kill()
    finish(process, -signal.SIGKILL)
    out, _ = finish(start(workdir))
    assert "going on from the checkpoint of step" in out
    assert_same_run(workdir, whole, STEPS)
    return workdir
