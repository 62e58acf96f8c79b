"""Every config makes a task and a model that fit together."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import digits
from configs.copying import delayed
from configs.lra import listops
from experiments import builders


def small(config, cache_dir):
    """The same, with little data and short rows."""
    config.data.cache_dir = str(cache_dir)
    if config.task.name == "listops":
        config.task.update(train_size=40, validation_size=8, test_size=8)
        config.task.update(min_length=10, max_length=64)
    if config.task.name == "delayed_copy":
        config.task.delay = 20
    return config


@pytest.mark.parametrize(
    "config",
    [
        digits.get_config(),
        delayed.get_config(),
        listops.get_config("lru"),
        listops.get_config("lru,tiny"),
    ],
    ids=["digits", "delayed", "listops", "listops_tiny"],
)
def test_task_and_model_fit(config, tmp_path):
    config = small(config, tmp_path)
    task = builders.build_task(config)
    create = builders.build_model(config, task)
    model = nnx.eval_shape(lambda: create(jax.random.key(0)))
    graphdef, state = nnx.split(model)
    train = task.train_batch(0, 0, 4)
    test = task.eval_batch("test", np.arange(4))
    for batch, training in ((train, True), (test, False)):

        def loss(state, batch, training=training):
            return task.loss(nnx.merge(graphdef, state), batch, train=training)

        total, weight, sums = jax.eval_shape(loss, state, batch)
        assert total.shape == weight.shape == ()
        assert {"loss", "accuracy"} <= set(sums)
