"""The layer against published code and numbers worked out elsewhere; slopes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from ssm import initializers
from ssm.layers import LightningAttention
from ssm.layers.hgru import LayerNorm
from tests import golden
from tests.ssm import law, long
from tests.ssm.filling import wave, with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)
MINIMAX = {
    "activate_value": True,
    "gate_activation": nnx.sigmoid,
    "norm": nnx.RMSNorm,
}


def part(file, prefix):
    """The arrays whose names start with `prefix`, under the rest of them."""
    return {
        key.removeprefix(prefix): array
        for key, array in file.items()
        if key.startswith(prefix)
    }


def from_minimax(tensors, heads):
    """transformers' weights as ours: in theirs q, k, v take turns by heads."""
    weight = tensors["qkv_proj.weight"]
    parts = np.moveaxis(weight.reshape(heads, 3, -1, weight.shape[1]), 1, 0)
    flat = [one.reshape(-1, weight.shape[1]).T for one in parts]
    ours = dict(zip(("query", "key", "value"), flat, strict=True))
    ours |= {
        "gate": tensors["output_gate.weight"].T,
        "out": tensors["out_proj.weight"].T,
    }
    kernels = {name: {"kernel": kernel} for name, kernel in ours.items()}
    return kernels | {"norm": {"scale": tensors["norm.weight"]}}


MINIMAX_CASES = {
    "h4_d8_layer0of4": (4, 8, 0, {}),
    "h8_d8_layer2of4_wide": (8, 8, 2, {}),
    "h2_d12_layer3of4_gelu": (
        2,
        12,
        3,
        {"activation": functools.partial(nnx.gelu, approximate=False)},
    ),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("h4_d8_layer0of4", "float64"),
        ("h8_d8_layer2of4_wide", "float32"),
        ("h2_d12_layer3of4_gelu", "float64"),
        pytest.param("h4_d8_layer0of4", "float32", marks=pytest.mark.slow),
        pytest.param("h8_d8_layer2of4_wide", "float64", marks=pytest.mark.slow),
        pytest.param("h2_d12_layer3of4_gelu", "float32", marks=pytest.mark.slow),
    ],
)
def test_equals_minimax(case, dtype):
    """transformers' layer: outputs, states, gradients; left padding; a first state."""
    heads, width, place, options = MINIMAX_CASES[case]
    file = golden.load("hf_minimax_lightning_layer.npz")
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance_by_case"][case]
    if dtype == "float64":
        tolerance = {"out": 1e-12, "grad": 1e-12}

    of = functools.partial(part, file)

    slopes = initializers.decay_slopes(heads, 4, kind="minimax")[place]
    weights, data = of(f"w/{case}/"), of(f"in/{case}/")
    np.testing.assert_allclose(slopes, weights["slope_rate"].ravel(), rtol=1e-6)
    with jax.enable_x64(dtype == "float64"):
        layer = nnx.eval_shape(
            lambda: LightningAttention(
                32,
                heads,
                head_dim=width,
                slopes=slopes,
                param_dtype=dtype,
                rngs=nnx.Rngs(0),
                **MINIMAX,
                **options,
            )
        )
        graphdef, params = with_params(layer, from_minimax(weights, heads))
        x, d_y, d_state, state0 = (
            jnp.asarray(data[name], dtype)
            for name in ("x", "cot_y", "cot_state", "state0")
        )

        @jit
        def run(params, x, d_y, d_state):
            out, pull = jax.vjp(lambda p, x: nnx.merge(graphdef, p)(x), params, x)
            return out, pull((d_y, d_state))

        (y, state), (d_params, d_x) = run(params, x, d_y, d_state)
        reset = np.diff(data["padding_mask"], axis=1, prepend=1) > 0
        forward = jit(lambda p, x, s, r: nnx.merge(graphdef, p)(x, s, reset=r))
        masked = forward(params, x, jnp.zeros_like(state0), jnp.asarray(reset))
        later = forward(params, x, state0, jnp.zeros_like(reset))
    want = of(f"out64/{case}/")
    close(y, want["y"], tolerance["out"])
    close(state, want["final_state"], tolerance["out"])
    close(later[0], want["from_state0/y"], tolerance["out"])
    close(later[1], want["from_state0/final_state"], tolerance["out"])
    # Outputs of padding differ. The second sequence is padded on the right, where the
    # published code lets the state decay.
    seen = data["padding_mask"] > 0
    close(np.asarray(masked[0])[seen], want["masked/y"][seen], tolerance["out"])
    close(masked[1][:1], want["masked/final_state"][:1], tolerance["out"])
    gradients = of(f"grad64/{case}/")
    close(d_x, gradients.pop("x"), tolerance["grad"])
    got = traverse_util.flatten_dict(d_params)
    wanted = traverse_util.flatten_dict(from_minimax(gradients, heads))
    for path, value in wanted.items():
        scale = np.abs(gradients["qkv_proj.weight"]).max()
        scale = scale if path[0] in ("query", "key", "value") else np.abs(value).max()
        atol = tolerance["grad"] * scale
        np.testing.assert_allclose(got[path], value, rtol=0, atol=atol)


