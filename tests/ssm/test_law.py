"""Every causal layer, block and model keeps the law; the others refuse a carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.blocks import S4Block
from ssm.models import Stack
from tests.ssm import law

WIDTH, STATE, VOCABULARY = 6, 5, 11
# About a hundred float32 roundings lie between an output and the inputs here.
TOLERANCE = 100 * 2**-23


def lru(rngs, **options):
    return ssm.LRU(WIDTH, STATE, rngs=rngs, **options)


def block(rngs, **options):
    return S4Block(lru(rngs), WIDTH, rngs=rngs, **options)


def language_model(rngs, **options):
    return ssm.LanguageModel(
        block, n_layers=2, d_model=WIDTH, vocab_size=VOCABULARY, rngs=rngs, **options
    )


CAUSAL = {
    "LRU": lru,
    "LRU, scan": lambda rngs: lru(rngs, implementation="scan"),
    "LRU, associative": lambda rngs: lru(rngs, implementation="associative"),
    "S4Block": block,
    "S4Block, half gate, post-norm": lambda rngs: block(
        rngs, glu="half", prenorm=False
    ),
    "S4Block, no gate, rms": lambda rngs: block(rngs, glu="none", norm="rms"),
    "S4Block, batch norm": lambda rngs: block(rngs, norm="batch"),
    "Stack": lambda rngs: Stack(block, 2, rngs=rngs),
    "Stack, scanned": lambda rngs: Stack(block, 2, scan_layers=True, rngs=rngs),
    "LanguageModel": language_model,
    "LanguageModel, tied": lambda rngs: language_model(rngs, tied=True),
    "LanguageModel, scanned, remat": lambda rngs: language_model(
        rngs, scan_layers=True, remat=True
    ),
}
TWO_WAY = {
    "LRU": lambda rngs: lru(rngs, bidirectional=True),
    "Bidirectional": lambda rngs: ssm.Bidirectional(lru(rngs), lru(rngs)),
    "S4Block": lambda rngs: S4Block(lru(rngs, bidirectional=True), WIDTH, rngs=rngs),
}


def inputs(module, time=7):
    key = jax.random.key(1)
    if isinstance(module, ssm.LanguageModel):
        return jax.random.randint(key, (2, time), 0, VOCABULARY)
    return jax.random.normal(key, (2, time, WIDTH))


@pytest.mark.parametrize("name", CAUSAL)
def test_whole_is_chunks_is_steps(name):
    module = CAUSAL[name](nnx.Rngs(0))
    law.check_chunks_and_steps(module, inputs(module), TOLERANCE)


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_is_separate(name):
    module = CAUSAL[name](nnx.Rngs(0))
    law.check_packing(module, inputs(module), TOLERANCE)


@pytest.mark.parametrize("name", TWO_WAY)
def test_two_way_packed_is_separate(name):
    module = TWO_WAY[name](nnx.Rngs(0))
    law.check_packing(module, inputs(module), TOLERANCE)


@pytest.mark.parametrize("name", TWO_WAY)
def test_two_way_refuses_a_carry(name):
    module = TWO_WAY[name](nnx.Rngs(0))
    x = inputs(module)
    y, carry = module(x)
    assert y.shape == x.shape and carry is None and not module.causal
    for call in (
        lambda: module(x, jnp.zeros((2, STATE), jnp.complex64)),
        lambda: module.init_carry(2),
    ):
        with pytest.raises(ValueError, match="no carry"):
            call()


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_outputs_ignore_the_future(name):
    """By gradients: no output moves with a later input."""
    module = CAUSAL[name](nnx.Rngs(0))
    if isinstance(module, ssm.LanguageModel):
        later = inputs(module).at[:, 5:].set(0)
        before, _ = module(inputs(module))
        after, _ = module(later)
        np.testing.assert_array_equal(before[:, :5], after[:, :5])
        return
    gradient = jax.grad(lambda x: jnp.sum(module(x)[0][:, 4]))(inputs(module))
    assert np.all(gradient[:, 5:] == 0) and np.all(
        np.any(gradient[:, :5] != 0, axis=-1)
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_carry_is_of_fixed_shape_and_type(name):
    module = CAUSAL[name](nnx.Rngs(0))
    start = module.init_carry(2)
    _, after = module(inputs(module))

    def kind(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert kind(start) == kind(after)
