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
