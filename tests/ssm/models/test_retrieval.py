"""The two-tower classifier: one tower used twice, padding, devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ssm
from ssm.blocks import S4Block

WIDTH, VOCABULARY, CLASSES = 6, 7, 2
LENGTHS = jnp.array([5, 3, 8]), jnp.array([8, 1, 4])


def maker(norm="layer", bidirectional=False, dropout=0.0):
    def make_block(rngs):
        mixer = ssm.LRU(WIDTH, 4, bidirectional=bidirectional, rngs=rngs)
        return S4Block(mixer, WIDTH, norm=norm, dropout=dropout, rngs=rngs)

    return make_block


def make(kind=ssm.RetrievalClassifier, **options):
    return kind(
        maker(**options),
        n_layers=1,
        d_model=WIDTH,
        n_classes=CLASSES,
        vocab_size=VOCABULARY,
        rngs=nnx.Rngs(0),
    )


def documents(time=8):
    keys = jax.random.split(jax.random.key(2))
    return [jax.random.randint(key, (3, time), 0, VOCABULARY) for key in keys]


def paths(model):
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): value.shape
        for path, value in jax.tree.leaves_with_path(params)
    }


def affine(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_reaches_no_logit(norm, bidirectional):
    model = make(norm=norm, bidirectional=bidirectional)
    run = jax.jit(lambda x1, x2: model(x1, x2, *LENGTHS))
    pair = documents()
    want = run(*pair)
    for extra, junk in ((0, 1), (5, 2)):
        padded = [
            jnp.pad(
                jnp.where(jnp.arange(8)[None] < lengths[:, None], x, junk),
                ((0, 0), (0, extra)),
                constant_values=junk,
            )
            for x, lengths in zip(pair, LENGTHS, strict=True)
        ]
        np.testing.assert_allclose(run(*padded), want, atol=1e-5)


def test_the_logits_are_of_two_layers():
    model = make()
    features = np.asarray(model.features(*documents(), *LENGTHS), np.float64)
    v = affine(model.hidden, features)
    v = v / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    want = affine(model.head, v)
    np.testing.assert_allclose(model(*documents(), *LENGTHS), want, atol=1e-5)


def test_swapped_pairchange_the_sign_of_the_difference():
    model = make()
    x1, x2 = documents()
    blocks = jnp.split(model.features(x1, x2, *LENGTHS), 4, axis=-1)
    swapped = jnp.split(model.features(x2, x1, *LENGTHS[::-1]), 4, axis=-1)
    e1, e2, difference, product = blocks
    for got, want in zip(swapped, (e2, e1, -difference, product), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(difference).max() > 0.1


def test_both_pairshare_all_weights():
    own = {"hidden/kernel": (4 * WIDTH, WIDTH), "hidden/bias": (WIDTH,)}
    assert paths(make()) == paths(make(ssm.SequenceClassifier)) | own
    model = make()
    labels = ssm.param_groups.labels(model)
    assert labels["hidden"] == {"kernel": "regular", "bias": "norm_and_bias"}


def test_gradients_are_those_of_two_calls():
    model = make(bidirectional=True)
    graphdef, params = nnx.split(model)

    def together(params, x1, x2):
        model = nnx.merge(graphdef, params)
        return jnp.sum(jnp.sin(model(x1, x2, *LENGTHS)))

    def one_by_one(params, x1, x2):
        model = nnx.merge(graphdef, params)
        e1 = model.pooled(x1, LENGTHS[0])
        e2 = model.pooled(x2, LENGTHS[1])
        features = jnp.concatenate([e1, e2, e1 - e2, e1 * e2], axis=-1)
        return jnp.sum(jnp.sin(model.head(jax.nn.gelu(model.hidden(features)))))

    x1, x2 = documents()
    want, want_gradients = jax.jit(jax.value_and_grad(one_by_one))(params, x1, x2)
    got, gradients = jax.jit(jax.value_and_grad(together))(params, x1, x2)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(
        # The same sums in another order: some hundred float32 roundings.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=2e-5),
        gradients,
        want_gradients,
    )


def test_batch_statistics_are_of_both_documents():
    x1, x2 = documents()
    model, reference, first = make(norm="batch"), make(norm="batch"), make(norm="batch")
    model(x1, x2, *LENGTHS, train=True)
    reference.pooled(jnp.concatenate([x1, x2]), jnp.concatenate(LENGTHS), train=True)
    first.pooled(x1, LENGTHS[0], train=True)
    got, want, other = (
        jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        for model in (model, reference, first)
    )
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-6)
    assert any(np.abs(g - o).max() > 1e-4 for g, o in zip(got, other, strict=True))


def test_dropout_is_another_for_each_document():
    model = make(dropout=0.5)
    x, _ = documents()
    differences = [
        model.features(x, x, key=key)[:, 2 * WIDTH : 3 * WIDTH]
        for key in (None, jax.random.key(0))
    ]
    assert not differences[0].any()
    assert np.all(np.abs(differences[1]).max(axis=-1) > 0)


def test_pairs_stay_on_their_device():
    model = make(norm="batch", bidirectional=True)
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)

    def loss(params, statistics, *pair):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        return jnp.sum(jnp.sin(model(*pair, train=True)))

    x, lengths = jnp.ones((16, 8), int), jnp.full((16,), 5)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    with jax.set_mesh(mesh):
        by_batch = NamedSharding(mesh, PartitionSpec("data"))
        pair = jax.device_put((x, x, lengths, lengths), by_batch)
        step = jax.jit(jax.grad(loss)).lower(params, statistics, *pair)
        text = step.compile().as_text()
    assert "all-reduce" in text  # of gradients and statistics
    moved = re.findall(r"(all-gather|all-to-all|collective-permute)[-(]", text)
    assert not moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones((3, 8), int), jnp.ones((3, 9), int)), r"\[3, 8\] and x2 .*\[3, 9\]"),
        ((jnp.ones((3, 8), int), jnp.ones((3, 8))), "wanted the same shape and dtype"),
        ((*documents(), LENGTHS[0]), "wanted both or none"),
        ((*documents(), None, LENGTHS[0]), "wanted both or none"),
        ((*documents(), LENGTHS[0][:2], LENGTHS[1][:2]), r"lengths has shape \(4,\)"),
        ((jnp.ones((3, 8)), jnp.ones((3, 8))), r"wanted \(B, T\) integer tokens"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make()(*arguments)


def test_unknown_options_are_named():
    with pytest.raises(TypeError, match="pool"):
        ssm.RetrievalClassifier(maker(), d_model=WIDTH, rngs=nnx.Rngs(0), pool="mean")
