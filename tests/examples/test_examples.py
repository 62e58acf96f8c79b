"""Every example runs as a reader would run it, and shows what it says it shows."""

import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["nnx_lru", "linen_lru", "equinox_lru"])
def test_a_layer_in_your_own_model(name: str, capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out


def test_nnx_chunks_are_the_whole():
    tagger = runpy.run_path(str(EXAMPLES / "nnx_lru.py"))["Tagger"]
    model = tagger(d_model=4, n_labels=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 9, 3))
    whole, _ = model(x)
    first, carry = model(x[:, :4])
    second, _ = model(x[:, 4:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)


def test_linen_trains_every_parameter_of_the_layer():
    model = runpy.run_path(str(EXAMPLES / "linen_lru.py"))["Tagger"](4, 3)
    x = jax.random.normal(jax.random.key(1), (2, 9, 3))
    variables = model.init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: (model.apply(v, x) ** 2).sum())(variables)
    mixer = gradient["params"]["mixer"]
    assert {"nu_log", "theta_log", "gamma_log", "b_re", "c_im", "d"} <= set(mixer)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(mixer))


def test_equinox_agrees_with_the_layer():
    example = runpy.run_path(str(EXAMPLES / "equinox_lru.py"))["LRU"]
    theirs = ssm.LRU(4, 6, rngs=nnx.Rngs(0))
    theirs.d[...] = jnp.zeros(4)
    ours = eqx.tree_at(
        lambda layer: (layer.nu_log, layer.theta_log, layer.b, layer.c),
        example(4, 6, key=jax.random.key(0)),
        (
            theirs.nu_log[...],
            theirs.theta_log[...],
            jnp.stack([theirs.b_re[...], theirs.b_im[...]]),
            jnp.stack([theirs.c_re[...], theirs.c_im[...]]),
        ),
    )
    x = jax.random.normal(jax.random.key(1), (2, 9, 4))
    for got, wanted in zip(ours(x), theirs(x), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_carry_sizes_are_those_of_the_layers(capsys, monkeypatch):
    """Of arrays that exist; and README shows what the command prints."""
    monkeypatch.setattr("sys.argv", ["carry_sizes.py"])
    example = runpy.run_path(str(EXAMPLES / "carry_sizes.py"), run_name="__main__")
    assert capsys.readouterr().out in (EXAMPLES.parent / "README.md").read_text()
    rows = example["table"](64).splitlines()[2:]
    made = example["layers"](64).items()
    for row, (name, make_layer) in zip(rows, made, strict=True):
        layer = make_layer(dtype="bfloat16", rngs=nnx.Rngs(0))
        carries = [layer.init_carry(1, max_length=steps) for steps in (7, 8)]
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(c)) for c in carries]
        grows = name.startswith("`Attention`")
        size = sizes[1] - sizes[0] if grows else sizes[0]
        assert grows or sizes[0] == sizes[1]
        assert row == f"| {name} | {size:,} |"


def test_the_training_script_learns():
    main = runpy.run_path(str(EXAMPLES / "train_lru.py"))["main"]
    assert main(steps=40) > 0.9  # chance is 1/8


@pytest.fixture(scope="module")
def text_example():
    return runpy.run_path(str(EXAMPLES / "generate_text.py"))


@pytest.mark.slow
def test_generated_text_goes_on_with_the_prompt(text_example, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("abcdefghijklmnopqrstuvwxyz, " * 20)
    text_example["main"]([str(text), "--prompt=abc", "--steps=40", "--length=12"])
    assert capsys.readouterr().out == "abcdefghijklmno\n"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "text.txt: No such file or directory"),
        (b"caf\xe9", [], "text.txt is not UTF-8 text: see its byte 3"),
        (b"short", [], "text.txt has 5 tokens, wanted over 256"),
        (b"a" * 300, ["--prompt="], "--prompt has no token"),
        (b"a" * 300, ["--tokenizer=none.json"], "none.json: No such file"),
    ],
)
def test_text_that_cannot_be_used_is_said(
    text_example, content, arguments, message, tmp_path, capsys
):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(SystemExit):
        text_example["main"]([str(text), *arguments])
    assert message in capsys.readouterr().err


def round_trip(tokenizer, text="to be or not to be"):
    tokens = tokenizer.encode(text)
    assert 0 <= min(tokens) <= max(tokens) < tokenizer.vocab_size
    assert tokenizer.decode(np.array(tokens).tolist()) == text
    return len(tokens)


def test_bytes_and_text(text_example):
    assert round_trip(text_example["load_tokenizer"](None), "caf\xe9") == 5


def test_tokenizer_json(text_example, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["to be or not to be"], vocab_size=300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    load = text_example["load_tokenizer"]
    assert round_trip(load(tmp_path / "tokenizer.json")) < 18


def test_sentencepiece_model(text_example, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["to be or not to be"] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=16,
        hard_vocab_limit=False,
    )
    assert (
        round_trip(text_example["load_tokenizer"](tmp_path / "tokenizer.model")) <= 18
    )
