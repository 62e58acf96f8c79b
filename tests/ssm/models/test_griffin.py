"""Hawk, Griffin and RecurrentGemma: published outputs, sizes, documents apart."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.models import griffin
from ssm.pretrained import RecurrentGemma
from tests import golden
from tests.ssm import published
from tests.ssm.law import QUICK_COMPILE

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
KINDS = ("recurrent", "recurrent", "attention", "recurrent", "recurrent")
SMALL = griffin.Size(64, 5, 4, d_ff=96)  # that of the published outputs


def load(source, dtype):
    """A file, its table of names, the graph of our model, and the file's weights."""
    config = RecurrentGemma(SMALL)
    if source == "dm":  # whose window of 8 lets a query see 9 keys
        file, window = golden.load("dm_griffin_a.npz"), 9
        table, prefix = config.flax_names(), "w/params/"
    else:
        file, window = golden.load("hf_recurrentgemma_a.npz"), 8
        table, prefix = config.hub_names(), "w/"
    model = nnx.eval_shape(
        lambda: griffin.recurrent_gemma(
            SMALL, vocab_size=97, window=window, param_dtype=dtype, rngs=nnx.Rngs(0)
        )
    )
    return file, table, *published.take(model, table, file, prefix)


def cross_entropy(logits, tokens):
    logits = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.mean(jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1))


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("dm", "float64"),
        ("hf", "float32"),
        pytest.param("dm", "float32", marks=pytest.mark.slow),
        pytest.param("hf", "float64", marks=pytest.mark.slow),
    ],
)
def test_equals_the_published_code(source, dtype):
    """Logits, loss and the gradient of every parameter."""
    with jax.enable_x64(dtype == "float64"):
        file, table, graphdef, params = load(source, dtype)
        key = "in/tokens" if source == "dm" else "in/input_ids"
        tokens = jnp.asarray(file[key], jnp.int32)

        def run(params):
            logits, _ = nnx.merge(graphdef, params)(tokens)
            return cross_entropy(logits, tokens), logits

        run = jit(jax.value_and_grad(run, has_aux=True))
        (loss, logits), gradients = run(params)
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance"]
    if dtype == "float64":  # round-off; the gradients are stored in float32
        tolerance = {"out": 1e-12, "grad": 1e-7}
    published.close(logits, file["out64/logits"], tolerance["out"])
    published.close(loss, file["out64/loss"], tolerance["out"])
    prefix = "grad64/params/" if source == "dm" else "grad64/"
    published.check_gradients(gradients, table, file, prefix, tolerance["grad"])


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"]
)
def test_packed_equals_the_published_code(dtype):
    """DeepMind's: that of transformers lets the convolution read across borders."""
    with jax.enable_x64(dtype == "float64"):
        file, _, graphdef, params = load("dm", dtype)
        reset = jnp.asarray(file["in/segment_pos_packed"] == 0)
        tokens = jnp.asarray(file["in/tokens"], jnp.int32)
        model = nnx.merge(graphdef, params)
        logits, _ = jit(lambda x, r: model(x, reset=r))(tokens, reset)
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance"]["out"]
    tolerance = 1e-12 if dtype == "float64" else tolerance
    published.close(logits, file["out64/logits_packed"], tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("dm", 12),
        ("hf", 0),
        pytest.param("dm", 5, marks=pytest.mark.slow),
        pytest.param("hf", 5, marks=pytest.mark.slow),
    ],
)
def test_decoding_equals_the_published_code(source, prompt):
    """Some tokens at once, then one by one, further than the window."""
    file, _, graphdef, params = load(source, "float64")
    key = "in/tokens" if source == "dm" else "in/input_ids"
    tokens = jnp.asarray(file[key], jnp.int32)
    model = nnx.merge(graphdef, params)
    outputs, carry = [], model.init_carry(2)
    if prompt:
        logits, carry = jit(model)(tokens[:, :prompt], carry)
        outputs.append(logits)
    step = jit(model.step)
    for t in range(prompt, tokens.shape[1]):
        logits, carry = step(tokens[:, t], carry)
        outputs.append(logits[:, None])
    kind = "prompt" if source == "dm" else "prefill"
    want = file[f"out64/logits_decode_{kind}{prompt}"]
    published.close(np.concatenate(outputs, axis=1), want, 1e-12)
    if source == "hf":
        compare_caches(file, f"out64/final_cache_prefill{prompt}", carry)


