"""How batches and parameters lie on eight devices."""

import numpy as np
import pytest

from experiments import distributed
from experiments.errors import UserError


def test_the_mesh_takes_what_fsdp_leaves():
    mesh = distributed.make_mesh(-1, 2)
    assert mesh.shape == {"data": 4, "fsdp": 2, "time": 1}
    mesh = distributed.make_mesh(-1, 2, 2)
    assert mesh.shape == {"data": 2, "fsdp": 2, "time": 2}
    for data, fsdp, time in ((-1, 3, 1), (4, 1, 1), (8, 2, 1), (-1, 2, 3)):
        with pytest.raises(UserError, match=rf"mesh.fsdp={fsdp} .*time={time} .* 8"):
            distributed.make_mesh(data, fsdp, time)


def test_a_batch_is_split_over_all_devices():
    mesh = distributed.make_mesh(-1, 2)
    rows = np.arange(32).reshape(16, 2)
    batch = distributed.to_global({"x": rows}, distributed.by_batch(mesh))
    assert (np.asarray(batch["x"]) == rows).all()
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 2)}


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh = distributed.make_mesh(-1, 1)
    distributed.check_batch("train.batch_size", 16, mesh, 2)
    with pytest.raises(UserError, match="train.batch_size=12 .* 8 devices"):
        distributed.check_batch("train.batch_size", 12, mesh)
    with pytest.raises(UserError, match="8 devices x 2 micro-batches"):
        distributed.check_batch("train.batch_size", 8, mesh, 2)
    distributed.check_batch("train.batch_size", 2, distributed.make_mesh(-1, 1, 4))
