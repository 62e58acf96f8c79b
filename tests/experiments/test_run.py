"""Whole runs, in this process: their files, their ends, and how they go on."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import builders, checkpoint, distributed, train
from experiments.workdir import Workdir
from tests.experiments.conftest import logged
from tests.pairwise import mostly_slow


def stop_after(monkeypatch, step: int) -> None:
    """Have the run pre-empted after this step."""
    monkeypatch.setattr(distributed, "preempted", lambda calls: calls == step)


def final_state(workdir, step: int = 40) -> dict:
    manager = checkpoint.ocp.CheckpointManager(workdir / "checkpoints")
    args = checkpoint.ocp.args.Composite(state=checkpoint.ocp.args.StandardRestore())
    state = manager.restore(step, args=args).state
    manager.close()
    return state


def same(a, b) -> bool:
    equal = jax.tree.map(
        lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b
    )
    return all(jax.tree.leaves(equal))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, with dropout and a moving average."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        from tests.experiments import conftest

        conftest.fakes.__wrapped__(patch)
        run = conftest.run.__wrapped__(None)
        assert run(workdir, variant="plain,dropout,ema") == 0
    return workdir


def test_a_finished_run_has_its_files(finished, capsys):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "environment.json",
        "parameters.txt",
        "metrics.jsonl",
        "checkpoints",
        "result.json",
    }
    result = Workdir(finished).read("result.json")
    assert result["best"]["validation"]["examples"] == 37
    for at in ("best", "last"):
        assert result[at]["test"]["weights"] == {"accuracy": 41.0, "loss": 41.0}
    assert result["last"]["step"] == result["steps_done"] == result["steps"] == 40
    assert result["evaluated_parameters"] == "moving average"
    assert result["reference_points"]["linear"] == 0.9
    assert result["environment"]["device_count"] == 8
    parameters = (finished / "parameters.txt").read_text().splitlines()
    assert "hidden/kernel\t(4, 8)\tfloat32\tregular" in parameters
    assert parameters[-1] == f"total\t{result['parameter_count']}" == "total\t67"


def test_the_best_step_is_the_first_best_on_validation(finished):
    result = Workdir(finished).read("result.json")
    validations = [line for line in logged(finished) if "validation/accuracy" in line]
    assert [line["step"] for line in validations] == [10, 20, 30, 40]
    best = max(
        validations, key=lambda line: (line["validation/accuracy"], -line["step"])
    )
    assert result["best"]["step"] == best["step"]
    kept = {int(path.name) for path in (finished / "checkpoints").glob("[0-9]*")}
    assert kept == {36, 40, best["step"]}


def test_a_finished_run_prints_its_result_again_and_is_not_touched(
    finished, run, capsys, monkeypatch
):
    monkeypatch.setattr(train, "train", None)  # not called
    before = (finished / "result.json").stat().st_mtime_ns
    assert run(finished, variant="plain,dropout,ema") == 0
    out = capsys.readouterr().out
    assert "test at best validation" in out and "linear" in out
    assert (finished / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("step", mostly_slow([1, 7, 10, 39, 40], 1, 10))
def test_a_run_stopped_at_any_step_ends_the_same(
    step, finished, run, tmp_path, monkeypatch
):
    variant = "plain,dropout,ema"
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert run(tmp_path, variant=variant) == 75
    assert not (tmp_path / "result.json").exists()
    assert run(tmp_path, variant=variant) == 0
    assert logged(tmp_path) == logged(finished)
    assert same(final_state(tmp_path), final_state(finished))
    ours, theirs = (Workdir(w).read("result.json") for w in (tmp_path, finished))
    assert ours["best"] == theirs["best"] and ours["last"] == theirs["last"]


def test_another_config_is_refused(finished, run, capsys):
    assert run(finished, "--config.optimizer.beta1=0.5") == 1
    error = capsys.readouterr().err
    assert "optimizer.beta1 is 0.9 there, 0.5 here" in error
    assert error.count("\n") == 1


def test_a_number_that_is_not_finite_stops_the_run(run, tmp_path, capsys):
    assert run(tmp_path, "--config.task.poison_step=13") == 1
    error = capsys.readouterr().err
    assert "not finite at step 14: loss, gradient of head/bias" in error
    assert error.count("\n") == 1
    steps = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert max(steps) == 12
    assert not (tmp_path / "result.json").exists()


def test_a_parameter_that_is_not_finite_stops_the_run(run, tmp_path, capsys):
    flags = ["--config.optimizer.learning_rate=1e38", "--config.optimizer.epsilon=0"]
    assert run(tmp_path, *flags, "--config.optimizer.warmup_fraction=0") == 1
    assert "parameter h" in capsys.readouterr().err


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    run, tmp_path, capsys, monkeypatch
):
    save = checkpoint.ocp.CheckpointManager.save

    def fill(self, step, **kwargs):
        if step > 8:
            raise OSError(28, "No space left on device")
        return save(self, step, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", fill)
        assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "step 8 is kept" in error
    assert error.count("\n") == 1
    assert run(tmp_path) == 0


def test_a_damaged_newest_checkpoint_costs_its_steps_only(
    finished, run, tmp_path, monkeypatch, capsys
):
    variant = "plain,dropout,ema"
    with monkeypatch.context() as patch:
        stop_after(patch, 23)
        run(tmp_path, variant=variant)
    (tmp_path / "checkpoints/23/host/metadata").write_text("{")
    assert run(tmp_path, variant=variant) == 0
    assert "going back to checkpoint 20" in capsys.readouterr().out
    assert logged(tmp_path) == logged(finished)
    assert same(final_state(tmp_path), final_state(finished))


def test_a_best_checkpoint_that_is_gone_is_told_and_another_chosen(
    run, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_after(patch, 33)
        run(tmp_path)
    for path in (tmp_path / "checkpoints").glob("[0-9]*"):
        if path.name != "33":
            shutil.rmtree(path)
    assert run(tmp_path) == 0
    assert "is gone" in capsys.readouterr().out
    assert Workdir(tmp_path).read("result.json")["best"]["step"] == 40


def test_evaluate_repeats_the_result_and_writes_nothing(finished, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run(finished, "--mode=evaluate", variant="plain,dropout,ema") == 0
    result = Workdir(finished).read("result.json")
    accuracy = result["best"]["test"]["accuracy"]
    assert f"{accuracy:.4f}" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_evaluate_wants_a_checkpoint(run, tmp_path, capsys):
    assert run(tmp_path, "--mode=evaluate") == 1
    assert "train first" in capsys.readouterr().err


def test_prepare_makes_the_task(run, tmp_path, monkeypatch):
    made = []
    task = builders.TASKS["fake"]
    monkeypatch.setattr(task, "prepare", lambda **arguments: made.append(arguments))
    assert run(tmp_path, "--mode=prepare") == 0
    assert made[0]["validation_size"] == 37 and "cache_dir" in made[0]


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.train.batch_size=12", "train.batch_size=12 is not a multiple of 8"),
        ("--config.task.name=fakes", "task.name='fakes' is not one of"),
        ("--config.mesh.fsdp=3", "mesh.fsdp=3"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(flag, named, run, tmp_path, capsys):
    assert run(tmp_path, flag) == 1
    assert named in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_unknown_error_keeps_its_traceback(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)


def test_a_kernel_that_cannot_run_here_is_one_line(run, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise NotImplementedError("pallas_tpu needs a TPU")

    monkeypatch.setattr(train, "train", refuse)
    assert run(tmp_path) == 1
    assert capsys.readouterr().err == "error: pallas_tpu needs a TPU\n"


def test_control_c_is_one_line(run, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    assert run(tmp_path) == 130
    assert capsys.readouterr().out.count("\n") == 1


def test_tensorboard_sees_what_the_log_has(run, tmp_path):
    pytest.importorskip("tensorboardX")
    assert run(tmp_path, "--config.log.tensorboard=True") == 0
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_share_of_time_that_waits_for_input_is_told(run, tmp_path):
    flags = ["--config.train.steps=12", "--config.task.delay=0.05"]
    assert run(tmp_path, *flags) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    share = json.loads(lines[-2])["time/input_wait_share"]
    assert 0.5 < share <= 1  # a batch takes far longer than a step
    assert Workdir(tmp_path).read("result.json")["input_wait_share"] == share


def test_two_processes_never_train_in_one_directory(run, tmp_path, capsys):
    with Workdir(tmp_path).claimed():
        assert run(tmp_path) == 1
    assert f"another process is training in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "config.json").exists()
    assert run(tmp_path) == 0


def test_config_json_is_the_resolved_config(finished):
    description = json.loads((finished / "config.json").read_text())
    assert description["variant"] == "plain,dropout,ema"
    assert description["config"]["model"]["block"]["dropout"] == 0.2