def compare_caches(file, prefix, carry):
    """Ours and transformers', which keeps window - 1 keys, the oldest first."""
    last = np.arange(17, 24)
    for layer, (kind, own) in enumerate(zip(KINDS, carry, strict=True)):
        theirs = f"{prefix}/layer{layer}"
        if kind == "recurrent":
            state = own["rg_lru"]["state"]
            published.close(state, file[f"{theirs}/rg_lru_state"], 1e-12)
            conv = np.swapaxes(own["conv"], 1, 2)
            published.close(conv, file[f"{theirs}/conv1d_state"], 1e-12)
        else:
            for name in ("keys", "values"):
                kept = np.swapaxes(own[name][:, last % 8], 1, 2)
                published.close(kept, file[f"{theirs}/cache_{name}"], 1e-12)


def parameters(model):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def abstract(make, size, **options):
    return nnx.eval_shape(
        lambda: make(size, rngs=nnx.Rngs(0), scan_layers=True, **options)
    )


@pytest.mark.parametrize(
    ("size", "count"), [("2b", 2_682_862_080), ("9b", 8_579_977_216)]
)
def test_published_parameter_counts(size, count):
    model = abstract(griffin.recurrent_gemma, griffin.RECURRENT_GEMMA[size])
    assert parameters(model) == count
    bias = 50.5 if size == "2b" else 64.0
    assert model.embedding_scale == bias and model.soft_cap == 30


