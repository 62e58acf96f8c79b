"""TransNormerLLM as a model: a worked example, published sizes, slopes, padding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import ssm
from ssm import initializers
from ssm.models import Stack, transnormer
from ssm.models.stack import Coupled
from tests.ssm import law
from tests.ssm.filling import wave

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)


def tiny(**options):
    return transnormer.transnormer(
        transnormer.TINY, vocab_size=11, rngs=nnx.Rngs(0), **options
    )


@pytest.mark.usefixtures("x64")
def test_worked_example():
    """Filled from one wave, the tensors numbered in the order of their names."""
    size = transnormer.Size(8, 3, 2, 12)
    model = transnormer.transnormer(
        size, vocab_size=11, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    # The example has an output map of its own.
    head = nnx.Linear(8, 11, use_bias=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.head = nnx.data(head)
    graphdef, state = nnx.split(model)
    params = traverse_util.flatten_dict(nnx.to_pure_dict(state))

    filled = {("encoder", "embedding"): wave(0, 11, 8), ("head", "kernel"): None}
    filled["head", "kernel"] = wave(16, 11, 8).T
    for i in range(3):
        block, k = ("stack", "blocks", i), 1 + 5 * i
        filled[*block, "mlp", "gate", "kernel"] = wave(k, 12, 8).T
        filled[*block, "mlp", "up", "kernel"] = wave(k + 1, 12, 8).T
        filled[*block, "mlp", "down", "kernel"] = wave(k + 2, 8, 12).T
        filled[*block, "mixer", "out", "kernel"] = wave(k + 3, 8, 8).T
        parts = np.split(wave(k + 4, 32, 8).T, 4, axis=1)
        for name, kernel in zip(("query", "key", "value", "gate"), parts, strict=True):
            filled[*block, "mixer", name, "kernel"] = jnp.asarray(kernel)
    theta = ("stack", "blocks", 0, "mixer", "theta")
    filled[theta] = params[theta]
    assert filled.keys() == params.keys()
    model = nnx.merge(graphdef, traverse_util.unflatten_dict(filled))
    logits, _ = jit(model)(jnp.array([[1, 4, 2, 7, 3]]))
    want = [2.1938345, 0.849558, -1.1601751, -2.2611458]
    want += [-1.5909672, 0.325412, 1.9868968, 2.0920506]
    # From a float32 run of seven digits.
    np.testing.assert_allclose(logits[0, -1, :8], want, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "vocab_size", "count"),
    [
        ("385m", 50_272, 384_926_720),
        pytest.param("7b", 64_000, 6_836_719_616, marks=pytest.mark.slow),
    ],
)
def test_published_parameter_counts(size, vocab_size, count):
    model = nnx.eval_shape(
        lambda: transnormer.transnormer(
            transnormer.RELEASED[size], vocab_size=vocab_size, rngs=nnx.Rngs(0)
        )
    )
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(math.prod(p.shape) for p in params) == count


def test_each_layer_has_its_slopes():
    """Of a model and of its layers one by one; scanned and not."""
    blocks = transnormer.transnormer_blocks(transnormer.TINY, turned=False)
    slopes = initializers.decay_slopes(2, 3, kind="transnormer")
    x = jax.random.normal(jax.random.key(0), (2, 7, 12))
    stack = Stack(blocks, 3, rngs=nnx.Rngs(0))

    @jit
    def by_hand(x):
        for block, own in zip(stack.blocks, slopes, strict=True):
            x, _ = block(x, slopes=jnp.asarray(own))
        return x

    want = by_hand(x)
    np.testing.assert_allclose(jit(stack)(x)[0], want, atol=1e-5)
    scanned = Stack(blocks, 3, scan_layers=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jit(scanned)(x)[0], want, atol=1e-5)
    # Two builders in turn, and a layer left over: 3 = 2 + 1.
    assert isinstance(blocks, Coupled)
    turns = Coupled((*blocks.make_block, *blocks.make_block), blocks.make_coupling)
    rounds = Stack(turns, 3, scan_layers=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jit(rounds)(x)[0], want, atol=1e-5)


def test_padding_leaves_no_trace():
    """On the left, before a reset, and on the right, after one."""
    model = tiny()
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
    reset = jnp.zeros((2, 9), bool).at[0, 6].set(True).at[1, 5].set(True)
    run = jit(lambda tokens, reset: model(tokens, reset=reset))
    logits, carry = run(tokens, reset)
    right, _ = run(tokens[:1, :6], reset[:1, :6])
    np.testing.assert_allclose(logits[:1, :6], right, atol=1e-5)
    left, after = run(tokens[1:, 5:], reset[1:, 5:])
    np.testing.assert_allclose(logits[1:, 5:], left, atol=1e-5)
    law.same(jax.tree.map(lambda leaf: leaf[1:], carry), after, 1e-5)


def test_classifier():
    model = ssm.SequenceClassifier(
        transnormer.transnormer_blocks(transnormer.TINY),
        n_layers=3,
        d_model=12,
        n_classes=4,
        vocab_size=11,
        rngs=nnx.Rngs(0),
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
    logits = jit(model)(tokens, jnp.array([9, 5]))
    alone = jit(model)(tokens[1:, :5])
    np.testing.assert_allclose(logits[1:], alone, atol=1e-5)


def test_the_lowest_layer_alone_is_turned():
    mixers = [block.mixer for block in tiny().stack.blocks]
    assert [mixer.turned for mixer in mixers] == [True, False, False]
    carry = jax.eval_shape(lambda: tiny().init_carry(5))
    assert carry[0]["state"].shape == (5, 2, 12, 6)
    assert [state.shape for state in carry[1:]] == 2 * [(5, 2, 6, 6)]


def test_embedding_scale():
    assert tiny().embedding_scale == pytest.approx(math.sqrt(12))
    assert tiny(scale_embedding=False).embedding_scale == 1
