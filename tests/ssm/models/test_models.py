"""Classifier and language model: options that change no number, padding, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.blocks import S4Block

WIDTH, VOCABULARY, CLASSES = 6, 7, 3


def maker(norm="layer", bidirectional=False, dropout=0.0):
    def make_block(rngs):
        mixer = ssm.LRU(WIDTH, 4, bidirectional=bidirectional, rngs=rngs)
        return S4Block(mixer, WIDTH, norm=norm, dropout=dropout, rngs=rngs)

    return make_block


def classifier(make_block=None, **options):
    options = {"vocab_size": VOCABULARY} | options
    return ssm.SequenceClassifier(
        make_block or maker(),
        n_layers=3,
        d_model=WIDTH,
        n_classes=CLASSES,
        rngs=nnx.Rngs(0),
        **options,
    )


def tokens(time=8):
    return jax.random.randint(jax.random.key(2), (2, time), 0, VOCABULARY)


def loss_and_gradients(model, x, lengths, key):
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)

    @jax.jit
    @jax.value_and_grad
    def run(params):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        return jnp.sum(jnp.sin(model(x, lengths, key=key, train=True)))

    return run(params)


def stacked(params):
    """The parameters of listed blocks in the form of scanned ones."""
    params = nnx.to_pure_dict(params)
    blocks = params["stack"]["blocks"]
    if 0 in blocks:
        layers = [blocks[i] for i in range(len(blocks))]
        params["stack"]["blocks"] = jax.tree.map(lambda *v: jnp.stack(v), *layers)
    return params


@pytest.mark.parametrize(
    ("norm", "scan_layers", "remat"),
    [("layer", True, False), ("batch", True, True), ("batch", False, True)],
)
def test_scan_and_remat_change_no_number(norm, scan_layers, remat):
    lengths, key = jnp.array([8, 5]), jax.random.key(3)
    make_block = maker(norm, dropout=0.3)
    plain = classifier(make_block)
    other = classifier(make_block, scan_layers=scan_layers, remat=remat)
    np.testing.assert_array_equal(
        jax.tree.leaves(stacked(nnx.state(plain, nnx.Param)))[0],
        jax.tree.leaves(stacked(nnx.state(other, nnx.Param)))[0],
    )
    want, want_gradients = loss_and_gradients(plain, tokens(), lengths, key)
    got, gradients = loss_and_gradients(other, tokens(), lengths, key)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(
        # The same sums in another order: some hundred float32 roundings.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=2e-5),
        stacked(gradients),
        stacked(want_gradients),
    )


def test_scan_updates_batch_statistics_like_the_list():
    models = [classifier(maker("batch"), scan_layers=scan) for scan in (False, True)]
    for model in models:
        model(tokens(), train=True)
    listed, scanned = (stacked(nnx.state(model, nnx.BatchStat)) for model in models)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), listed, scanned
    )
    assert np.any(jax.tree.leaves(scanned)[0] != 0)


@pytest.mark.parametrize(
    ("pooling", "bidirectional", "norm"),
    [
        ("mean", False, "batch"),
        ("mean", True, "layer"),
        ("last", False, "layer"),
        ("last", True, "batch"),
    ],
)
def test_padding_reaches_no_logit(pooling, bidirectional, norm):
    model = classifier(maker(norm, bidirectional), pooling=pooling)
    x, lengths = tokens(8), jnp.array([5, 3])
    want = jnp.concatenate([model(x[:1, :5]), model(x[1:, :3])])
    for total in (5, 6, 8):
        got = model(x[:, :total], lengths)
        np.testing.assert_allclose(got, want, atol=1e-5)
    junk = jnp.where(jnp.arange(8)[None] < lengths[:, None], x, 1)
    np.testing.assert_allclose(model(junk, lengths), model(x, lengths), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_full_lengths_are_no_lengths(pooling):
    model = classifier(pooling=pooling)
    np.testing.assert_allclose(
        model(tokens(), jnp.array([8, 8])), model(tokens()), atol=1e-6
    )
    assert np.all(np.isfinite(model(tokens(), jnp.array([0, 8]))))


def test_real_inputs_and_types():
    model = classifier(vocab_size=None, d_input=2, dtype=jnp.bfloat16, final_norm=True)
    logits = model(jnp.ones((2, 5, 2)))
    assert logits.shape == (2, CLASSES) and logits.dtype == jnp.float32


def test_language_model_outputs():
    def make(**options):
        return ssm.LanguageModel(
            maker(),
            n_layers=1,
            d_model=WIDTH,
            vocab_size=VOCABULARY,
            rngs=nnx.Rngs(0),
            **options,
        )

    assert make()(tokens())[0].shape == (2, 8, VOCABULARY)
    logits, _ = make(n_outputs=5, dtype=jnp.bfloat16)(tokens())
    assert logits.shape == (2, 8, 5) and logits.dtype == jnp.float32
    with pytest.raises(ValueError, match="wanted 7 = vocab_size"):
        make(n_outputs=5, tied=True)


def test_parameter_groups_cover_every_parameter():
    for scan_layers in (False, True):
        model = classifier(scan_layers=scan_layers, final_norm=True)
        labels = ssm.param_groups.labels(model)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        assert jax.tree.structure(labels) == jax.tree.structure(params)
        block = labels["stack"]["blocks"]
        block = block if scan_layers else block[0]
        mixer = block["mixer"]
        slow = {name for name, group in mixer.items() if group == "recurrence"}
        assert slow == {"nu_log", "theta_log", "gamma_log", "b_re", "b_im"}
        assert mixer["c_re"] == mixer["d"] == "regular"
        assert block["norm"] == {"scale": "norm_and_bias", "bias": "norm_and_bias"}
        assert block["gate"] == {"kernel": "regular", "bias": "norm_and_bias"}
        assert labels["encoder"] == {"embedding": "regular"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier(d_input=2), "wanted exactly one of them"),
        (lambda: classifier(vocab_size=None), "wanted exactly one of them"),
        (lambda: classifier(pooling="max"), "wanted 'mean' or 'last'"),
        (lambda: classifier()(jnp.ones((2, 3))), r"wanted \(B, T\) integer tokens"),
        (lambda: classifier()(tokens(), jnp.array([1])), r"lengths has shape \(1,\)"),
        (
            lambda: classifier(vocab_size=None, d_input=2)(jnp.ones((2, 3, 4))),
            r"wanted \(B, T, 2\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
