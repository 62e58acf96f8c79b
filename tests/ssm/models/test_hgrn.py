"""HGRN and HGRN2 as models: published outputs and sizes, coupled layers, padding."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import ssm
from ssm.blocks import S4Block
from ssm.models import Stack, hgrn
from ssm.models.stack import Coupled
from tests import golden
from tests.pairwise import mostly_slow
from tests.ssm.filling import wave
from tests.ssm.law import QUICK_COMPILE
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
ATTENTION = {"f": "lambda_proj", "g": "gate", "i": "input_proj", "o": "out_proj"}
MLP = ("gate", "up", "down")


def names(n_layers):
    """Our parameters -> the released model's, and whether those are transposed."""
    table = {
        ("encoder", "embedding"): ("model.embeddings.weight", False),
        ("stack", "coupling", "gamma"): ("model.lower_bounds", False),
        ("norm", "scale"): ("model.norm.weight", False),
        ("head", "kernel"): ("lm_head.weight", True),
    }
    for i in range(n_layers):
        block, theirs = ("stack", "blocks", i), f"model.layers.{i}."
        table[*block, "norm", "scale"] = (theirs + "attn_norm.weight", False)
        table[*block, "mlp_norm", "scale"] = (theirs + "mlp_norm.weight", False)
        norm = (theirs + "attn.g_norm.weight", False)
        table[*block, "mixer", "norm", "scale"] = norm
        for letter, ours in ATTENTION.items():
            name = f"{theirs}attn.{letter}_proj.weight"
            table[*block, "mixer", ours, "kernel"] = (name, True)
        for name in MLP:
            weight = f"{theirs}mlp.{name}_proj.weight"
            table[*block, "mlp", name, "kernel"] = (weight, True)
    return table


def filled(model, n_layers, theirs):
    """The graph of an abstract model, and values for all of its parameters."""
    graphdef, state = nnx.split(model)
    own, table = traverse_util.flatten_dict(nnx.to_pure_dict(state)), names(n_layers)
    assert own.keys() == table.keys()
    for path, (name, transposed) in table.items():
        value = theirs(name, own[path].shape[::-1] if transposed else own[path].shape)
        value = jnp.asarray(value.T if transposed else value, own[path].dtype)
        assert value.shape == own[path].shape
        own[path] = value
    return graphdef, traverse_util.unflatten_dict(own)


def load(dtype):
    file = golden.load("fla_hgrn_model.npz")
    size = hgrn.Size(32, 3, 48)
    model = nnx.eval_shape(
        lambda: hgrn.hgrn_released(
            size, vocab_size=97, param_dtype=dtype, rngs=nnx.Rngs(0)
        )
    )
    return file, *filled(model, 3, lambda name, shape: file["w/" + name])


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"]
)
def test_equals_the_released_model(dtype):
    """Logits, loss, and the gradient of every parameter, the bounds' among them."""
    with jax.enable_x64(dtype == "float64"):
        file, graphdef, params = load(dtype)
        tokens = jnp.asarray(file["in/input_ids"], jnp.int32)

        def run(params):
            logits, carry = nnx.merge(graphdef, params)(tokens)
            log_p = jax.nn.log_softmax(logits[:, :-1])
            loss = -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))
            return loss, (logits, carry)

        run = jit(jax.value_and_grad(run, has_aux=True))
        (loss, (logits, carry)), gradients = run(params)
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance"]
    if dtype == "float64":  # round-off; gradients are stored in float32
        tolerance = {"out": 1e-12, "grad": 1e-7}
    close(logits, file["out64/logits"], tolerance["out"])
    close(loss, file["out64/loss"], tolerance["out"])
    for i, state in enumerate(carry):
        close(state, file[f"out64/final_state/layer{i}"], tolerance["out"])
    got = traverse_util.flatten_dict(gradients)
    for path, (name, transposed) in names(3).items():
        want = file["grad64/" + name]
        close(got[path], want.T if transposed else want, tolerance["grad"])


@pytest.mark.usefixtures("x64")
def test_decoding_equals_the_released_model():
    """Five tokens at once, then one by one."""
    file, graphdef, params = load("float64")
    tokens = jnp.asarray(file["in/input_ids"], jnp.int32)
    model = nnx.merge(graphdef, params)
    logits, carry = jit(model)(tokens[:, :5])
    outputs, step = [logits], jit(model.step)
    for t in range(5, tokens.shape[1]):
        logits, carry = step(tokens[:, t], carry)
        outputs.append(logits[:, None])
    got = np.concatenate(outputs, axis=1)
    close(got, file["out64/logits_decode_prefill5"], 1e-12)
    for i, state in enumerate(carry):
        close(state, file[f"out64/final_state/layer{i}"], 1e-12)