@pytest.mark.parametrize("size", griffin.PAPER)
@pytest.mark.parametrize("make", [griffin.hawk, griffin.griffin])
def test_parameter_counts_of_the_paper(make, size):
    """By the closed form of a block, layer by layer."""
    s = griffin.PAPER[size]
    d, r, f, blocks = s.d_model, s.lru_width, 3 * s.d_model, s.n_blocks
    assert d // s.n_heads == 128
    around = 2 * d + (2 * d * f + 2 * f) + (f * d + d)
    recurrent = 2 * (d * r + r) + (r * d + d) + 5 * r + r + 2 * (r * r // blocks + r)
    attention = 2 * d * d + 2 * d * 128 + d
    count = 0 if make is griffin.hawk else s.n_layers // 3
    want = s.n_layers * around + (s.n_layers - count) * recurrent + count * attention
    vocabulary = 1000
    want += vocabulary * d + d
    assert parameters(abstract(make, s, vocab_size=vocabulary)) == want


def tiny(**options):
    return griffin.recurrent_gemma(
        griffin.TINY, vocab_size=11, window=4, rngs=nnx.Rngs(0), **options
    )


def test_documents_never_see_each_other():
    """By gradients, exactly zero: recurrence, convolution and attention, all layers."""
    model = tiny()
    x = jax.random.normal(jax.random.key(0), (1, 12, 32))
    starts = (0, 5, 6)
    reset = jnp.zeros((1, 12), bool).at[0, jnp.array(starts[1:])].set(True)
    document = np.cumsum(np.asarray(reset[0]))

    @jit
    def influence(x, reset):
        """How much step t of the output moves with step s of the input, (T, T)."""

        def outputs(x):
            y, _ = model.stack(x, reset=reset)
            return jnp.einsum("btd,d->bt", y, jnp.cos(jnp.arange(32.0)))[0]

        return jnp.abs(jax.jacrev(outputs)(x))[:, 0].max(axis=-1)

    moved = influence(x, reset) > 0
    same = document[:, None] == document[None]
    np.testing.assert_array_equal(moved, same & np.tri(12, dtype=bool))
    # Without reset every step sees all before it, some layers deep.
    across = influence(x, jnp.zeros_like(reset)) > 0
    np.testing.assert_array_equal(across, np.tri(12, dtype=bool))


def test_left_padding_leaves_no_trace():
    model = tiny()
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
    reset = jnp.zeros((2, 9), bool).at[0, 0].set(True).at[1, 5].set(True)
    run = jit(lambda tokens, reset: model(tokens, reset=reset))
    logits, carry = run(tokens, reset)
    want, after = run(tokens[1:, 5:], reset[1:, 5:])
    np.testing.assert_allclose(logits[1:, 5:], want, atol=1e-5)
    for mine, theirs in zip(
        jax.tree.leaves(carry), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_allclose(mine[1:], theirs, atol=1e-5)


def stacked(model):
    """The parameters of listed blocks in the form of scanned rounds of three."""
    params = nnx.to_pure_dict(nnx.state(model))
    blocks = params["stack"].pop("blocks")
    rounds = len(blocks) // 3
    if rounds:
        params["stack"]["blocks"] = {
            place: jax.tree.map(
                lambda *v: jnp.stack(v), *[blocks[3 * i + place] for i in range(rounds)]
            )
            for place in range(3)
        }
    if len(blocks) % 3:
        rest = range(3 * rounds, len(blocks))
        params["stack"]["rest"] = {i - 3 * rounds: blocks[i] for i in rest}
    return params


@pytest.mark.parametrize(
    "n_layers",
    [
        2,
        pytest.param(4, marks=pytest.mark.slow),
        pytest.param(6, marks=pytest.mark.slow),
    ],
)
def test_scan_and_remat_change_no_number(n_layers):
    """Rounds of blocks and what is left over; with and without either."""
    size = griffin.TINY._replace(n_layers=n_layers)
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
    reset = jnp.zeros((2, 6), bool).at[0, 3].set(True)

    def make(**options):
        return griffin.griffin(
            size, vocab_size=11, window=3, rngs=nnx.Rngs(0), **options
        )

    def run(model, params):
        graphdef, _ = nnx.split(model)

        def loss(params):
            model = nnx.merge(graphdef, params)
            return cross_entropy(model(tokens, reset=reset)[0], tokens)

        return jit(jax.grad(loss))(params)

    plain, scanned = make(), make(scan_layers=True, remat=True)
    params = nnx.to_pure_dict(nnx.state(scanned))
    want_params = stacked(plain)
    jax.tree.map(np.testing.assert_array_equal, params, want_params)
    graph, _ = nnx.split(plain)
    want = stacked(nnx.merge(graph, run(plain, nnx.to_pure_dict(nnx.state(plain)))))
    got = run(scanned, params)
    jax.tree.map(
        # The same sums in another order: some hundred float32 roundings.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=2e-5),
        got,
        want,
    )


@pytest.mark.slow
def test_ambient_mesh():
    """Sequences cut over four devices, the batch over two."""
    model = tiny()
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 11)
    reset = jnp.zeros((2, 16), bool).at[0, 7].set(True).at[1, 4].set(True)
    graphdef, params = nnx.split(model)

    def run(params):
        def loss(params):
            logits, _ = nnx.merge(graphdef, params)(tokens, reset=reset)
            return cross_entropy(logits, tokens), logits

        return jax.grad(loss, has_aux=True)(params)

    want = jit(run)(params)
    mesh = jax.make_mesh((2, 4), ("data", "time"), (jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        got = jit(run)(params)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # The same sums in another order: some hundred float32 roundings.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)


def test_bfloat16_keeps_recurrences_in_float32():
    model = tiny(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    logits, carry = jit(model)(jnp.zeros((1, 5), int))
    assert logits.dtype == jnp.float32 and bool(jnp.all(jnp.abs(logits) < 30))
    kinds = {
        jax.tree_util.keystr(path[-1:]): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(carry)
    }
    assert kinds["['state']"] == jnp.float32 and kinds["['keys']"] == jnp.bfloat16


def test_parameter_groups():
    labels = ssm.param_groups.labels(tiny())
    block = labels["stack"]["blocks"][0]
    rg_lru = block["mixer"]["rg_lru"]
    assert rg_lru["a_param"] == "recurrence"
    assert rg_lru["a_gate"] == {"kernel": "regular", "bias": "norm_and_bias"}
    assert block["mixer"]["conv"] == {"kernel": "regular", "bias": "norm_and_bias"}
    assert block["norm"] == block["mlp_norm"] == {"scale": "norm_and_bias"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny(soft_cap=0.0), "soft_cap=0.0, wanted a positive number or None"),
        (
            lambda: ssm.models.Stack((), 2, rngs=nnx.Rngs(0)),
            "make_block is empty, wanted at least one builder",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
