"""The Transformer: the law of every causal model, its size, and what it shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.models import griffin, transformer
from tests.ssm import law

VOCABULARY = 11
# About a hundred float32 roundings lie between an output and the inputs here.
TOLERANCE = 100 * 2**-23


def make(size=transformer.TINY, **options):
    return transformer.transformer(
        size, vocab_size=VOCABULARY, rngs=nnx.Rngs(0), **options
    )


@pytest.mark.slow  # `Attention` and `ResidualBlock` keep it in the quick tests
@pytest.mark.parametrize(
    "options",
    [{"scan_layers": True}, {"positional": "none", "remat": True}],
    ids=str,
)
def test_the_law(options):
    model = make(**options)
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, VOCABULARY)
    law.check_chunks_and_steps(model, tokens, TOLERANCE)
    law.check_packing(model, tokens, TOLERANCE)


def test_parameter_count():
    """By the closed form of a block: attention without biases, MLP with them."""
    s = transformer.Size(48, 5, 6, n_kv_heads=2, d_ff=100)
    model = nnx.eval_shape(lambda: make(s))
    attention = 2 * 48 * 48 + 2 * 48 * (2 * 8)
    mlp = 2 * (48 * 100 + 100) + (100 * 48 + 48)
    want = VOCABULARY * 48 + 48 + 5 * (2 * 48 + attention + mlp)
    assert sum(np.prod(p.shape) for p in jax.tree.leaves(model_params(model))) == want


def model_params(model):
    return nnx.state(model, nnx.Param)


def test_it_is_a_griffin_with_other_mixers():
    """The same parameters around the mixers, and the same outer ones."""
    sizes = {"d_model": 16, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1}
    ours = make(transformer.Size(**sizes))
    theirs = griffin.griffin(
        griffin.Size(**sizes), vocab_size=VOCABULARY, rngs=nnx.Rngs(0)
    )

    def around(model):
        shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(model_params(model)))
        for block in shapes["stack"]["blocks"].values():
            del block["mixer"]
        return shapes

    assert around(ours) == around(theirs)
    down, other = (
        float(jnp.std(model.stack.blocks[0].mlp.down.kernel[...]))
        for model in (ours, theirs)
    )
    # Each has 768 draws of one law; their spreads differ by 3.6 %, one sigma.
    assert down == pytest.approx(other, rel=0.1)


def test_the_carry_has_room_for_what_it_is_asked_to():
    model = make(dtype=jnp.bfloat16)
    carry = model.init_carry(2, max_length=9)
    keys = carry[0]["keys"]
    assert keys.shape == (2, 9, 2, 8) and keys.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"wanted init_carry\(batch_size, max_length="):
        model.init_carry(2)
    with pytest.raises(ValueError, match="has 10 steps, and its carry room for 9"):
        model(jnp.zeros((2, 10), int), carry)
