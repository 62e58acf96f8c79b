"""Recurrences cut into chunks of time are the whole, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from ssm.layers import S4D, LiquidS4, channel_states
from tests.pairwise import mostly_slow
from tests.ssm import law

BATCH, TIME, WIDTH, STATES = 2, 11, 3, 4
LAYERS = {
    "S4D": functools.partial(S4D, mode="recurrent"),
    "S4D, both ways": functools.partial(S4D, mode="recurrent", bidirectional=True),
    "exact": functools.partial(LiquidS4, liquid="exact", dt_max=0.5),
    "order": functools.partial(LiquidS4, liquid="order", order=3, dt_max=0.5),
    "kb": functools.partial(LiquidS4, liquid="kb", mode="recurrent", dt_max=0.5),
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_chunks_are_the_whole(name, steps, monkeypatch):
    """Of one step, and of four with three left over; documents start in a chunk."""
    layer = LAYERS[name](WIDTH, STATES, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (BATCH, TIME, WIDTH))
    reset = jnp.zeros((BATCH, TIME), bool).at[0, 4].set(True).at[1, 6].set(True)

    def run(layer, x):
        return layer(x, reset=reset)

    whole = law.value_and_gradients(run, layer, x)
    monkeypatch.setattr(channel_states, "LEAST_STEPS", steps)
    monkeypatch.setitem(channel_states.MOST_STATES, "cpu", 1)
    traced = []
    scan = jax.lax.scan
    monkeypatch.setattr(
        channel_states.lax, "scan", lambda *args: traced.append(1) or scan(*args)
    )
    chunks = law.value_and_gradients(run, layer, x)
    assert traced  # there were several
    # A few roundings of numbers of about one lie between the two orders of sums.
    law.same(chunks, whole, 30 * 2.0**-23)


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("name", mostly_slow(list(LAYERS), "S4D", "order"))
def test_under_a_mesh(name, chunks, monkeypatch):
    """Time sharded and not, and inside of a `shard_map` over the batch."""
    if chunks:
        monkeypatch.setitem(channel_states.MOST_STATES, "cpu", 1)
    layer = LAYERS[name](4, STATES, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 8, 4))

    @jax.jit
    def gradient(x):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(layer(x)[0])))(x)

    want, tolerance = gradient(x), 100 * 2.0**-23
    for sizes in ({"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2, "time": 2}):
        types = (AxisType.Auto,) * len(sizes)
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), types)
        with jax.set_mesh(mesh):
            law.same(gradient(x), want, tolerance)
    mesh = jax.make_mesh((4,), ("rows",), (AxisType.Auto,))
    rows = PartitionSpec("rows")
    run = jax.shard_map(lambda x: layer(x)[0], mesh=mesh, in_specs=rows, out_specs=rows)
    law.same(jax.jit(run)(x), layer(x)[0], tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_no_steps(name):
    layer = LAYERS[name](3, STATES, rngs=nnx.Rngs(0))
    y, last = layer(jnp.zeros((2, 0, 3)))
    assert y.shape == (2, 0, 3)
    if layer.causal:
        law.same(last, layer.init_carry(2), 0)
