"""Layers of two forms give the same by convolution, by recurrence and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import S4, S4D, S5, LiquidS4
from tests.pairwise import mostly_slow
from tests.ssm import law

WIDTH, STATE, TIME = 3, 6, 9
# About a hundred float32 roundings lie between an output and the inputs here.
TOLERANCE = 100 * 2**-23


def liquid(**options):
    return lambda mode: LiquidS4(
        WIDTH, STATE, dt_max=0.5, mode=mode, rngs=nnx.Rngs(0), **options
    )


def s4(l_max, **options):
    return lambda mode: S4(
        WIDTH, STATE, l_max=l_max, mode=mode, rngs=nnx.Rngs(0), **options
    )


LAYERS = {
    "S4, longer than l_max": s4(6, n_ssm=3),
    "S4D": lambda mode: S4D(WIDTH, STATE, mode=mode, rngs=nnx.Rngs(0)),
    "S4D, bilinear": lambda mode: S4D(
        WIDTH, STATE, discretization="bilinear", n_ssm=1, mode=mode, rngs=nnx.Rngs(0)
    ),
    "S5": lambda mode: S5(WIDTH, STATE, mode=mode, rngs=nnx.Rngs(0)),
    "LiquidS4, none": liquid(liquid="none"),
    "LiquidS4, kb": liquid(liquid="kb", order=3),
    "LiquidS4, pb": liquid(liquid="pb", order=4),
    "LiquidS4, pb, window": liquid(liquid="pb", order=2, window=3),
    "LiquidS4, pb, all": liquid(liquid="pb", order=3, window=None),
}
TWO_WAY = {
    "S4, longer than l_max": s4(6, bidirectional=True),
    "S4D": lambda mode: S4D(
        WIDTH, STATE, bidirectional=True, mode=mode, rngs=nnx.Rngs(0)
    ),
    "S5": lambda mode: S5(
        WIDTH, STATE, bidirectional=True, mode=mode, rngs=nnx.Rngs(0)
    ),
    "LiquidS4, kb": liquid(liquid="kb", bidirectional=True),
    "LiquidS4, pb": liquid(liquid="pb", bidirectional=True),
}


def inputs():
    return jax.random.normal(jax.random.key(1), (2, TIME, WIDTH))


def started(module):
    """A carry that is not zero."""
    start = module.init_carry(2)
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    draw = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, draw)


SLOW = {
    "S4, longer than l_max",
    "S4D, bilinear",
    "LiquidS4, none",
    "LiquidS4, kb",
    "LiquidS4, pb",
    "LiquidS4, pb, all",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in LAYERS
    ],
)
def test_convolution_is_recurrence(name):
    """With a carry given and taken, whole, in chunks and in steps, in all gradients."""
    x, convolution = inputs(), LAYERS[name]("convolution")
    carry = started(convolution)

    def whole(module, x):
        return module(x, carry)

    def chunks(module, x):
        y, middle = module(x[:, :4], carry)
        z, last = module(x[:, 4:], middle)
        return jnp.concatenate([y, z], axis=1), last

    def steps(module, x):  # of the same kind, each one a convolution
        return law.run_steps(module, x, None, carry)

    want = law.value_and_gradients(whole, LAYERS[name]("recurrent"), x)
    for run in (whole, chunks, steps):
        law.same(law.value_and_gradients(run, convolution, x), want, TOLERANCE)
    law.same(law.value_and_gradients(whole, LAYERS[name](None), x), want, TOLERANCE)


@pytest.mark.parametrize("name", mostly_slow(TWO_WAY, "S4D", "S5", "LiquidS4, pb"))
def test_two_way_convolution_is_recurrence(name):
    def whole(module, x):
        return module(x)[0]

    runs = [
        law.value_and_gradients(whole, TWO_WAY[name](mode), inputs())
        for mode in ("convolution", "recurrent", None)
    ]
    law.same(runs[0], runs[1], TOLERANCE)
    law.same(runs[2], runs[1], TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_a_named_convolution_refuses_a_reset(name):
    reset = jnp.zeros((2, TIME), bool)
    with pytest.raises(ValueError, match="with reset the steps differ"):
        LAYERS[name]("convolution")(inputs(), reset=reset)


@pytest.mark.parametrize("name", ["S4D", "S5", "LiquidS4, none"])
def test_steps_of_other_lengths(name):
    """An input that lasts for two steps is the same as one step of twice the length."""
    x, layer = inputs(), LAYERS[name](None)
    twice = jnp.repeat(x, 2, axis=1)
    run = jax.jit(lambda x, dt: layer(x, dt=dt))
    y, last = run(x, jnp.full((2, TIME), 2.0))
    z, want = run(twice, jnp.ones((2, 2 * TIME)))
    law.same((y, last), (z[:, 1::2], want), TOLERANCE)
    law.same(run(x, jnp.ones((2, TIME))), layer(x), TOLERANCE)
    np.testing.assert_raises_regex(
        ValueError, "with dt the steps", LAYERS[name]("convolution"), x, dt=x[..., 0]
    )


@pytest.mark.parametrize("name", ["S4D", "LiquidS4, kb"])
def test_padding_told_by_a_mask_is_convolved(name):
    """At valid steps it gives what a reset gives, and without padding the same."""
    x, layer = inputs(), TWO_WAY[name](None)
    lengths = jnp.array([TIME, 4])
    mask = jnp.arange(TIME)[None] < lengths[:, None]
    reset = jnp.arange(TIME)[None] == lengths[:, None]
    got, _ = TWO_WAY[name]("convolution")(x, mask=mask, reset=reset)
    want, _ = layer(x, reset=reset)
    law.same(got[mask], want[mask], TOLERANCE)
    alone, _ = layer(x[1:, :4])
    law.same(got[1:, :4], alone, TOLERANCE)
