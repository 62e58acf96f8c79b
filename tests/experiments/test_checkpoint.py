"""Damage and full disks cost the newest checkpoint at most, and are told in a line."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.checkpoint import Checkpoints, Counters
from experiments.errors import UserError

STATE = {"step": jnp.int32(0), "params": {"a": jnp.arange(6.0).reshape(2, 3)}}


def target(state=STATE):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def counters(step: int, best: int | None = None) -> Counters:
    best_result = None if best is None else {"step": best}
    return Counters(step=step, sums={"loss": (0.1, 3.0)}, best=best_result)


def state(step: int):
    return STATE | {"step": jnp.int32(step)}


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A directory with checkpoints of steps 1, 2 and 3."""
    directory = tmp_path_factory.mktemp("three")
    checkpoints = Checkpoints(directory / "checkpoints", keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(state(step), counters(step))
    checkpoints.close()
    return directory


@pytest.fixture
def directory(three, tmp_path) -> Path:
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run/checkpoints"


def test_what_is_saved_comes_back(directory):
    checkpoints = Checkpoints(directory)
    restored, host = checkpoints.restore_latest(target())
    assert restored["step"] == 3
    assert (restored["params"]["a"] == STATE["params"]["a"]).all()
    assert host == Counters(step=3, sums={"loss": [0.1, 3.0]})
    checkpoints.close()


def test_nothing_saved_is_nothing_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore_latest(target()) is None
    checkpoints.close()


def test_the_last_few_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    for step in range(1, 6):
        checkpoints.save(state(step), counters(step, best=min(step, 2)))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.close()


DAMAGES = {
    "arrays are gone": lambda newest: shutil.rmtree(newest / "state"),
    "an array file is gone": lambda newest: next(newest.glob("state/d/*")).unlink(),
    "an array file is cut": lambda newest: cut(next(newest.glob("state/d/*"))),
    "the index is cut": lambda newest: cut(newest / "state/manifest.ocdbt"),
    "the metadata are gone": lambda newest: (newest / "state/_METADATA").unlink(),
    "the metadata are cut": lambda newest: cut(newest / "state/_METADATA"),
    "the counters are gone": lambda newest: (newest / "host/metadata").unlink(),
    "the counters are cut": lambda newest: cut(newest / "host/metadata"),
    "everything is gone": lambda newest: (shutil.rmtree(newest), newest.mkdir()),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_checkpoint_is_told_and_passed_over(damage, directory, capfd):
    damage(directory / "3")
    said: list[str] = []
    checkpoints = Checkpoints(directory, keep_last=3, say=said.append)
    restored, host = checkpoints.restore_latest(target())
    assert restored["step"] == 2 and host.step == 2
    assert len(said) == 1 and "\n" not in said[0]
    assert "checkpoint 3" in said[0] and "going back to checkpoint 2" in said[0]
    assert (directory.parent / "unreadable/3.0").exists()
    checkpoints.save(state(3), counters(3))  # its place is free again
    checkpoints.close()
    assert "Traceback" not in capfd.readouterr().err


def test_if_all_are_damaged_the_run_does_not_start_afresh(directory):
    for step in (1, 2, 3):
        cut(directory / str(step) / "host/metadata")
    checkpoints = Checkpoints(directory, say=lambda line: None)
    with pytest.raises(UserError, match="checkpoint 1 .* none before it"):
        checkpoints.restore_latest(target())
    checkpoints.close()


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"a": jnp.zeros((2, 3), jnp.bfloat16)}, "params/a is float32.* bfloat16"),
        ({"a": jnp.zeros((3, 2))}, r"params/a is float32\[2, 3\]"),
        ({"a": jnp.zeros((2, 3)), "b": jnp.zeros(1)}, "params/b is absent there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(params, named, directory):
    checkpoints = Checkpoints(directory)
    with pytest.raises(UserError, match=named):
        checkpoints.restore_latest(target(STATE | {"params": params}))
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


def test_a_save_that_fails_names_the_last_good_checkpoint(directory, monkeypatch):
    checkpoints = Checkpoints(directory, keep_last=3)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match="No space left.*step 3 is kept"):
        checkpoints.save(state(4), counters(4))
    assert checkpoints.restore_latest(target())[1].step == 3
    checkpoints.close()
