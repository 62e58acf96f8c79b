"""The RG-LRU against numbers worked out elsewhere, and its initial values."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm import RGLRU, initializers
from ssm.layers.rg_lru import _clipped_sqrt
from ssm.pretrained.names import Name
from ssm.pretrained.recurrent_gemma import FLAX_RG_LRU, HUB_RG_LRU
from tests import golden
from tests.ssm import published
from tests.ssm.law import QUICK_COMPILE

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
CASES = ("plain", "resets", "h0_offset", "h0_offset_reset", "no_h0_offset")


def make(d_model, n_blocks, **options):
    return RGLRU(d_model, n_blocks, rngs=nnx.Rngs(0), **options)


def with_params(layer, params):
    """The layer with the given values in place of its own."""
    graphdef, state = nnx.split(layer)
    own = nnx.to_pure_dict(state)
    new = jax.tree.map(lambda old, v: jnp.asarray(v, old.dtype), own, params)
    jax.tree.map(lambda old, v: np.testing.assert_equal(v.shape, old.shape), own, new)
    return nnx.merge(graphdef, new)


def gate(kernel, bias):
    return {"kernel": kernel, "bias": bias}


# One block of one channel each, and two blocks of two: from DeepMind's code.
ONE = {
    "a_param": [-4.0, -2.0],
    "a_gate": gate([[[0.5]], [[-1.0]]], [[0.1], [-0.2]]),
    "input_gate": gate([[[1.0]], [[0.25]]], [[0.0], [0.5]]),
}
TWO = {
    "a_param": [-5.0, -4, -3, -2],
    "a_gate": gate(
        np.arange(-4, 4).reshape(2, 2, 2) / 4, np.array([[0, 0.1], [0.2, 0.3]])
    ),
    "input_gate": gate(
        -np.arange(-4, 4).reshape(2, 2, 2) / 4, np.array([[0.3, 0.2], [0.1, 0]])
    ),
}
X = [[1, -0.5], [0.5, 2], [-1, 0.25], [2, -1]]
STARTED = {"state": jnp.zeros((1, 2)), "started": jnp.ones((1,), bool)}


@pytest.mark.parametrize(
    ("carry", "reset", "want"),
    [
        (
            None,
            None,
            [0.73105858, -0.2963333, 0.79454277, 0.35832818]
            + [0.66036735, 0.35904107, 1.37164936, -0.30987625],
        ),
        (
            None,
            [0, 0, 1, 0],
            [0.73105858, -0.2963333, 0.79454277, 0.35832818]
            + [-0.26894142, 0.1592577, 0.53825769, -0.40902457],
        ),
        (
            STARTED,
            None,
            [0.30228109, -0.2458991, 0.4007749, 0.40390414]
            + [0.28888876, 0.38973344, 1.03851233, -0.29464426],
        ),
        (
            STARTED | {"state": jnp.array([[1.0, -1.0]])},
            None,
            [1.21279244, -0.80395131, 1.23694313, -0.10039189]
            + [1.07772559, 0.05012369, 1.74593064, -0.4631855],
        ),
    ],
    ids=["alone", "packed", "in the middle", "with a state"],
)
def test_worked_example(carry, reset, want):
    layer = with_params(make(2, 2), ONE)
    reset = None if reset is None else jnp.array([reset], bool)
    run = jit(lambda x, carry, reset: layer(x, carry, reset=reset))
    y, after = run(jnp.array([X]), carry, reset)
    # The numbers have eight digits and were computed in float32.
    np.testing.assert_allclose(y[0].ravel(), want, atol=5e-7)
    np.testing.assert_array_equal(after["state"], y[:, -1])
    assert after["started"].all()


def test_worked_gradients():
    graphdef, state = nnx.split(with_params(make(2, 2), ONE))

    @jit
    @jax.grad
    def gradient(params, x):
        return jnp.sum(nnx.merge(graphdef, params)(x)[0])

    got = gradient(nnx.to_pure_dict(state), jnp.array([X]))
    for path, want in {
        ("a_param",): [0.11866534, 0.28166401],
        ("a_gate", "kernel"): [0.23895055, 1.17929876],
        ("a_gate", "bias"): [-0.02715411, 0.43423885],
        ("input_gate", "kernel"): [1.07463837, 1.07564735],
        ("input_gate", "bias"): [0.79920447, -0.15137839],
    }.items():
        value = got[path[0]] if len(path) == 1 else got[path[0]][path[1]]
        np.testing.assert_allclose(value.ravel(), want, atol=1e-6)


def test_worked_layout_of_blocks():
    x = jnp.array([[[1, -1, 0.5, 2], [0, 1, -2, 0.5]]])
    y, _ = jit(with_params(make(4, 2), TWO))(x)
    want = [0.68997448, -0.66818777, 0.14452525, 0.32903293]
    want += [0.67612101, -0.40828713, -0.45475385, 0.40661069]
    np.testing.assert_allclose(y.ravel(), want, atol=5e-7)


def test_worked_complex_example():
    params = {
        "a_param": [-4.0, -2.0],
        "a_imag_param": [0.3, 1.0],
        "a_gate": gate([[[0.5], [-1]], [[0.25], [1]]], [[0.1], [-0.2]]),
        "input_gate": gate([[[1], [0.25]], [[-0.5], [0.5]]], [[0], [0.5]]),
    }
    layer = with_params(make(4, 2, complex_gated=True), params)
    y, carry = jit(layer)(jnp.array([[[1, -0.5, 0.5, 2], [-1, 0.25, 2, -1]]]))
    want = [0.70578503, -0.38864993, 0.35289251, 1.55459972]
    want += [0.5468128, -0.57683124, 0.57623644, 0.7706773]
    np.testing.assert_allclose(y.ravel(), want, atol=5e-7)
    assert carry["state"].dtype == jnp.complex64


def test_clipped_square_root():
    u = jnp.array([0, 1e-9, 2.5e-7, 1e-6, 0.25])
    np.testing.assert_allclose(
        jax.vmap(jax.grad(_clipped_sqrt))(u), [1000, 1000, 1000, 500, 1], rtol=1e-6
    )


def compare(file, case, layer, table, weights, state, positions, dtype):
    """Outputs and gradients of one case of a file."""
    meta = json.loads(str(file["meta"]))
    kind = case.split("/")[0]
    tolerance = meta["suggested_tolerance_by_case"][kind]
    if dtype == "float64":  # round-off; gradients may be stored in float32
        stored = file[f"grad64/{case}/x"].dtype
        tolerance = {"out": 1e-12, "grad": 1e-12 if stored == np.float64 else 1e-7}
    graphdef, params = published.take(layer, table, file, weights)
    x, d_y, d_last = (
        jnp.asarray(file[f"in/{name}"], dtype) for name in ("x", "cot_y", "cot_h_last")
    )
    started = jnp.ones(2, bool)
    reset = jnp.asarray(positions == 0)

    @jax.jit
    def run(params, x, state):
        carry = {"state": state, "started": started}
        y, carry = nnx.merge(graphdef, params)(x, carry, reset=reset)
        last = carry["state"]
        if kind == "complex":
            last = jnp.concatenate([last.real, last.imag], axis=-1)
        return y, last

    (y, last), pull = jax.vjp(run, params, x, state)
    published.close(y, file[f"out64/{case}/y"], tolerance["out"])
    published.close(last, file[f"out64/{case}/h_last"], tolerance["out"])
    d_params, d_x, d_state = pull((d_y, d_last))
    published.close(d_x, file[f"grad64/{case}/x"], tolerance["grad"])
    prefix = f"grad64/{case}/" + ("params/" if weights.endswith("params/") else "")
    published.check_gradients(d_params, table, file, prefix, tolerance["grad"])
    if f"grad64/{case}/h0" in file:
        published.close(d_state, file[f"grad64/{case}/h0"], tolerance["grad"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("hf", "float64"),
        ("dm", "float32"),
        pytest.param("hf", "float32", marks=pytest.mark.slow),
        pytest.param("dm", "float64", marks=pytest.mark.slow),
    ],
)
def test_equals_the_published_code(source, case, dtype):
    """Outputs and gradients of transformers' and of DeepMind's own, in float64."""
    file = golden.load(f"{source}_rglru_layer.npz")
    table = HUB_RG_LRU if source == "hf" else FLAX_RG_LRU
    weights = "w/" if source == "hf" else "w/params/"
    with jax.enable_x64(dtype == "float64"):
        layer = nnx.eval_shape(lambda: make(64, 4, param_dtype=dtype))
        given = case.startswith("h0")
        state = file["in/h0"] if given else np.zeros((2, 64))
        key = "position_ids" if f"in/{case}/position_ids" in file else "segment_pos"
        positions = file[f"in/{case}/{key}"]
        state = jnp.asarray(state, dtype)
        compare(file, case, layer, table, weights, state, positions, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ["complex/plain", "complex/resets"])
def test_complex_equals_the_published_code(case, dtype):
    file = golden.load("dm_rglru_layer.npz")
    with jax.enable_x64(dtype == "float64"):
        layer = nnx.eval_shape(
            lambda: make(64, 4, complex_gated=True, param_dtype=dtype)
        )
        wide = jnp.complex128 if dtype == "float64" else jnp.complex64
        state = jnp.zeros((2, 32), wide)
        table = FLAX_RG_LRU | {("a_imag_param",): Name("a_imag_param")}
        positions = file[f"in/{case.split('/')[1]}/segment_pos"]
        weights = "w/complex/params/"
        compare(file, case, layer, table, weights, state, positions, dtype)


@pytest.mark.usefixtures("x64")
def test_equals_the_layers_of_a_packed_model():
    """What transformers' model fed to its recurrences, and what these made of it."""
    file = golden.load("hf_recurrentgemma_a.npz")
    reset = jnp.asarray(file["in/position_ids_packed"] == 0)
    layer = nnx.eval_shape(lambda: make(64, 4, param_dtype=jnp.float64))
    run = None
    for i in (0, 1, 3, 4):
        prefix = f"w/model.layers.{i}.temporal_block.rg_lru."
        graphdef, params = published.take(layer, HUB_RG_LRU, file, prefix)
        run = run or jit(lambda p, x, g=graphdef: nnx.merge(g, p)(x, reset=reset)[0])
        activations = f"out64/act_packed/layer{i}/rg_lru/"
        y = run(params, file[activations + "in"])
        published.close(y, file[activations + "out"], 1e-12)


