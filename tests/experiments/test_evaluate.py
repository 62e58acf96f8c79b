"""Every example counts once, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import distributed
from experiments.evaluate import evaluate, make_eval_step, pad
from tests.experiments.fake import FakeModel, FakeTask

QUIET = {"poison_step": -1, "delay": 0.0, "cache_dir": "", "source": ""}


def test_padding_repeats_the_first_row_with_weight_zero():
    batch = {"x": np.array([[1, 2], [3, 4]]), "weight": np.ones(2, np.float32)}
    padded = pad(batch, 4)
    assert padded["x"].tolist() == [[1, 2], [3, 4], [1, 2], [1, 2]]
    assert padded["weight"].tolist() == [1, 1, 0, 0]
    assert batch["weight"].tolist() == [1, 1]
    assert pad(batch, 2)["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("size", [1, 8, 37])
@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_the_last_partial_batch_is_counted_exactly(size, batch_size):
    task = FakeTask(validation_size=size, **QUIET)
    model = FakeModel(8, norm="none", dropout=0.0, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    params = nnx.to_pure_dict(params)
    mesh = distributed.make_mesh(-1, 2)
    sharding = distributed.by_batch(mesh)
    step = jax.jit(make_eval_step(graphdef, task))
    got = evaluate(step, task, "validation", params, {}, batch_size, sharding)

    batch = task.eval_batch("validation", np.arange(size))
    logits = model(batch["x"], key=None, train=False)
    right = jnp.argmax(logits, axis=1) == batch["label"]
    assert got["examples"] == got["weights"]["accuracy"] == size
    assert got["accuracy"] == int(right.sum()) / size


def test_a_task_that_loses_examples_is_caught():
    class Forgetful(FakeTask):
        def eval_batch(self, split, indices):
            batch = super().eval_batch(split, indices)
            batch["weight"][0] = 0
            return batch

    task = Forgetful(validation_size=16, **QUIET)
    model = FakeModel(8, norm="none", dropout=0.0, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    sharding = distributed.by_batch(distributed.make_mesh(-1, 1))
    step = make_eval_step(graphdef, task)
    with pytest.raises(AssertionError, match="evaluated 15.0 of 16"):
        params = nnx.to_pure_dict(params)
        evaluate(step, task, "validation", params, {}, 16, sharding)