NAMES = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}


def from_transnormer(tensors):
    """The weights of the newer TransNormer module as ours."""
    ours = {"norm": {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]}}
    names = NAMES | {"output_gate.0": "gate.0", "output_gate.1": "gate.1"}
    for theirs, name in names.items():
        linear = {"kernel": tensors[f"{theirs}.weight"].T}
        if f"{theirs}.bias" in tensors:
            linear["bias"] = tensors[f"{theirs}.bias"]
        if name.startswith("gate"):
            gate = ours.setdefault("gate", {"layers": {}})
            gate["layers"][int(name[-1])] = linear
        else:
            ours[name] = linear
    return ours


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ["tnl_layer0of4", "tnl_layer2of4_bias"])
def test_equals_transnormer(case, dtype):
    """The newer module of its authors: values and gradients of all parameters."""
    file = golden.load("lightning_attention.npz")
    meta = json.loads(str(file["meta"]))
    tolerance = meta["suggested_tolerance_by_case"][case]
    if dtype == "float64":  # round-off; gradients are stored in float32
        tolerance = {"out": 1e-12, "grad": 1e-7}
    heads = meta["tnl_cases"][case]["num_heads"]
    slopes = file[f"in/{case}/slope_rate"].ravel()
    built = initializers.decay_slopes(heads, 4, kind="transnormer")
    place = meta["tnl_cases"][case]["layer_idx"]
    np.testing.assert_allclose(built[place], slopes, rtol=1e-6)

    of = functools.partial(part, file)

    with jax.enable_x64(dtype == "float64"):
        layer = nnx.eval_shape(
            lambda: LightningAttention(
                32,
                heads,
                activate_value=True,
                norm=LayerNorm,
                gate_activation=nnx.sigmoid,
                gate_rank=32 // heads,
                bias="bias" in case,
                slopes=slopes,
                param_dtype=dtype,
                rngs=nnx.Rngs(0),
            )
        )
        graphdef, params = with_params(layer, from_transnormer(of(f"w/{case}/")))
        x, d_y = (jnp.asarray(file[f"in/{case}/{k}"], dtype) for k in ("x", "cot_y"))

        @jit
        def run(params, x, d_y):
            y, pull = jax.vjp(lambda p, x: nnx.merge(graphdef, p)(x)[0], params, x)
            return y, pull(d_y)

        y, (d_params, d_x) = run(params, x, d_y)
    close(y, file[f"out64/{case}/y"], tolerance["out"])
    gradients = of(f"grad64/{case}/")
    close(d_x, gradients.pop("x"), tolerance["grad"])
    got = traverse_util.flatten_dict(d_params)
    wanted = traverse_util.flatten_dict(from_transnormer(gradients))
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        close(got[path], value, tolerance["grad"])


