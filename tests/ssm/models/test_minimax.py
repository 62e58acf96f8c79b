"""MiniMax as a model: a worked example, its published size, padding, experts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import ssm
from ssm.layers import auxiliary_loss
from ssm.models import minimax
from tests.ssm import law
from tests.ssm.filling import wave

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)


def tiny(**options):
    return minimax.minimax(minimax.TINY, vocab_size=11, rngs=nnx.Rngs(0), **options)


def per_head(weight, heads):
    """Rows q, k, v of each head in turn -> the kernels of the three."""
    parts = np.moveaxis(weight.reshape(heads, 3, -1, weight.shape[1]), 1, 0)
    return [part.reshape(-1, weight.shape[1]).T for part in parts]


@pytest.mark.usefixtures("x64")
def test_worked_example():
    """Filled from one wave, the tensors numbered in the order of their names."""
    size = minimax.Size(8, 3, 2, 4, 1, 8, n_experts=2, top_k=1, every=2)
    model = minimax.minimax(
        size,
        vocab_size=11,
        rope_fraction=1.0,
        rope_theta=1e6,
        alpha=3.5,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    graphdef, state = nnx.split(model)
    own = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    filled = {("head", "kernel"): wave(0, 11, 8).T}
    filled["encoder", "embedding"] = wave(1, 11, 8)
    for i in range(3):
        block, k = ("stack", "blocks", i), 2 + 9 * i
        filled[*block, "norm", "scale"] = wave(k, 8)
        filled[*block, "mlp", "down"] = wave(k + 1, 2, 8, 8).transpose(0, 2, 1)
        gate, up = np.split(wave(k + 2, 2, 16, 8).transpose(0, 2, 1), 2, axis=2)
        filled[*block, "mlp", "gate"], filled[*block, "mlp", "up"] = gate, up
        filled[*block, "mlp", "router", "kernel"] = wave(k + 3, 2, 8).T
        filled[*block, "mlp_norm", "scale"] = wave(k + 4, 8)
        if i == 1:
            names, rows = ("key", "out", "query", "value"), (4, 8, 8, 4)
            kernels = {
                name: wave(k + 5 + j, row, 8).T
                for j, (name, row) in enumerate(zip(names, rows, strict=True))
            }
        else:
            filled[*block, "mixer", "norm", "scale"] = wave(k + 5, 8)
            kernels = {"out": wave(k + 6, 8, 8).T, "gate": wave(k + 7, 8, 8).T}
            parts = per_head(wave(k + 8, 24, 8), 2)
            kernels |= dict(zip(("query", "key", "value"), parts, strict=True))
        for name, kernel in kernels.items():
            filled[*block, "mixer", name, "kernel"] = kernel
    filled["norm", "scale"] = wave(29, 8)
    assert filled.keys() == own.keys()
    for path, value in filled.items():
        assert value.shape == own[path].shape, path
    params = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(filled))
    logits, _ = jit(nnx.merge(graphdef, params))(jnp.array([[1, 4, 2, 7, 3]]))
    want = [-0.10619023, -0.1324722, -0.05498905, 0.06556688]
    want += [0.13476444, 0.09840137, -0.01503924, -0.11669965]
    np.testing.assert_allclose(logits[0, -1, :8], want, atol=1e-8)  # their digits


def test_published_parameter_count():
    model = nnx.eval_shape(
        lambda: minimax.minimax(
            minimax.RELEASED["text-01"], scan_layers=True, rngs=nnx.Rngs(0)
        )
    )
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(math.prod(p.shape) for p in params) == 456_089_655_296
    blocks = model.stack.blocks
    assert blocks[0].alpha == pytest.approx(3.5565588200778455)
    kinds = [type(block.mixer) for block in blocks]
    assert kinds == 7 * [ssm.layers.LightningAttention] + [ssm.Attention]


@pytest.mark.slow
def test_padding_leaves_no_trace():
    """On the left, before a reset, and on the right, after one."""
    model = tiny()
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
    reset = jnp.zeros((2, 9), bool).at[0, 6].set(True).at[1, 5].set(True)
    run = jit(lambda tokens, carry, reset: model(tokens, carry, reset=reset))
    logits, carry = run(tokens, model.init_carry(2, max_length=9), reset)
    one = model.init_carry(1, max_length=9)
    right, _ = run(tokens[:1, :6], one, reset[:1, :6])
    np.testing.assert_allclose(logits[:1, :6], right, atol=1e-5)
    left, after = run(tokens[1:, 5:], one, reset[1:, 5:])
    np.testing.assert_allclose(logits[1:, 5:], left, atol=1e-5)
    law.same(jax.tree.map(lambda leaf: leaf[1:], carry), after, 1e-5)


def test_a_carry_of_another_layer_is_named():
    model, tokens = tiny(), jnp.zeros((5, 2), jnp.int32)
    lightning, _, softmax, _ = model.init_carry(5, max_length=7)
    of_softmax = r"LightningAttention: the carry is {.*, wanted real\[5, 2, 8, 8\], "
    of_lightning = r"Attention: the carry is real\[5, 2, 8, 8\], wanted {'keys': "
    for carry, message in (
        ((softmax,) * 4, of_softmax),
        ((lightning,) * 4, of_lightning),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model, tokens, carry)


def test_sizes_of_the_carries():
    carry = jax.eval_shape(lambda: tiny().init_carry(5, max_length=7))
    kinds = [jax.tree.map(lambda leaf: leaf.shape, one) for one in carry]
    state, ring = (5, 2, 8, 8), (5, 7, 1, 8)
    softmax = {"keys": ring, "values": ring, "length": (5,)}
    assert kinds == [state, state, softmax, state]


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_balance_of_all_layers_can_be_added_to_the_loss(scan_layers):
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
    model = tiny(scan_layers=scan_layers, remat=True, balance_weight=0.1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def run(params, train):
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits, _ = model(tokens, train=train)
        return logits, auxiliary_loss(model)

    runs = jit(run, static_argnums=1)
    (logits, none), (same, loss) = runs(params, False), runs(params, True)
    np.testing.assert_allclose(same, logits, atol=1e-6)
    # About 2 where the experts of 4 layers are alike, 3 where one is in all pairs.
    assert none == 0 and 4 * 0.1 * 1.8 < loss < 4 * 0.1 * 3
    gradient = jit(jax.grad(lambda params: run(params, True)[1]))(params)
    moved = {
        path[-2:]
        for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(gradient)).items()
        if np.abs(leaf).max() > 1e-6
    }
    assert ("router", "kernel") in moved and ("encoder", "embedding") in moved
    assert ("head", "kernel") not in moved
