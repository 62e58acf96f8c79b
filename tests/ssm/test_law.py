"""Every causal layer, block and model keeps the law; the others refuse a carry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.blocks import ResidualBlock, S4Block
from ssm.models import Stack, griffin, hgrn, minimax, transnormer
from tests.pairwise import mostly_slow
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


def rg_lru(rngs, **options):
    return ssm.RGLRU(WIDTH, 3, rngs=rngs, **options)


def attention(rngs, **options):
    return ssm.Attention(WIDTH, 2, head_dim=4, rngs=rngs, **options)


def local_attention(rngs, window, **options):
    return ssm.LocalAttention(WIDTH, 4, window=window, head_dim=4, rngs=rngs, **options)


def residual_block(rngs, **options):
    mixer = ssm.GriffinRecurrence(WIDTH, 2, lru_width=8, rngs=rngs)
    mlp = ssm.GatedMLP(WIDTH, 7, rngs=rngs)
    return ResidualBlock(mixer, mlp, WIDTH, rngs=rngs, **options)


def hgru(rngs, **options):
    return ssm.layers.HGRU(WIDTH, lower_bound=0.3, rngs=rngs, **options)


def lightning(rngs, **options):
    return ssm.layers.LightningAttention(WIDTH, 2, rngs=rngs, **options)


def liquid(liquid, **options):
    return lambda rngs: ssm.LiquidS4(
        WIDTH, 4, liquid=liquid, dt_max=0.5, rngs=rngs, **options
    )


SIZE = griffin.Size(8, 4, 2, lru_width=10, d_ff=12)


def hawk(rngs, **options):
    return griffin.hawk(SIZE, vocab_size=VOCABULARY, rngs=rngs, **options)


def griffin_model(rngs, **options):
    options = {"vocab_size": VOCABULARY, "window": 3} | options
    return griffin.recurrent_gemma(SIZE, rngs=rngs, **options)


def of_vocabulary(make, size, **options):
    return lambda rngs: make(size, vocab_size=VOCABULARY, rngs=rngs, **options)


CAUSAL = {
    "LRU": lru,
    "LRU, scan": lambda rngs: lru(rngs, implementation="scan"),
    "LRU, associative": lambda rngs: lru(rngs, implementation="associative"),
    "RGLRU": rg_lru,
    "RGLRU, complex": lambda rngs: rg_lru(rngs, complex_gated=True),
    "HGRU": hgru,
    "HGRU, real, gate first": lambda rngs: hgru(rngs, real=True, gate_first=True),
    "HGRN2": lambda rngs: ssm.layers.HGRN2(WIDTH, 2, lower_bound=0.3, rngs=rngs),
    "LightningAttention": lightning,
    "LightningAttention, turned": lambda rngs: lightning(rngs, turned=True),
    "LightningAttention, as MiniMax": lambda rngs: lightning(
        rngs,
        head_dim=5,
        activate_value=True,
        gate_activation=nnx.sigmoid,
        norm=nnx.RMSNorm,
    ),
    "LSTM": lambda rngs: ssm.LSTM(WIDTH, rngs=rngs),
    "LSTM, chrono, zoneout": lambda rngs: ssm.LSTM(
        WIDTH, chrono=9.0, zoneout_h=0.1, zoneout_c=0.3, rngs=rngs
    ),
    "GRU": lambda rngs: ssm.GRU(WIDTH, rngs=rngs),
    "GRU, chrono, zoneout": lambda rngs: ssm.GRU(
        WIDTH, chrono=9.0, zoneout_h=0.1, rngs=rngs
    ),
    "LinearRNN": lambda rngs: ssm.LinearRNN(WIDTH, STATE, rngs=rngs),
    "S4": lambda rngs: ssm.S4(WIDTH, 4, l_max=7, rngs=rngs),
    "S4D": lambda rngs: ssm.S4D(WIDTH, 4, rngs=rngs),
    "S5": lambda rngs: ssm.S5(WIDTH, 4, rngs=rngs),
    "LiquidS4, exact": liquid("exact"),
    "LiquidS4, order": liquid("order", order=3, bound="tanh"),
    "LiquidS4, kb": liquid("kb", order=3),
    "LiquidS4, pb": liquid("pb", order=3),
    "LiquidS4, pb, window": liquid("pb", window=3),
    "LiquidS4, pb, all": liquid("pb", window=None),
    "CausalConv1D": lambda rngs: ssm.CausalConv1D(WIDTH, rngs=rngs),
    "CausalConv1D, longer than x": lambda rngs: ssm.CausalConv1D(WIDTH, 9, rngs=rngs),
    "GriffinRecurrence": lambda rngs: ssm.GriffinRecurrence(
        WIDTH, 2, lru_width=8, rngs=rngs
    ),
    "Attention": attention,
    "Attention, shared keys, no positions": lambda rngs: attention(
        rngs, n_kv_heads=1, positional="none", qkv_bias=True
    ),
    "LocalAttention, 1": lambda rngs: local_attention(rngs, 1),
    "LocalAttention, 3": lambda rngs: local_attention(rngs, 3),
    "LocalAttention, 5, grouped": lambda rngs: local_attention(rngs, 5, n_kv_heads=2),
    "LocalAttention, 9": lambda rngs: local_attention(rngs, 9),
    "ResidualBlock": residual_block,
    "ResidualBlock, layer norm": lambda rngs: residual_block(rngs, norm="layer"),
    "Hawk": hawk,
    "Hawk, scanned": lambda rngs: hawk(rngs, scan_layers=True),
    "Griffin": griffin_model,
    "Griffin, scanned, remat": lambda rngs: griffin_model(
        rngs, scan_layers=True, remat=True
    ),
    "HGRN": of_vocabulary(hgrn.hgrn, hgrn.TINY),
    "HGRN, released, scanned, remat": of_vocabulary(
        hgrn.hgrn_released, hgrn.TINY, scan_layers=True, remat=True
    ),
    "HGRN2, model, scanned": of_vocabulary(hgrn.hgrn2, hgrn.TINY, scan_layers=True),
    "TransNormerLLM": of_vocabulary(transnormer.transnormer, transnormer.TINY),
    "TransNormerLLM, scanned": of_vocabulary(
        transnormer.transnormer, transnormer.TINY, turned=False, scan_layers=True
    ),
    "MiniMax, scanned": of_vocabulary(minimax.minimax, minimax.TINY, scan_layers=True),
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
# Variants whose every part another row has too.
SLOW = {
    "LRU, scan",
    "LRU, associative",
    "S4",
    "LiquidS4, order",
    "LiquidS4, kb",
    "LiquidS4, pb",
    "LiquidS4, pb, window",
    "LiquidS4, pb, all",
    "LocalAttention, 5, grouped",
    "S4Block, half gate, post-norm",
    "S4Block, no gate, rms",
    "Stack",
    "LanguageModel",
    "LanguageModel, tied",
    "CausalConv1D, longer than x",
    "Attention, shared keys, no positions",
    "LocalAttention, 1",
    "LocalAttention, 9",
    "ResidualBlock, layer norm",
    "Hawk",
    "Hawk, scanned",
    "Griffin",
    "Griffin, scanned, remat",
    "HGRU, real, gate first",
    "LSTM",
    "GRU",
    "LightningAttention",
    "LightningAttention, as MiniMax",
    "GriffinRecurrence",
    "RGLRU, complex",
    "S4Block",
    "Stack, scanned",
    "HGRN",
    "HGRN, released, scanned, remat",
    "HGRN2, model, scanned",
    "TransNormerLLM",
    "TransNormerLLM, scanned",
    "MiniMax, scanned",
}
CASES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in CAUSAL
]
# How many steps an output sees, where it is not all before it.
REACH = {"CausalConv1D": 4, "LocalAttention, 1": 1, "LocalAttention, 3": 3}
CONVOLVED = (
    "S4",
    "S4D",
    "LiquidS4, kb",
    "LiquidS4, pb",
    "LiquidS4, pb, window",
    "LiquidS4, pb, all",
)
TWO_WAY = {
    "LRU": lambda rngs: lru(rngs, bidirectional=True),
    "HGRU": lambda rngs: hgru(rngs, bidirectional=True),
    "S4": lambda rngs: ssm.S4(WIDTH, 4, l_max=7, bidirectional=True, rngs=rngs),
    "S4D": lambda rngs: ssm.S4D(WIDTH, 4, bidirectional=True, rngs=rngs),
    "S5": lambda rngs: ssm.S5(WIDTH, 4, bidirectional=True, rngs=rngs),
    "LiquidS4, exact": liquid("exact", bidirectional=True),
    "LiquidS4, order": liquid("order", bidirectional=True),
    "LiquidS4, kb": liquid("kb", bidirectional=True),
    "Attention": lambda rngs: attention(rngs, causal=False),
    "Bidirectional": lambda rngs: ssm.Bidirectional(lru(rngs), lru(rngs)),
    "Bidirectional, LSTM": lambda rngs: ssm.Bidirectional(
        ssm.LSTM(WIDTH, rngs=rngs), ssm.LSTM(WIDTH, rngs=rngs)
    ),
    "S4Block": lambda rngs: S4Block(lru(rngs, bidirectional=True), WIDTH, rngs=rngs),
}


def inputs(module, time=7):
    key = jax.random.key(1)
    if isinstance(module, ssm.LanguageModel):
        return jax.random.randint(key, (2, time), 0, VOCABULARY)
    return jax.random.normal(key, (2, time, WIDTH))


@pytest.mark.parametrize("name", CASES)
def test_whole_is_chunks_is_steps(name):
    module = CAUSAL[name](nnx.Rngs(0))
    law.check_chunks_and_steps(module, inputs(module), TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_packed_is_separate(name):
    module = CAUSAL[name](nnx.Rngs(0))
    law.check_packing(module, inputs(module), TOLERANCE)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        TWO_WAY, "LRU", "HGRU", "S4D", "S5", "LiquidS4, exact", "Bidirectional"
    ),
)
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


@pytest.mark.parametrize("name", CASES)
def test_causal_outputs_ignore_the_future(name):
    """By gradients: no output moves with a later input, or one beyond its reach."""
    module = CAUSAL[name](nnx.Rngs(0))
    jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)
    if isinstance(module, ssm.LanguageModel):
        run = jit(lambda x: module(x)[0])
        later = inputs(module).at[:, 5:].set(0)
        before, after = run(inputs(module)), run(later)
        np.testing.assert_array_equal(before[:, :5], after[:, :5])
        return
    gradient = jit(jax.grad(lambda x: jnp.sum(module(x)[0][:, 4])))(inputs(module))
    # Fourier transforms spread a rounding over all steps.
    rounding = TOLERANCE if name in CONVOLVED else 0
    seen = np.any(np.abs(gradient) > rounding, axis=-1)
    first = 5 - REACH.get(name, 5)
    assert not seen[:, 5:].any() and not seen[:, :first].any()
    assert seen[:, first:5].all()


@pytest.mark.parametrize("name", CASES)
def test_carry_is_of_fixed_shape_and_type(name):
    module = CAUSAL[name](nnx.Rngs(0))
    start = jax.eval_shape(lambda: module.init_carry(2, max_length=7))
    _, after = jax.eval_shape(module, inputs(module))

    def kind(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert kind(start) == kind(after)
