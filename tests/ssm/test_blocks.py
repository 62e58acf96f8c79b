"""The residual block: its formula, its dropout, its batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm import LRU
from ssm.blocks import S4Block

WIDTH = 4


def make(**options):
    rngs = nnx.Rngs(0)
    return S4Block(LRU(WIDTH, 3, rngs=rngs), WIDTH, rngs=rngs, **options)


def inputs(batch=2, time=7):
    return jax.random.normal(jax.random.key(1), (batch, time, WIDTH))


@pytest.mark.parametrize("glu", ["full", "half", "half2", "none"])
@pytest.mark.parametrize("prenorm", [True, False])
def test_formula(glu, prenorm):
    block, x = make(glu=glu, prenorm=prenorm), inputs()
    y = block.mixer(block.norm(x) if prenorm else x)[0]
    v = nnx.gelu(y)
    if glu == "full":
        kernel, bias = block.gate.kernel[...], block.gate.bias[...][None, None]
        w = v @ kernel + bias
        v = w[..., :WIDTH] * jax.nn.sigmoid(w[..., WIDTH:])
    elif glu != "none":
        kernel, bias = block.gate.kernel[...], block.gate.bias[...][None, None]
        v = (v if glu == "half" else y) * jax.nn.sigmoid(v @ kernel + bias)
    want = x + v if prenorm else block.norm(x + v)
    np.testing.assert_allclose(block(x)[0], want, atol=1e-6)


def test_dropout_needs_a_key_and_is_shared_over_time():
    block, x = make(dropout=0.5), inputs(batch=3)
    np.testing.assert_array_equal(block(x)[0], make()(x)[0])
    same = block(x, key=jax.random.key(0))[0]
    np.testing.assert_array_equal(same, block(x, key=jax.random.key(0))[0])
    assert np.any(same != block(x, key=jax.random.key(1))[0])
    dropped = same == x  # where the second mask is 0, the residual passes alone
    np.testing.assert_array_equal(dropped.all(axis=1), dropped.any(axis=1))
    assert 0 < dropped.mean() < 1


def test_batch_norm_reads_only_valid_steps():
    x = inputs(batch=2, time=5)
    mask = jnp.arange(5)[None] < jnp.array([5, 2])[:, None]
    spoiled = jnp.where(mask[..., None], x, 1e6)
    one, two = make(norm="batch"), make(norm="batch")
    y, _ = one(x, mask=mask, train=True)
    z, _ = two(spoiled, mask=mask, train=True)
    np.testing.assert_allclose(
        np.where(mask[..., None], y, 0), np.where(mask[..., None], z, 0), atol=1e-5
    )
    valid = np.asarray(x)[np.asarray(mask)]
    np.testing.assert_allclose(one.norm.mean[...], 0.01 * valid.mean(0), atol=1e-6)
    np.testing.assert_allclose(one.norm.var[...], 0.99 + 0.01 * valid.var(0), atol=1e-6)
    np.testing.assert_allclose(one.norm.mean[...], two.norm.mean[...], atol=1e-7)


def test_batch_norm_without_train_uses_the_running_statistics():
    block, x = make(norm="batch"), inputs()
    before = jax.tree.map(jnp.copy, nnx.state(block, nnx.BatchStat))
    block(x, key=jax.random.key(0))  # a key does not imply train
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(block, nnx.BatchStat))


def test_holds_parameters_and_nothing_else():
    _, _, rest = nnx.split(make(dropout=0.1), nnx.Param, ...)
    assert not jax.tree.leaves(rest)


@pytest.mark.parametrize("option", [{"glu": "double"}, {"norm": "group"}])
def test_unknown_options_name_the_known_ones(option):
    with pytest.raises(ValueError, match=r"is unknown, wanted '"):
        make(**option)