@pytest.mark.usefixtures("x64")
def test_worked_example():
    """A model filled from one wave, tensors numbered in the order of their names."""
    ranks = {name: k for k, name in enumerate(sorted(n for n, _ in names(3).values()))}
    assert ranks["model.layers.0.attn.g_norm.weight"] == 3
    assert ranks["model.lower_bounds"] == 32

    def values(name, shape):
        return wave(ranks[name], *shape) + ("norm" in name)

    size = hgrn.Size(8, 3, 12)
    model = nnx.eval_shape(
        lambda: hgrn.hgrn_released(
            size, vocab_size=11, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
    )
    model = nnx.merge(*filled(model, 3, values))
    logits, _ = jit(model)(jnp.array([[1, 4, 2, 7, 3]]))
    want = [-0.2165779, -0.65857678, -0.58471416, -0.0528465]
    want += [0.52041572, 0.68603762, 0.3142881, -0.3036425]
    # From a float32 run, which is known to be 4e-7 off.
    np.testing.assert_allclose(logits[0, -1, :8], want, atol=5e-7)


def parameters(model):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def abstract(make, size, **options):
    return nnx.eval_shape(
        lambda: make(size, rngs=nnx.Rngs(0), scan_layers=True, **options)
    )


@pytest.mark.parametrize(
    ("size", "count"), [("1.3b", 1_364_396_032), ("2.7b", 2_701_724_160)]
)
def test_published_parameter_counts(size, count):
    assert parameters(abstract(hgrn.hgrn_released, hgrn.RELEASED[size])) == count


def test_parameter_count_of_the_paper():
    """By the closed form of a block; embedding and output are one."""
    size, v = hgrn.PAPER["wikitext103"], 1000
    d, f = size.d_model, size.d_ff
    mixer = 2 * (2 * d * d + 2 * d) + (d * d + d) + (2 * d * d + d) + d + 4 * d
    glu = 2 * (d * f + f) + f * d + d
    layer = mixer + glu + 4 * d + d  # two norms, a row of the bounds
    got = parameters(abstract(hgrn.hgrn, size, vocab_size=v))
    assert got == 6 * layer + v * d + 2 * d


MAKE = {
    "hgrn": hgrn.hgrn,
    "hgrn_released": hgrn.hgrn_released,
    "hgrn2": hgrn.hgrn2,
}


def tiny(name="hgrn", **options):
    return MAKE[name](hgrn.TINY, vocab_size=11, rngs=nnx.Rngs(0), **options)


def test_bounds_reach_the_layers():
    """The lowest layer has none; gradients of all rows of gamma are there."""
    model = tiny()
    graphdef, params = nnx.split(model)
    tokens = jnp.arange(5)[None]

    @jit
    @jax.grad
    def gradient(params):
        return jnp.sum(nnx.merge(graphdef, params)(tokens)[0][..., 0])

    got = nnx.to_pure_dict(gradient(params))["stack"]["coupling"]["gamma"]
    assert got.shape == (3, 12) and (np.abs(got).max(axis=1) > 1e-6).all()
    # A softmax over the layers moves with differences alone.
    np.testing.assert_allclose(got.sum(axis=0), 0, atol=1e-5)
    # Of one layer the only bound is the one that it always has.
    one = hgrn.hgrn_blocks(hgrn.TINY)
    alone = Stack(one, 1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 12))
    want, _ = jit(alone.blocks[0])(x)
    np.testing.assert_allclose(jit(alone)(x)[0], want, atol=1e-6)


def stacked(model):
    """The parameters of listed blocks in the form of scanned ones."""
    params = nnx.to_pure_dict(nnx.state(model))
    blocks = params["stack"]["blocks"]
    layers = [blocks[i] for i in range(len(blocks))]
    params["stack"]["blocks"] = jax.tree.map(lambda *v: jnp.stack(v), *layers)
    return params


@pytest.mark.slow  # quick for other models
def test_scan_and_remat_change_no_number():
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
    reset = jnp.zeros((2, 6), bool).at[0, 3].set(True)

    def run(model, params):
        graphdef, _ = nnx.split(model)

        def loss(params):
            logits, _ = nnx.merge(graphdef, params)(tokens, reset=reset)
            return jnp.sum(jnp.sin(logits))

        return jit(jax.grad(loss))(params)

    plain, scanned = tiny("hgrn2"), tiny("hgrn2", scan_layers=True, remat=True)
    params = nnx.to_pure_dict(nnx.state(scanned))
    jax.tree.map(np.testing.assert_array_equal, params, stacked(plain))
    graph, _ = nnx.split(plain)
    want = stacked(nnx.merge(graph, run(plain, nnx.to_pure_dict(nnx.state(plain)))))
    jax.tree.map(
        # The same sums in another order: some hundred float32 roundings.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=2e-5),
        run(scanned, params),
        want,
    )


