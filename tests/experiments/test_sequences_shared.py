"""Training with the sequences themselves shared by devices, `mesh.time`."""

import jax
import numpy as np
import pytest

from experiments import config, distributed, program
from experiments.errors import UserError

DELAYED = "--config=configs/copying/delayed.py:lru"
SMALL = (
    "--config.task.delay=12",  # 32 time steps
    "--config.task.eval_size=8",
    "--config.model.d_model=16",
    "--config.model.mixer.d_state=16",
    "--config.train.batch_size=8",
    "--config.evaluate.batch_size=8",
)


def build(*overrides):
    command = config.parse(["main", DELAYED, "--workdir=unused", *SMALL, *overrides])
    return program.build(command.config)


def two_updates(built):
    """The parameters after them, and the sums of the second."""
    sharding = distributed.by_batch(built.mesh)
    with jax.set_mesh(built.mesh):
        state, key = built.init(), built.key()
        for step in range(2):
            batch = distributed.to_global(built.task.train_batch(0, step, 8), sharding)
            state, packed = built.train_step(state, batch, key)
    return jax.device_get(state["params"]), packed.fetch()["sums"]


@pytest.mark.slow
def test_the_same_updates():
    # Of the sums of float32 that change their order the worst is in Adam: an update of
    # a parameter whose gradient is nearly zero.
    params, sums = two_updates(build())
    shared, shared_sums = two_updates(
        build("--config.mesh.time=4", "--config.mesh.fsdp=2")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), shared, params
    )
    assert sums["loss"] == pytest.approx(shared_sums["loss"], rel=1e-5)


def test_lengths_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"mesh.time=8: .* 34 time steps .* of size 8"):
        build("--config.mesh.time=8", "--config.task.delay=14")