X = [[1, -0.5, 0.5, 2], [-1, 0.25, 2, -1]]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("turned", "want"),
    [
        (False, [0.01923878, 0.30089179, -0.5588932, 0.70149267]),
        (True, [0.01877125, 0.3007088, -0.55809754, 0.70024848]),
    ],
)
def test_worked_example_of_transnormer(turned, want):
    options = {"turned": turned, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    layer = LightningAttention(4, 2, slopes=(0.25, 0.0625), **options)
    _, own = nnx.split(layer)
    q, k, v, u = np.split(wave(1, 16, 4).T, 4, axis=1)
    kernels = {"query": q, "key": k, "value": v, "gate": u, "out": wave(0, 4, 4).T}
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    params["norm"] = {}
    if turned:
        params["theta"] = nnx.to_pure_dict(own)["theta"]
        np.testing.assert_allclose(params["theta"], [[1, 0.01], [1e-4, 1e-6]])
    params = {k: v for k, v in params.items() if k in nnx.to_pure_dict(own)}
    layer = nnx.merge(*with_params(layer, params))
    first = [0.74728143, -0.5857718, 0.30331016, 0.04177989]
    x = jnp.array([X], float)
    y, carry = layer(x)
    np.testing.assert_allclose(y.ravel(), first + want, atol=2e-7)  # from float32
    # Step by step; if turned the carry says where the sequence is.
    _, state = layer(x[:, :1])
    y, after = layer.step(x[:, 1], state)
    np.testing.assert_allclose(y[0], want, atol=2e-7)
    law.same(after, carry, 1e-12)


@pytest.mark.usefixtures("x64")
def test_worked_turn():
    layer = LightningAttention(
        4, 2, turned=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    x = jnp.array([[[[1, 2], [3, 4]], [[3, 4], [3, 4]]]], float)
    got = layer._turn(x, jnp.arange(2)[None])
    np.testing.assert_allclose(got[0, 0, 0], [1, 2, 0, 0], atol=1e-8)
    want = [1.62090707, 3.99979997, 2.52441287, 0.03999933]
    np.testing.assert_allclose(got[0, 1, 0], want, atol=1e-8)
    np.testing.assert_allclose(got[0, 1, 1], [3, 4, 3e-4, 4e-6], atol=2e-8)


@pytest.mark.usefixtures("x64")
def test_worked_example_of_minimax():
    slopes = initializers.decay_slopes(2, 2, kind="minimax")[0]
    np.testing.assert_allclose(slopes, [0.06250063, 0.00390629], atol=1e-8)
    options = {"slopes": slopes, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    layer = LightningAttention(4, 2, **MINIMAX, **options)
    tensors = {"norm.weight": wave(0, 4), "out_proj.weight": wave(1, 4, 4)}
    tensors |= {"output_gate.weight": wave(2, 4, 4), "qkv_proj.weight": wave(3, 12, 4)}
    layer = nnx.merge(*with_params(layer, from_minimax(tensors, 2)))
    y, carry = layer(jnp.array([X], float))
    want = [0.14721285, -0.15247071, 0.12624595, -0.07395349]
    want += [-0.16047519, 0.16844204, -0.14162844, 0.08557095]
    np.testing.assert_allclose(y.ravel(), want, atol=1e-7)  # from float32
    state = [0.33486134, -0.13479313, -0.24507904, 0.10009937]
    state += [0.05109639, -0.09586347, -0.17801777, 0.37003189]
    np.testing.assert_allclose(carry.ravel(), state, atol=1e-7)
    y, _ = layer.step(jnp.array([[0.5, 1, -1, 0]]), carry)
    want = [-0.2314382, 0.2150618, -0.15427874, 0.06163973]
    np.testing.assert_allclose(y[0], want, atol=1e-7)


def test_built_slopes():
    """Those of the authors' function for powers of two and others."""
    file = golden.load("lightning_attention.npz")
    for heads in (1, 2, 4, 6, 8, 12, 16, 32):
        want = file[f"in/slope_table/h{heads}"].ravel()
        np.testing.assert_allclose(initializers.alibi_slopes(heads), want, rtol=1e-6)


def test_slopes_of_all_layers():
    slopes = initializers.decay_slopes(12, 24, kind="transnormer")
    powers = 2.0 ** -np.arange(1, 9)
    own = np.concatenate([powers, [0.70710677, 0.35355338, 0.17677669, 0.08838835]])
    np.testing.assert_allclose(slopes[0], 1.00001 * own, rtol=1e-6)
    np.testing.assert_allclose(slopes[12], 0.47827087 * own, rtol=1e-6)
    np.testing.assert_allclose(slopes[23], 1e-5 * own, rtol=1e-6)
    paper = initializers.decay_slopes(4, 12, kind="paper")
    np.testing.assert_allclose(paper[3], [0, 1.5, 3, 4.5])
    minimax = initializers.decay_slopes(8, 4, kind="minimax")
    alike = initializers.decay_slopes(8, 4, kind="transnormer")
    np.testing.assert_allclose(minimax, alike, atol=4e-6)
    with pytest.raises(ValueError, match="kind='alibi' is unknown"):
        initializers.decay_slopes(8, 4, kind="alibi")


def test_left_padding_leaves_no_trace():
    """Of a sequence that starts late: outputs and carry are those of itself alone."""
    layer = LightningAttention(6, 2, turned=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 9, 6))
    reset = jnp.zeros((2, 9), bool).at[1, 5].set(True)
    y, carry = jit(lambda x, r: layer(x, reset=r))(x, reset)
    want, after = jit(layer)(x[1:, 5:])
    np.testing.assert_allclose(y[1:, 5:], want, atol=1e-6)
    law.same(jax.tree.map(lambda leaf: leaf[1:], carry), after, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transnormer", "minimax"])
@pytest.mark.parametrize("slopes", [(0.5, 1e-5), (20, 20)])
def test_bfloat16_over_4096_steps(slopes, kind):
    """A head that all but never forgets, and two that keep exp(-20) of a step."""
    options = {"slopes": slopes} | (MINIMAX if kind == "minimax" else {})
    x = np.random.default_rng(0).normal(size=(1, 4096, 16))

    def make(**types):
        return LightningAttention(16, 2, rngs=nnx.Rngs(0), **types, **options)

    got, want, carry = long.run(make, x)
    assert carry.dtype == jnp.float32
    # Half a rounding each of: four projections, three activations, o, the norm, its
    # product with the gate, y. As the root of their number, relative to o as its terms
    # are large, and to y through the norm over all heads. Where o is one product for
    # each of two heads, both may be small beside their terms: over all steps that adds
    # the root of the logarithm of half a rounding, 2.5.
    error, scale = got - want, long.root_mean_square(want)
    factor = 4 if slopes[0] < 1 else 4 * 2.5
    assert long.root_mean_square(error) < factor * long.HALF_A_ROUNDING * scale


@pytest.mark.parametrize(("turned", "rows"), [(False, 4), (True, 8)])
def test_size_and_type_of_the_carry(turned, rows):
    layer = LightningAttention(12, 3, turned=turned, rngs=nnx.Rngs(0))
    carry = layer.init_carry(5)
    state = carry["state"] if turned else carry
    assert state.shape == (5, 3, rows, 4) and state.dtype == jnp.float32


def make(*arguments, **options):
    return LightningAttention(*arguments, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(4, 2)(jnp.ones((2, 3, 5))), r"x has shape .* wanted \(B, T, 4\)"),
        (lambda: make(4, 3), "n_heads=3 does not divide d_model=4"),
        (lambda: make(4, 0), "n_heads=0 does not divide d_model=4"),
        (
            lambda: make(4, 2)(jnp.ones((2, 3, 4)), make(4, 1).init_carry(2)),
            r"LightningAttention: the carry is real\[2, 1, 4, 4\], wanted real\[2, 2,",
        ),
        (
            lambda: make(4, 2, turned=True)(
                jnp.ones((2, 3, 4)), make(4, 2).init_carry(2)
            ),
            r"the carry is real\[2, 2, 2, 2\], wanted {.*'state': 'real\[2, 2, 4, 2",
        ),
        (lambda: make(4, 2, slopes=(1,)), "wanted 2 numbers, zero or more, one a head"),
        (lambda: make(4, 2, slopes=(1, -1)), "wanted 2 numbers, zero or more"),
        (
            lambda: make(4, 2)(jnp.ones((2, 3, 4)), slopes=jnp.ones(3)),
            r"slopes has shape \(3,\), wanted \(2,\) = \(n_heads,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
