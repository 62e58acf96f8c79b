"""A run's directory belongs to one config, and its files are whole or absent."""

import pytest

from experiments import config
from experiments.errors import UserError
from experiments.workdir import Workdir
from tests.experiments.conftest import CONFIG


def description(*flags: str) -> dict:
    return config.parse(
        ["main", f"--config={CONFIG}:plain", "--workdir=w", *flags]
    ).description()


@pytest.fixture
def workdir(tmp_path) -> Workdir:
    workdir = Workdir(tmp_path / "run")
    workdir.write("config.json", description())
    (workdir.checkpoints / "10").mkdir(parents=True)
    return workdir


def test_a_new_directory_belongs_to_nobody(tmp_path):
    Workdir(tmp_path / "new").check_owner(description())
    assert not (tmp_path / "new").exists()


def test_the_same_config_is_let_in(workdir):
    workdir.check_owner(description())
    workdir.check_owner(
        description("--config.mesh.fsdp=4", "--config.log.every_steps=1")
    )


def test_another_config_is_refused_and_the_difference_shown(workdir):
    flags = ["--config.optimizer.learning_rate=0.5", "--config.train.steps=7"]
    with pytest.raises(UserError) as caught:
        workdir.check_owner(description(*flags))
    assert "optimizer.learning_rate is 0.03 there, 0.5 here" in str(caught.value)
    assert "train.steps is 40 there, 7 here" in str(caught.value)


def test_a_run_without_a_checkpoint_may_be_replaced(workdir):
    (workdir.checkpoints / "10").rmdir()
    workdir.check_owner(description("--config.train.steps=7"))


def test_a_write_that_fails_leaves_the_old_file(workdir, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: 1 / 0)  # killed just before
    with pytest.raises(ZeroDivisionError):
        workdir.write("config.json", {"config": {}})
    workdir.check_owner(description())


def test_a_file_that_is_not_json_is_refused(workdir):
    (workdir.path / "config.json").write_text('{"config": ')
    with pytest.raises(UserError, match="config.json is not JSON"):
        workdir.check_owner(description())
