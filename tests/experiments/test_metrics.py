"""Scalars survive packing, sums divide once, and the log is cut where a run resumes."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments import metrics
from experiments.errors import UserError


def test_packed_gives_back_the_tree():
    tree = {"b": (jnp.float32(1.5), jnp.int32(2)), "a": {"c": jnp.bfloat16(3)}}
    packed = jax.jit(metrics.Packed.pack)(tree)
    assert packed.values.shape == (3,)
    assert packed.fetch() == {"b": (1.5, 2.0), "a": {"c": 3.0}}


def test_sums_are_added_before_they_are_divided():
    sums = metrics.add({}, {"accuracy": (1.0, 1.0)})
    sums = metrics.add(sums, {"accuracy": (0.0, 3.0)})
    assert metrics.means(sums) == {"accuracy": 0.25}


def test_non_finite_leaves_are_named():
    tree = {"block": {"0": float("nan"), "1": 1.0}, "head": float("inf")}
    assert metrics.non_finite(tree) == ["block/0", "head"]
    assert not metrics.all_finite(tree)
    assert metrics.all_finite({"block": 1.0})


def test_reopening_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = metrics.JsonLines(path, 0)
    for step in (1, 2, 2, 3):
        log.write(step, {"train/loss": 1 / step})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 1, "train')
    log = metrics.JsonLines(path, 2)
    log.write(3, {"train/loss": 7.0})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 3]
    assert lines[-1] == {"step": 3, "train/loss": 7.0}


def test_a_written_line_is_on_disk_before_the_file_is_closed(tmp_path):
    log = metrics.JsonLines(tmp_path / "metrics.jsonl", 0)
    log.write(1, {"train/loss": 0.1})
    assert (
        tmp_path / "metrics.jsonl"
    ).read_text() == '{"step": 1, "train/loss": 0.1}\n'
    log.close()


@pytest.mark.parametrize("package", ["tensorboardX", "wandb"])
def test_a_sink_that_is_not_installed_names_the_command(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        if package == "wandb":
            metrics.Wandb(tmp_path, None)
        else:
            metrics.TensorBoard(tmp_path, 0)


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = metrics.TensorBoard(tmp_path, 0)
    sink.write(1, {"train/loss": 1.0})
    sink.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
