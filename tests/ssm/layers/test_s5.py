"""S5 against published code and its own equations."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import S5
from tests import golden
from tests.pairwise import mostly_slow
from tests.ssm import law
from tests.ssm.filling import with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)

FILE = "s5_layer.npz"
CASES = {  # our options, and the tolerances of float32: outputs, gradients
    "zoh_conj": ({}, 3.5e-6, 2.6e-5),
    "zoh_conj_rescale2": ({"rate": 2.0}, 2.6e-6, 9.9e-6),
    "bilinear_noconj": ({"discretization": "bilinear"}, 2.1e-6, 1.3e-5),
    "zoh_conj_bidir": ({"bidirectional": True}, 2.2e-6, 7.9e-5),
    "bilinear_conj_bidir_cn": (
        {
            "discretization": "bilinear",
            "bidirectional": True,
            "clip_eigenvalues": True,
            "rate": 0.5,
        },
        2e-6,
        2e-5,
    ),
    "zoh_conj_clip": ({"clip_eigenvalues": True}, 5.1e-6, 1.7e-4),
}


def published(file, case, kind):
    """Parameters or gradients by their own names."""
    prefix = f"{kind}/{case}/params/"
    return {k[len(prefix) :]: v for k, v in file.items() if k.startswith(prefix)}


def ours(raw, case):
    """Our parameters from the published ones, differentiably."""
    params = {
        "lambda_re": raw["Lambda_re"],
        "lambda_im": raw["Lambda_im"],
        "log_dt": raw["log_step"][:, 0],
        "d": raw["D"],
    }
    maps = {"b": raw["B"]}
    if "C1" in raw:
        maps |= {"c": raw["C1"], "c2": raw["C2"]}
    elif "bidir" in case:  # of both directions in one
        maps["c"], maps["c2"] = jnp.split(raw["C"], 2, axis=1)
    elif case == "bilinear_noconj":  # Re(C h) is 2 Re((C / 2) h)
        maps["c"] = raw["C"] / 2
    else:
        maps["c"] = raw["C"]
    for name, pair in maps.items():
        params[f"{name}_re"], params[f"{name}_im"] = pair[..., 0], pair[..., 1]
    return params


@pytest.mark.parametrize("mode", ["convolution", "recurrent"])
@pytest.mark.parametrize("dtype", mostly_slow(["float32", "float64"], "float64"))
@pytest.mark.parametrize("case", CASES)
def test_published_code(case, dtype, mode):
    file = golden.load(FILE)
    options, *tolerances = CASES[case]
    suggested = json.loads(str(file["meta"]))["suggested_tolerance_by_case"][case]
    assert tolerances == [suggested["out"], suggested["grad"]]
    if dtype == "float64":
        tolerances = 1e-13, 2.0**-24  # gradients are stored as float32
    with jax.enable_x64(dtype == "float64"):
        raw = jax.tree.map(lambda v: jnp.asarray(v, dtype), published(file, case, "w"))
        x = jnp.asarray(file[f"in/{case}/x"], dtype)[None]
        cotangent = jnp.asarray(file[f"in/{case}/cot_y"], dtype)[None]
        layer = nnx.eval_shape(
            lambda: S5(6, 16, mode=mode, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
        )

        def loss(raw, x):
            layer_of = nnx.merge(*with_params(layer, ours(raw, case)))
            y, _ = layer_of(x)
            return jnp.sum(y * cotangent), (y, layer_of.system())

        run = jit(jax.grad(loss, (0, 1), has_aux=True))
        (raw_gradients, x_gradient), (y, (log_a, _)) = run(raw, x)
    close(np.exp(log_a), file[f"out64/{case}/Lambda_bar"], tolerances[0])
    close(y[0], file[f"out64/{case}/y"], tolerances[0])
    close(x_gradient[0], file[f"grad64/{case}/x"], tolerances[1])
    want = published(file, case, "grad64")
    assert raw_gradients.keys() == want.keys()
    for name, gradient in raw_gradients.items():
        close(gradient, want[name], tolerances[1])


def test_inits():
    """B of variance 1 / N, by the states; C by its kind."""
    width, states = 200, 128
    make = functools.partial(S5, width, states, n_blocks=8, rngs=nnx.Rngs(0))
    layer = make()
    # V is unitary: each component of V* B0 has half the variance of B0. Thousands of
    # draws give it within 5 %.
    for component in (layer.b_re, layer.b_im):
        np.testing.assert_allclose(np.var(component), 0.5 / states, rtol=0.05)
    for kind, variance in (
        ("trunc_standard_normal", 1 / states),
        ("lecun_normal", 1 / (states * width)),
        ("complex_normal", 0.5),
    ):
        c = make(c_init=kind)
        for component in (c.c_re, c.c_im):
            np.testing.assert_allclose(np.var(component), variance, rtol=0.05)
    assert jnp.all(layer.lambda_re[...] == -0.5) and jnp.all(layer.lambda_im[...] < 0)
    assert len(np.unique(layer.lambda_im[...])) == states // 2 // 8


def test_eigenvalues_are_clipped_where_asked():
    layer = S5(3, 4, clip_eigenvalues=True, rngs=nnx.Rngs(0))
    layer.lambda_re[...] = jnp.array([0.3, -0.2])
    log_a, _ = layer.system()
    dt = jnp.exp(layer.log_dt[...])
    np.testing.assert_allclose(log_a.real / dt, [-1e-4, -0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "blocks of an even number of states"),
        ({"n_blocks": 3}, "blocks of an even number of states"),
        ({"c_init": "complex-normal"}, "did you mean 'complex_normal'"),
        ({"discretization": "bilinea"}, "did you mean 'bilinear'"),
        ({"mode": "recurrence"}, "did you mean 'recurrent'"),
        ({"dt_min": -1.0}, "wanted 0 < dt_min <= dt_max"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        S5(**{"d_model": 6, "d_state": 8, "rngs": nnx.Rngs(0)} | options)


def test_another_carry_is_refused():
    layer, x = S5(6, 8, rngs=nnx.Rngs(0)), jnp.zeros((2, 3, 6))
    with pytest.raises(ValueError, match="is it of another layer"):
        layer(x, jnp.zeros((2, 8), jnp.complex64))
    two_way = S5(6, 8, bidirectional=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no carry"):
        two_way(x, jnp.zeros((2, 4), jnp.complex64))
