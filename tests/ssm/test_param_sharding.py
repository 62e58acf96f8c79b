"""How parameters lie on eight devices."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from ssm import param_sharding

SHAPES = {
    "wide": (3, 50_000),
    "odd": (50_001, 2),
    "none": (501, 503),
    "small": (4, 4),
    "scalar": (),
}


def specs(**axes):
    mesh = jax.make_mesh(
        tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes)
    )
    tree = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in SHAPES.items()}
    return {name: s.spec for name, s in param_sharding.by_size(mesh, tree).items()}


def test_large_parameters_are_split_over_their_largest_axis_that_divides():
    whole = dict.fromkeys(SHAPES, PartitionSpec())
    split = {"wide": PartitionSpec(None, "fsdp"), "odd": PartitionSpec(None, "fsdp")}
    assert specs(data=4, fsdp=2) == whole | split
    assert specs(data=8, fsdp=1) == specs(data=8) == whole
