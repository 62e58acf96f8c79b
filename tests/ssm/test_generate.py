"""Generation: the loop equals steps by hand, rows do not see each other or padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.blocks import S4Block
from ssm.generate import Sampling, generate, left_pad

VOCABULARY = 11
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6]]


@pytest.fixture(scope="module")
def model():
    def make_block(rngs):
        return S4Block(ssm.LRU(8, 8, r_min=0.9, rngs=rngs), 8, rngs=rngs)

    # Logits of order one, so that no two are nearly the same.
    model = ssm.LanguageModel(
        make_block, n_layers=2, d_model=8, vocab_size=VOCABULARY, rngs=nnx.Rngs(0)
    )
    model.head.kernel[...] = 3 * model.head.kernel[...]
    return model


def test_greedy_is_the_most_likely_token_of_the_whole_sequence(model):
    got = generate(model, *left_pad(PROMPTS), max_new_tokens=6)
    assert got.lengths.tolist() == [6, 6, 6]
    for row, prompt in enumerate(PROMPTS):
        said = got.tokens[row].tolist()
        logits = model(jnp.array([[*prompt, *said]]))[0][0, len(prompt) - 1 : -1]
        assert jnp.argmax(logits, axis=-1).tolist() == said
        each = jax.nn.log_softmax(logits)[jnp.arange(6), jnp.array(said)]
        np.testing.assert_allclose(got.log_probabilities[row], each, atol=1e-5)


def test_an_uneven_batch_equals_one_by_one(model):
    keys = jax.random.split(jax.random.key(1), len(PROMPTS))
    options = {"max_new_tokens": 9, "temperature": 1.3, "top_k": 7, "top_p": 0.95}
    batch = generate(model, *left_pad(PROMPTS), key=keys, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, *left_pad([prompt]), key=keys[row : row + 1], **options)
        assert batch.tokens[row].tolist() == alone.tokens[0].tolist()


def test_samples_come_from_the_key_and_the_model(model):
    tokens, lengths = left_pad([PROMPTS[0]] * 2000)
    options = {"max_new_tokens": 1, "temperature": 4.0}
    first = generate(model, tokens, lengths, key=jax.random.key(0), **options)
    again = generate(model, tokens, lengths, key=jax.random.key(0), **options)
    other = generate(model, tokens, lengths, key=jax.random.key(1), **options)
    assert (first.tokens == again.tokens).all()
    assert (first.tokens != other.tokens).any()
    share = np.bincount(np.ravel(first.tokens), minlength=VOCABULARY) / 2000
    logits = model(jnp.array([PROMPTS[0]]))[0][0, -1]
    # 5 standard deviations of a share of 2000 draws.
    expected = np.asarray(jax.nn.softmax(logits / 4.0))
    often = expected > 0.01  # 20 draws: where the normal approximation is one
    share, expected = share[often], expected[often]
    assert len(expected) > 5
    assert np.all(
        abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000)
    )


def test_stop_tokens_stop_their_row_alone(model):
    free = generate(model, *left_pad(PROMPTS), max_new_tokens=12).tokens
    stop = int(free[0, 3])
    got = generate(
        model,
        *left_pad(PROMPTS),
        max_new_tokens=12,
        stop_tokens=[stop, 99],
        pad_token=10,
    )
    for row in range(len(PROMPTS)):
        at = np.flatnonzero(free[row] == stop)
        length = int(at[0]) + 1 if len(at) else 12
        assert got.lengths[row] == length
        assert (got.tokens[row, :length] == free[row, :length]).all()
        assert (got.tokens[row, length:] == 10).all()
        assert (got.log_probabilities[row, length:] == 0).all()
    # A pad token that is a stop token ends nothing twice.
    same = generate(
        model, *left_pad(PROMPTS), max_new_tokens=12, stop_tokens=[stop], pad_token=stop
    )
    assert (same.lengths == got.lengths).all()


def test_filters_keep_what_they_say():
    logits = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))

    def kept(**options):
        filtered = Sampling(**({"temperature": 1.0} | options)).filter(logits)
        return np.flatnonzero(np.isfinite(filtered[0])).tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [0, 2]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.5) == [0]
    assert kept(top_p=0.51) == [0, 2]
    assert kept(top_p=0.96) == [0, 1, 2, 3]
    assert kept(top_p=1e-9) == [0]
    # Of the two that are left the first has 0.625.
    assert kept(top_k=2, top_p=0.6) == [0]
    flat = Sampling(temperature=2.0).filter(logits)
    np.testing.assert_allclose(flat, logits / 2)


def test_bad_arguments_are_named(model):
    tokens, lengths = left_pad(PROMPTS)
    for problem, arguments in {
        "prompt 1 is empty": lambda: left_pad([[1], [], [2]]),
        "at least one prompt": lambda: left_pad([]),
        r"lengths=\[0, 1, 2\].* at least one": lambda: generate(
            model, tokens, [0, 1, 2], max_new_tokens=1
        ),
        r"lengths=\[9, 1, 2\]": lambda: generate(
            model, tokens, [9, 1, 2], max_new_tokens=1
        ),
        "max_new_tokens=0": lambda: generate(model, tokens, max_new_tokens=0),
        "temperature=-1": lambda: generate(
            model, tokens, max_new_tokens=1, temperature=-1
        ),
        "top_p=0": lambda: generate(model, tokens, max_new_tokens=1, top_p=0),
        "top_k=-2": lambda: generate(model, tokens, max_new_tokens=1, top_k=-2),
        "pass key=": lambda: generate(model, tokens, max_new_tokens=1, temperature=1),
        r"tokens has shape \(3,\)": lambda: generate(model, lengths, max_new_tokens=1),
    }.items():
        with pytest.raises(ValueError, match=problem):
            arguments()

    def two_way(rngs):
        return S4Block(ssm.LRU(8, 8, bidirectional=True, rngs=rngs), 8, rngs=rngs)

    looks_ahead = ssm.LanguageModel(
        two_way, n_layers=1, d_model=8, vocab_size=VOCABULARY, rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="looks at the whole sequence"):
        generate(looks_ahead, tokens, lengths, max_new_tokens=1)
