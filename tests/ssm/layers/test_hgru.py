"""The HGRU against published code and numbers worked out elsewhere; lower bounds."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from ssm.layers import HGRN2, HGRU, LowerBounds
from tests import golden
from tests.ssm import law, long
from tests.ssm.filling import HGRU_PROJECTIONS, HGRU_X, hgru_of_waves, with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)

# What each case of the file is here. Those of V2 and V3 have maps of low rank, which
# are maps.
V2 = {"gate_activation": nnx.sigmoid}
CASES = {
    "hgru1d_causal_lb0": {"lower_bound": 0.0},
    "hgru1d_causal_lb0.3": {"lower_bound": 0.3},
    "hgru1d_causal_lbvec": {},
    "hgru1d_causal_nobias_lbvec": {"bias": False},
    "hgru1d_noncausal_lbvec": {"bidirectional": True, "shared_phase": True},
    "bihgru1d_lbvec": {"bidirectional": True},
    "hgru1dv2_causal_lbvec": V2,
    "hgru1dv3_causal_lbvec": V2 | {"gate_first": True},
    "hgrureal_causal_lb0": {"real": True},
    "hgrureal_causal_lbvec": {"real": True},
    "hgrureal_noncausal_lbvec": {"real": True, "bidirectional": True},
}


def parameters(file, prefix):
    """Those of a case, as a nested dict of ours; low-rank maps multiplied out."""
    theirs = {
        key[len(prefix) :]: value
        for key, value in file.items()
        if key.startswith(prefix)
    }
    ours = {}
    for name in HGRU_PROJECTIONS:
        if f"{name}.0.weight" in theirs:
            first, second = (theirs[f"{name}.{i}.weight"].T.astype(float) for i in "01")
            low, high = (theirs[f"{name}.{i}.bias"].astype(float) for i in "01")
            ours[name] = {"kernel": first @ second, "bias": low @ second + high}
        elif f"{name}.weight" in theirs:
            ours[name] = {"kernel": theirs[f"{name}.weight"].T}
            if f"{name}.bias" in theirs:
                ours[name]["bias"] = theirs[f"{name}.bias"]
    ours["norm"] = {"scale": theirs["norm.weight"], "bias": theirs["norm.bias"]}
    for name in ("theta", "theta_forward", "theta_reverse"):
        if name in theirs:
            ours[name.removesuffix("_forward")] = theirs[name].ravel()
    return ours


def gradients(file, case):
    """As `parameters`; those of low-rank maps are of other parameters: none."""
    prefix = f"grad64/{case}/"
    ranks = [key for key in file if key.startswith(prefix) and "proj.0." in key]
    if not ranks:
        return parameters(file, prefix)
    return {"out_proj": {"kernel": file[prefix + "out_proj.weight"].T}}


QUICK = ("hgru1d_causal_lbvec", "bihgru1d_lbvec", "hgrureal_causal_lb0")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            case,
            dtype,
            marks=() if dtype == "float64" or case in QUICK else pytest.mark.slow,
        )
        for case in CASES
        for dtype in ("float32", "float64")
    ],
)
def test_equals_the_published_code(case, dtype):
    """Outputs, what the norm sees, gradients of x, all parameters and the bound."""
    file = golden.load("hgru_layers.npz")
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance_by_case"][case]
    if dtype == "float64":  # round-off; gradients are stored in float32
        tolerance = {"out": 1e-12, "grad": 1e-7}
    with jax.enable_x64(dtype == "float64"):
        layer = nnx.eval_shape(
            lambda: HGRU(12, param_dtype=dtype, rngs=nnx.Rngs(0), **CASES[case])
        )
        graphdef, params = with_params(layer, parameters(file, f"w/{case}/"))
        x, d_y = (
            jnp.asarray(np.swapaxes(file[f"in/{name}"], 0, 1), dtype)
            for name in ("x", "cot_y")
        )
        bound = None
        if case.endswith("lbvec"):
            bound = jnp.asarray(file["in/lower_bound_vector"], dtype)

        @jit
        def run(params, x, bound):
            return jax.vjp(
                lambda *a: nnx.merge(graphdef, a[0])(a[1], lower_bound=a[2])[0],
                params,
                x,
                bound,
            )

        y, pull = run(params, x, bound)
        d_params, d_x, d_bound = jit(lambda pull, d_y: pull(d_y))(pull, d_y)
    close(np.swapaxes(y, 0, 1), file[f"out64/{case}/y"], tolerance["out"])
    want = file[f"grad64/{case}/x"]
    close(np.swapaxes(d_x, 0, 1), want, tolerance["grad"])
    got = traverse_util.flatten_dict(d_params)
    for path, want in traverse_util.flatten_dict(gradients(file, case)).items():
        close(got[path], want, tolerance["grad"])
    if bound is not None:
        close(d_bound, file[f"grad64/{case}/lower_bound"], tolerance["grad"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("options", "want"),
    [
        (
            {},
            [0.75811174, 0.67230913, -0.95045134, 1.99157513]
            + [0.94787215, 0.04309791, 1.90078101, 0.2354581],
        ),
        (
            {"bidirectional": True, "shared_phase": True},
            [0.93911152, 0.60301774, -0.90621823, 1.94407865]
            + [0.98413294, -0.01921178, 1.65066988, 0.38350174],
        ),
        (
            {"bidirectional": True},
            [0.66041919, 0.7266556, -0.88562703, 1.93061165]
            + [1.01755201, -0.08332201, 1.65066988, 0.38350174],
        ),
    ],
    ids=["causal", "one phase", "two phases"],
)
def test_worked_example(options, want):
    layer = hgru_of_waves(HGRU(2, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options))
    if hasattr(layer, "theta_reverse"):
        layer.theta_reverse[...] = jnp.array([0.5, 0.2])
    np.testing.assert_allclose(layer.theta[...], [1, 1e-4], rtol=1e-12)
    y, _ = layer(jnp.array([HGRU_X], float), lower_bound=jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(y.ravel(), want, atol=1e-8)  # their digits


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("bidirectional", "want"),
    [
        (
            False,
            [-0.5491265, 0.97244982, 0.02219615, -1.9025795]
            + [-0.36728867, 0.55595121, 0.58735558, -2.49970384],
        ),
        (
            True,
            [-0.46340643, 0.72943794, 0.37232196, -2.28752417]
            + [-0.16295003, 0.44285781, 0.58585185, -2.3839134],
        ),
    ],
)
def test_worked_real_example(bidirectional, want):
    options = {"bidirectional": bidirectional, "param_dtype": jnp.float64}
    layer = hgru_of_waves(
        HGRU(4, real=True, lower_bound=0.25, rngs=nnx.Rngs(0), **options)
    )
    y, _ = layer(jnp.array(HGRU_X, float).reshape(1, 2, 4))
    np.testing.assert_allclose(y.ravel(), want, atol=1e-8)


def worked_released(bound):
    """The form of released models: no theta, no biases, an RMS norm."""
    layer = HGRU(
        2,
        real=True,
        bias=False,
        norm=nnx.RMSNorm,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    weights = {
        "input_proj": [[1, 0.5], [-0.5, 1]],
        "lambda_proj": [[0.5, -1], [1, 0.5]],
        "gate": [[1, -1], [0.5, 0.5]],
        "out_proj": [[1, 2], [-1, 0.5]],
    }
    params = {name: {"kernel": np.array(w).T} for name, w in weights.items()}
    graphdef, params = with_params(layer, params | {"norm": {"scale": [1, 0.5]}})
    bound = None if bound is None else jnp.array(bound)
    return nnx.merge(graphdef, params)(jnp.array([HGRU_X], float), lower_bound=bound)


@pytest.mark.usefixtures("x64")
def test_worked_example_of_released_models():
    y, carry = worked_released([0.25, 0.5])
    want = [1.52202555, -1.61820233, -0.22338896, 0.42455174]
    want += [-0.43753934, 0.25771268, 3.74567042, -3.47820442]
    # Their norm's epsilon is in the last digit.
    np.testing.assert_allclose(y.ravel(), want, atol=2e-8)
    np.testing.assert_allclose(carry[0], [0.35687767, 0.19853335], atol=1e-8)
    y, _ = worked_released(None)  # as the lowest layer, whose bound is 0
    want = [1.36154912, -1.4939501, -0.12488817, 0.44408014]
    want += [-0.34639193, 0.09554429, 3.14408537, -2.75129537]
    np.testing.assert_allclose(y.ravel(), want, atol=2e-8)


@pytest.mark.parametrize(
    ("convention", "want"),
    [
        ("exclusive", [[0, 0], [0.09003057, 0.66524096], [0.33475904, 0.90996943]]),
        ("shifted", [[0, 0], [0.24472847, 0.24472847], [0.90996943, 0.33475904]]),
    ],
)
def test_lower_bounds(convention, want):
    bounds = LowerBounds(3, 2, convention=convention)
    even = np.array([[0, 0], [1 / 3, 1 / 3], [2 / 3, 2 / 3]])
    np.testing.assert_allclose(bounds()["lower_bound"], even, atol=1e-7)
    bounds.gamma[...] = jnp.array([[0.0, 1], [1, 0], [2, -1]])
    got = bounds()["lower_bound"]
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert (got[0] == 0).all()


def test_published_lower_bounds():
    """Those of a released model, which has the shifted ones."""
    file = golden.load("fla_hgrn_model.npz")
    bounds = LowerBounds(3, 32, convention="shifted")
    bounds.gamma[...] = jnp.asarray(file["w/model.lower_bounds"])
    got = bounds()["lower_bound"]
    np.testing.assert_allclose(got, file["out64/lower_bound_per_layer"], atol=1e-6)


def test_initial_values():
    layer = HGRU(64, rngs=nnx.Rngs(0))
    for name, d_in in (("input_proj", 64), ("lambda_proj", 64), ("out_proj", 128)):
        linear = getattr(layer, name)
        for value in (linear.kernel[...], linear.bias[...]):
            assert np.abs(value).max() <= d_in**-0.5
            # Uniform; five standard errors of the mean square of 64 draws.
            np.testing.assert_allclose(np.mean(value**2) * d_in, 1 / 3, atol=0.19)
    powers = -2 * np.arange(64) / 64
    np.testing.assert_allclose(layer.theta[...], 10_000.0**powers, rtol=1e-5)


@pytest.mark.parametrize("real", [True, False])
def test_types_and_size_of_the_carry(real):
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    layer = HGRU(4, real=real, rngs=nnx.Rngs(0), **options)
    y, carry = jit(layer)(jnp.ones((3, 5, 4)))
    assert y.dtype == jnp.bfloat16 and carry.shape == (3, 4)
    assert carry.dtype == (jnp.float32 if real else jnp.complex64)
    if not real:
        assert layer.theta[...].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize(("pre_activation", "bound"), [(None, 0.9), (-20.0, 0.0)])
def test_bfloat16_over_4096_steps(pre_activation, bound, real):
    """States that live long, and ones that lose exp(-20) a step."""
    x = np.random.default_rng(0).normal(size=(1, 4096, 16))

    def change(params):
        if pre_activation is not None:
            gate = params["lambda_proj"]
            params["lambda_proj"] = {
                "kernel": jnp.zeros_like(gate["kernel"]),
                "bias": jnp.full_like(gate["bias"], pre_activation),
            }

    def make(**types):
        return HGRU(16, real=real, lower_bound=bound, rngs=nnx.Rngs(0), **types)

    got, want, carry = long.run(make, x, change)
    assert carry.dtype == (jnp.float32 if real else jnp.complex64)
    # Half a rounding each of: three projections, what they make, the norm, its product
    # with the gate, y. The gate's enters the input and, for as many steps as that
    # lives, the decay. As the root of their number; the norm divides by a deviation
    # that is as large as its inputs, among which are errors relative to themselves.
    error, scale = got - want, long.root_mean_square(want)
    assert long.root_mean_square(error) < 4 * long.HALF_A_ROUNDING * scale


def test_strong_decays():
    """Forget gates of exp(-20) to exp(-200): the input comes through, nothing else."""
    layer = HGRU(8, rngs=nnx.Rngs(0))
    kernel = layer.lambda_proj.kernel
    kernel[...] = jnp.zeros_like(kernel[...])
    layer.lambda_proj.bias[...] = -jnp.linspace(20, 200, 8)
    x = jax.random.normal(jax.random.key(0), (2, 9, 8))
    y, _ = jit(layer)(x)
    alone, _ = jit(layer)(x[:, -1:])
    # What came before has a weight of exp(-20) = 2e-9.
    np.testing.assert_allclose(y[:, -1:], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: HGRU(4, rngs=nnx.Rngs(0))(jnp.ones((2, 3, 5))),
            r"x has shape .* wanted \(B, T, 4\)",
        ),
        (lambda: HGRU(4, lower_bound=1.0, rngs=nnx.Rngs(0)), "wanted 0 <= it < 1"),
        (
            lambda: HGRU(4, rngs=nnx.Rngs(0))(
                jnp.ones((2, 3, 4)), lower_bound=jnp.ones(3)
            ),
            r"lower_bound has shape \(3,\), wanted \(4,\) = \(d_model,\)",
        ),
        (
            lambda: HGRU(4, rngs=nnx.Rngs(0))(
                jnp.ones((2, 3, 4)), HGRN2(4, 2, rngs=nnx.Rngs(0)).init_carry(2)
            ),
            r"HGRU: the carry is real\[2, 2, 2, 2\], wanted complex\[2, 4\], as ",
        ),
        (lambda: LowerBounds(2, 3, convention="paper"), "wanted 'exclusive' or"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