@pytest.mark.parametrize("name", MAKE)
def test_padding_leaves_no_trace(name):
    """On the left, before a reset, and on the right, after one."""
    model = tiny(name, scan_layers=True)
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
    reset = jnp.zeros((2, 9), bool).at[0, 6].set(True).at[1, 5].set(True)
    run = jit(lambda tokens, reset: model(tokens, reset=reset))
    logits, carry = run(tokens, reset)
    right, _ = run(tokens[:1, :6], reset[:1, :6])
    np.testing.assert_allclose(logits[:1, :6], right, atol=1e-5)
    left, after = run(tokens[1:, 5:], reset[1:, 5:])
    np.testing.assert_allclose(logits[1:, 5:], left, atol=1e-5)
    np.testing.assert_allclose(carry[:, 1:], after, atol=1e-5)


@pytest.mark.parametrize("bidirectional", mostly_slow([False, True], True))
def test_classifier(bidirectional):
    """The same blocks over padded sequences; and around another kind of block."""
    size = hgrn.TINY
    blocks = hgrn.hgrn_blocks(size, bidirectional=bidirectional, norm="batch")

    def around(rngs):
        mixer = ssm.layers.HGRU(size.d_model, bidirectional=bidirectional, rngs=rngs)
        return S4Block(mixer, size.d_model, rngs=rngs)

    for made in (blocks, Coupled(around, hgrn.bounds(size.d_model, "exclusive"))):
        model = ssm.SequenceClassifier(
            made,
            n_layers=3,
            d_model=size.d_model,
            n_classes=4,
            vocab_size=11,
            rngs=nnx.Rngs(0),
        )
        tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
        graphdef, state = nnx.split(model)
        run = jit(lambda state, *inputs, g=graphdef: nnx.merge(g, state)(*inputs))
        logits = run(state, tokens, jnp.array([9, 5]))
        assert logits.shape == (2, 4)
        alone = run(state, tokens[1:, :5])
        np.testing.assert_allclose(logits[1:], alone, atol=1e-5)


def test_both_directions_have_the_bounds():
    """Of a layer that is bidirectional by being two."""

    def make(rngs):
        ways = (ssm.layers.HGRN2(12, 2, rngs=rngs) for _ in range(2))
        return S4Block(ssm.Bidirectional(*ways), 12, rngs=rngs)

    stack = Stack(Coupled(make, hgrn.bounds(12, "shifted")), 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 12))
    bounds = stack.coupling()["lower_bound"]

    @jit
    def by_hand(x):
        for block, bound in zip(stack.blocks, bounds, strict=True):
            x, _ = block(x, lower_bound=bound)
        return x

    assert (bounds[1] == 0.5).all()
    np.testing.assert_allclose(jit(stack)(x)[0], by_hand(x), atol=1e-6)
    without = jit(stack.blocks[1])(jit(stack.blocks[0])(x)[0])[0]
    assert np.abs(by_hand(x) - without).max() > 1e-2


def test_parameter_groups():
    labels = ssm.param_groups.labels(tiny())
    assert labels["stack"]["coupling"]["gamma"] == "recurrence"
    mixer = labels["stack"]["blocks"][0]["mixer"]
    assert mixer["theta"] == "recurrence"
    assert mixer["lambda_proj"] == {"kernel": "regular", "bias": "norm_and_bias"}


def test_embedding_is_scaled_in_the_paper_alone():
    size = hgrn.PAPER["wikitext103"]
    model = abstract(hgrn.hgrn, size, vocab_size=11)
    assert model.embedding_scale == pytest.approx(math.sqrt(512))
    assert model.head is None
    released = abstract(hgrn.hgrn_released, hgrn.TINY)
    assert released.embedding_scale == 1 and released.head.bias is None


@pytest.mark.parametrize(("name", "shape"), [("hgrn", (12,)), ("hgrn2", (2, 6, 6))])
def test_size_of_the_carry(name, shape):
    carry = jax.eval_shape(lambda: tiny(name).init_carry(5))
    assert [state.shape for state in carry] == 3 * [(5, *shape)]
