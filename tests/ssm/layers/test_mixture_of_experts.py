"""The mixture of experts against a loop over tokens; its balance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import MixtureOfExperts, auxiliary_loss
from ssm.layers.mixture_of_experts import balance_loss
from tests.ssm.law import QUICK_COMPILE

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


def make(top_k=2, **options):
    return MixtureOfExperts(4, 5, n_experts=3, top_k=top_k, rngs=nnx.Rngs(0), **options)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_equals_a_loop_over_tokens(top_k):
    """Also where all tokens want the same expert: none is dropped."""
    layer = make(top_k, param_dtype=jnp.float64)
    layer.router.kernel[...] = layer.router.kernel[...].at[0, 1].set(9.0)
    x = jax.random.normal(jax.random.key(0), (2, 7, 4), jnp.float64)
    x = x.at[0, :, 0].set(3.0)
    router = np.asarray(layer.router.kernel[...])
    gate, up, down = (np.asarray(p[...]) for p in (layer.gate, layer.up, layer.down))
    want = np.zeros(x.shape)
    for place in np.ndindex(2, 7):
        token = np.asarray(x[place])
        p = np.exp(token @ router)
        best = np.argsort(-p)[:top_k]
        for e in best:
            g = token @ gate[e]
            hidden = g / (1 + np.exp(-g)) * (token @ up[e])
            want[place] += p[e] / p[best].sum() * (hidden @ down[e])
    np.testing.assert_allclose(jit(layer)(x), want, atol=1e-12)
    assert layer.route(x)[1][0, :, 1].all()


def test_balance_loss():
    even = jnp.full((6, 3), 1 / 3)
    turns = jnp.arange(3)[None] == jnp.arange(6)[:, None] % 3
    np.testing.assert_allclose(balance_loss(even, turns), 1, atol=1e-6)
    np.testing.assert_allclose(balance_loss(even, ~turns), 2, atol=1e-6)
    alone = jnp.broadcast_to(jnp.arange(3)[None] == 0, (6, 3))
    np.testing.assert_allclose(balance_loss(alone * 1.0, alone), 3, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_balance_is_left_behind_in_training_alone():
    x = jax.random.normal(jax.random.key(0), (2, 7, 4), jnp.float64)
    layer, plain = (
        make(param_dtype=jnp.float64, balance_weight=weight) for weight in (0.3, 0.0)
    )
    np.testing.assert_array_equal(layer(x), plain(x))
    assert auxiliary_loss(layer) == 0 and auxiliary_loss(plain) is None
    np.testing.assert_array_equal(layer(x, train=True), plain(x, train=True))
    want = 0.3 * balance_loss(*layer.route(x))
    np.testing.assert_allclose(auxiliary_loss(layer), want, atol=1e-12)
    assert auxiliary_loss(plain) is None


def test_types():
    layer = make(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = jnp.ones((3, 4))
    assert jit(layer)(x).dtype == jnp.bfloat16
    assert layer.route(x)[0].dtype == jnp.float32


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="top_k=4, wanted 1 to n_experts=3"):
        make(top_k=4)
