"""S4D against published code, numbers worked out elsewhere and its own equations."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import S4D
from ssm.layers.discretization import bilinear, zoh
from tests import golden
from tests.pairwise import mostly_slow
from tests.ssm import law
from tests.ssm.filling import of_two, with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)

FILE = "s4_layers.npz"
OPTIONS = {
    "s4d_minimal": {},
    "diag_zoh": {},
    "diag_bilinear_inv": {"n_ssm": 2, "discretization": "bilinear"},
    "diag_legs_softplus_dtuntied": {},
    "diag_channels2_bidir": {"bidirectional": True},
}
TOLERANCES = {  # of float32, as the file suggests: outputs, gradients
    "s4d_minimal": (6.4e-6, 4.6e-5),
    "diag_zoh": (1.3e-5, 1.5e-5),
    "diag_bilinear_inv": (2.7e-5, 2.1e-5),
    "diag_legs_softplus_dtuntied": (1.8e-5, 6.4e-5),
    "diag_channels2_bidir": (8.2e-6, 3.6e-5),
}


def raw_parameters(file, case, prefix="w"):
    """The published ones by their own names, without those of the output map."""
    prefix = f"{prefix}/{case}/"
    return {
        key[len(prefix) :].removeprefix("layer.").removeprefix("kernel."): value
        for key, value in file.items()
        if key.startswith(prefix)
    }


def ours(raw, case, channel=0):
    """Our parameters from the published ones, differentiably."""
    if case == "s4d_minimal":
        pairs = {"c": raw["C"]}
        params = {
            "log_dt": raw["log_dt"],
            "log_a_re": raw["log_A_real"],
            "a_im": raw["A_imag"],
            "d": raw["D"],
        }
        pairs["b"] = jnp.stack([jnp.ones_like(params["a_im"]), 0 * params["a_im"]], -1)
    else:
        log_dt, log_a_re, a_im = raw["inv_dt"], raw["A_real"], -raw["A_imag"]
        pairs = {"b": raw["B"][0], "c": raw["C"][channel]}
        if case == "diag_legs_softplus_dtuntied":
            # A dt of each state is a dt of one and another lambda and B.
            dt, a_re = jax.nn.softplus(log_dt), jax.nn.softplus(log_a_re)
            log_a_re, a_im = jnp.log(dt * a_re), dt * a_im
            pairs["b"] = dt[..., None] * pairs["b"]
            log_dt = jnp.zeros_like(log_dt[:, :1])
        params = {
            "log_dt": log_dt[:, 0],
            "log_a_re": log_a_re,
            "a_im": a_im,
            "d": raw["D"][channel],
        }
        if case == "diag_channels2_bidir":
            pairs["c2"] = raw["C"][2 + channel]
    for name, pair in pairs.items():
        params[f"{name}_re"], params[f"{name}_im"] = pair[..., 0], pair[..., 1]
    return params


def same(got, want, tolerance):
    jax.tree.map(lambda g, w: close(g, w, tolerance), got, want)


def published_output(raw, y):
    """What follows there after exact GELU: a map to twice the channels, a gate."""
    kernel, bias = raw["output_linear.0.weight"], raw["output_linear.0.bias"]
    return jax.nn.glu(y @ kernel.reshape(kernel.shape[:2]).T + bias[None, None])


@pytest.mark.parametrize("mode", ["convolution", "recurrent"])
@pytest.mark.parametrize("dtype", mostly_slow(["float32", "float64"], "float64"))
@pytest.mark.parametrize("case", OPTIONS)
def test_published_code(case, dtype, mode):
    file = golden.load(FILE)
    suggested = json.loads(str(file["meta"]))["suggested_tolerance_by_case"][case]
    assert TOLERANCES[case] == (suggested["out"], suggested["grad"])
    out_tolerance, grad_tolerance = TOLERANCES[case]
    if dtype == "float64":  # gradients are stored as float32
        out_tolerance, grad_tolerance = 1e-13, 2.0**-24
    with jax.enable_x64(dtype == "float64"):
        raw = jax.tree.map(lambda v: jnp.asarray(v, dtype), raw_parameters(file, case))
        x = jnp.asarray(file["in/x"].swapaxes(1, 2), dtype)
        cotangent = jnp.asarray(file["in/cot_y"].swapaxes(1, 2), dtype)
        layer = nnx.eval_shape(
            lambda: S4D(
                6, 16, mode=mode, param_dtype=dtype, rngs=nnx.Rngs(0), **OPTIONS[case]
            )
        )

        def run(raw, x):
            channels = range(2 if case == "diag_channels2_bidir" else 1)
            layers = [
                nnx.merge(*with_params(layer, ours(raw, case, channel)))
                for channel in channels
            ]
            y = jnp.concatenate([layer(x)[0] for layer in layers], axis=-1)
            kernels = jnp.stack([layer.kernel(x.shape[1]) for layer in layers])
            gelu = jax.nn.gelu(y, approximate=False)
            return published_output(raw, gelu), y, gelu, kernels

        def loss(raw, x):
            out = run(raw, x)
            return jnp.sum(out[0] * cotangent), out

        run_both = jit(jax.grad(loss, (0, 1), has_aux=True))
        gradients, (y, before, gelu, kernels) = run_both(raw, x)
    kind = f"out64/{case}"
    same(y, file[f"{kind}/y"].swapaxes(1, 2), out_tolerance)
    if f"{kind}/before_activation" in file:
        same(before, file[f"{kind}/before_activation"].swapaxes(1, 2), out_tolerance)
    else:
        same(gelu, file[f"{kind}/before_output_linear"], out_tolerance)
    want = file[f"{kind}/kernel"]
    if case == "diag_channels2_bidir":
        kernels = kernels.swapaxes(0, 1).reshape(want.shape)
    same(kernels.reshape(want.shape), want, out_tolerance)
    raw_gradients, x_gradient = gradients
    want = raw_parameters(file, case, "grad64")
    same(x_gradient, want.pop("x").swapaxes(1, 2), grad_tolerance)
    same(raw_gradients, want, grad_tolerance)


U4 = [1, -0.5, 2, 0.25]
# Decays, inputs, kernel and outputs of `S4D_OF_TWO`.
WORKED = {
    "zoh": (
        [0.9512294245, 0.9046729427 + 0.2939460577j],
        [0.0975411510, 0.0959644533 + 0.0150703277j],
        [0.1314754989, 0.1193992411, 0.1143493635, 0.1152967416],
        [0.1314754989, 0.0536614916, 0.3176007408, 0.3297894168],
    ),
    "bilinear": (
        [0.9512195122, 0.9064464665 + 0.2921599129j],
        [0.0975609756, 0.0953223233 + 0.0146079956j],
        [0.1320853590, 0.1198854887, 0.1145840415, 0.1152068751],
        None,
    ),
}


example = functools.partial(of_two, S4D)


@pytest.mark.parametrize("mode", ["convolution", "recurrent"])
@pytest.mark.parametrize("discretization", WORKED)
def test_worked_numbers(discretization, mode):
    a, b, kernel, y = WORKED[discretization]
    with jax.enable_x64(True):
        layer = example(discretization=discretization, mode=mode)
        log_a, got_b = layer.system()
        got = layer(jnp.array(U4)[None, :, None])[0]
        got_kernel = layer.kernel(4)
    np.testing.assert_allclose(np.exp(log_a)[0], a, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got_b[0], b, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got_kernel[0], kernel, rtol=0, atol=1e-10)
    if y is not None:
        np.testing.assert_allclose(got[0, :, 0], y, rtol=0, atol=1e-10)


def test_a_rate_of_two_skips_every_other_step():
    """Of a zero-order hold: K of twice the step is the sum of two steps of K."""
    with jax.enable_x64(True):
        once, twice = example().kernel(8), example(rate=2.0).kernel(4)
    close(twice, once[:, ::2] + once[:, 1::2], 1e-15)


def test_both_discretizations_agree_for_short_steps():
    """Their difference is of the third order in dt."""
    with jax.enable_x64(True):
        eigenvalue = jnp.array([-0.5 + 3j])
        for discretize in (zoh, bilinear):
            log_a, b = discretize(eigenvalue, jnp.array([0.0]))
            assert log_a[0] == 0 and b[0] == 0
        off = []
        for dt in (1e-2, 1e-3):
            (a, b), (c, d) = (f(eigenvalue, jnp.array([dt])) for f in (zoh, bilinear))
            off.append([abs(a - c)[0] / dt**3, abs(b - d)[0] / dt**3])
            assert abs(b[0] / dt - 1) < 4 * dt
    np.testing.assert_allclose(off[0], off[1], rtol=0.05)


def test_an_eigenvalue_of_zero_adds_its_inputs_up():
    for dt in (0.1, 1e-30):
        log_a, b = zoh(jnp.zeros(1, jnp.complex64), jnp.array([dt]))
        assert log_a[0] == 0 and b[0] == np.float32(dt)
    gradient = jax.grad(lambda z: jnp.real(zoh(z, jnp.ones(1))[1][0]))
    assert np.isfinite(gradient(jnp.zeros(1, jnp.complex64))).all()


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_states_decay_for_all_parameters(discretization):
    layer = S4D(50, 16, discretization=discretization, dt_max=10.0, rngs=nnx.Rngs(0))
    key = jax.random.key(1)
    layer.log_a_re[...] = 3 * jax.random.normal(key, layer.log_a_re.shape)
    layer.a_im[...] = 100 * jax.random.normal(key, layer.a_im.shape)
    log_a, b = layer.system()
    assert jnp.all(jnp.real(log_a) < 0) and jnp.isfinite(b).all()


def test_inits():
    layer = S4D(3, 64, init="inv", rngs=nnx.Rngs(0))
    first = [1283.4254610930, 414.2272652205, 240.3876260460]
    np.testing.assert_allclose(layer.a_im[0, :3], first, rtol=1e-6)
    np.testing.assert_allclose(layer.a_im[2, -1], 0.3233624241, rtol=1e-6)
    assert jnp.allclose(layer.log_a_re[...], jnp.log(0.5)) and layer.n_ssm == 3
    dt = jnp.exp(S4D(5000, 2, dt_min=1e-2, dt_max=1.0, rngs=nnx.Rngs(0)).log_dt[...])
    assert 1e-2 <= jnp.min(dt) < 1.01e-2 and 0.99 < jnp.max(dt) <= 1.0
    # Half of the draws lie below the geometric mean: 5 standard deviations.
    assert abs(jnp.mean(dt < 0.1) - 0.5) < 5 * 0.5 / 5000**0.5
    real = S4D(1, 8, init="real", rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.exp(real.log_a_re[0]), [1, 2, 3, 4], rtol=1e-6)
    assert not real.a_im[...].any()


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_a_long_kernel_in_float32(init):
    """16,384 steps against float64.

    A phase of l dt |Im lambda| radians is rounded by 2^-24 of itself where the state is
    exp(-l dt / 2): |Im| l dt exp(-l dt / 2) <= 2 |Im| / e of these, for each of the
    states with a weight of |2 c b|.
    """
    narrow = S4D(4, 64, init=init, rngs=nnx.Rngs(0))
    got = narrow.kernel(16_384)
    with jax.enable_x64(True):
        wide = nnx.eval_shape(
            lambda: S4D(4, 64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        )
        wide = nnx.merge(*with_params(wide, nnx.to_pure_dict(nnx.state(narrow))))
        want = wide.kernel(16_384)
        weight = 2 * jnp.abs(wide.output_map() * wide.system()[1])
        rounded = 2 * weight * jnp.abs(wide.a_im[...]) / np.e + 10 * weight
    bound = 2.0**-24 * np.sum(np.asarray(rounded), axis=-1, keepdims=True)
    off = np.abs(np.asarray(got) - np.asarray(want)) / bound
    assert np.all(off <= 1), np.max(off)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "7 states, wanted an even number"),
        ({"init": "linn"}, "init='linn' is unknown.*did you mean 'lin'"),
        ({"discretization": "zho"}, "did you mean 'zoh'"),
        ({"mode": "convolve"}, "did you mean 'convolution'"),
        ({"dt_min": 0.1, "dt_max": 0.01}, "wanted 0 < dt_min <= dt_max"),
        ({"dt_min": -0.1}, "wanted 0 < dt_min <= dt_max"),
        ({"n_ssm": 4}, "n_ssm=4, wanted a divisor of the 6 channels"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        S4D(**{"d_model": 6, "d_state": 8, "rngs": nnx.Rngs(0)} | options)


def test_another_carry_is_refused():
    layer = S4D(6, 8, rngs=nnx.Rngs(0))
    x = jnp.zeros((2, 3, 6))
    with pytest.raises(ValueError, match="is it of another layer"):
        layer(x, jnp.zeros((2, 6, 8), jnp.complex64))
    with pytest.raises(ValueError, match=r"wanted \(B, T, 6\)"):
        layer(x[..., :5])