def test_drawn_decays_fill_the_ring():
    decay = jnp.exp(-jax.nn.softplus(make(20_000, 1000).a_param[...]))
    assert decay.min() >= 0.9 - 1e-6 and decay.max() <= 0.999 + 1e-6
    # Uniform on the ring: the squares are uniform. 5 standard errors.
    np.testing.assert_allclose(np.mean(decay**2), (0.81 + 0.998001) / 2, atol=2e-3)
    ends = initializers.rg_lru_ring(jnp.array([0.0, 1.0]), r_min=0.9, r_max=0.999)
    np.testing.assert_allclose(ends, [-2.197, -6.907], atol=1e-3)


def test_initial_gates_and_phases():
    layer = make(256, 4, complex_gated=True)
    # Variance 1 / 256; 5 standard errors of a standard deviation from 32768 draws.
    np.testing.assert_allclose(np.std(layer.a_gate.kernel[...]), 1 / 16, rtol=0.02)
    assert not layer.a_gate.bias[...].any() and not layer.input_gate.bias[...].any()
    phase = layer.a_imag_param[...]
    assert phase.min() >= 0 and phase.max() <= 0.1 * np.pi


def test_types():
    """bfloat16 gates and inputs; the recurrence stays in float32."""
    layer = make(8, 2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 9, 8))
    y, carry = jit(layer)(x)
    assert y.dtype == jnp.bfloat16 and carry["state"].dtype == jnp.float32
    assert layer.a_param[...].dtype == jnp.float32
    assert layer.a_gate.kernel[...].dtype == jnp.bfloat16
    y32, _ = jit(with_params(make(8, 2), nnx.to_pure_dict(nnx.state(layer))))(x)
    # x, the gates' products of 4 terms and y are rounded; a decay near one amplifies
    # what reaches its logarithm by at most the 9 steps.
    assert np.max(np.abs(y.astype(jnp.float32) - y32)) < 16 * 2**-8 * np.max(
        np.abs(y32)
    )


def test_a_slow_channel_does_not_freeze_in_bfloat16():
    layer = make(1, 1, dtype=jnp.bfloat16)
    params = nnx.to_pure_dict(nnx.state(layer))
    params["a_param"] = [-9.0]
    params["a_gate"]["kernel"] = params["input_gate"]["kernel"] = [[[0.0]]]
    _, carry = jit(with_params(layer, params))(jnp.ones((1, 400, 1)))
    # Both gates are 1/2; the sum is known from float32.
    rate = 4 * np.log1p(np.exp(-9.0))
    powers = np.exp(-rate * np.arange(400))
    want = 0.5 * (np.sqrt(-np.expm1(-2 * rate)) * powers[:-1].sum() + powers[-1])
    np.testing.assert_allclose(carry["state"][0, 0], want, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(4, 2)(jnp.ones((2, 3, 5))), r"x has shape .* wanted \(B, T, 4\)"),
        (lambda: make(4, 3), r"n_blocks=3, wanted a divisor of the widths 4 and 4"),
        (lambda: make(4, 2, r_min=0.9, r_max=0.5), "wanted 0 <= r_min < r_max < 1"),
        (lambda: make(3, 1, complex_gated=True), "d_model=3, wanted even"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
