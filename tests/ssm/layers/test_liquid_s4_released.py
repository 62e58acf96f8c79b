"""What the released code of Liquid-S4 computes, against its outputs and gradients."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import S4, S4D
from ssm.layers.liquid_s4_released import Constant, LiquidS4Released
from tests import golden
from tests.pairwise import mostly_slow
from tests.ssm import law
from tests.ssm.filling import of_two, with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)

FILE = "liquid_s4_layers.npz"
CASES = (
    "plain_nplr",
    "polyb_deg2_allcombs",
    "polyb_deg2_shift",
    "polyb_deg3_allcombs",
    "polyb_deg3_shift",
    "kb_deg2_allcombs",
    "kb_deg2_shift",
    "kb_deg3_allcombs",
    "kb_deg3_shift",
    "polyb_deg4_allcombs_nssm1",
    "polyb_deg2_allcombs_bidir",
    "kb_deg2_allcombs_bidir",
    "polyb_deg3_allcombs_tanh",
    "kb_deg3_shift_lecun",
    "polyb_deg2_diag_zoh",
    "kb_deg2_diag_bilinear",
    "polyb_deg2_shift_stale",
    "kb_deg2_shift_stale",
)


def published(file, kind, case):
    """Parameters or gradients by their own names."""
    prefix = f"{kind}/{case}/"
    return {
        k[len(prefix) :].removeprefix("kernel.kernel."): v
        for k, v in file.items()
        if k.startswith(prefix)
    }


def make(case, of_case, length, dtype):
    """The layer, without values."""
    diagonal = of_case["mode"] == "diag"
    options = {
        "n_ssm": of_case.get("n_ssm", 6),
        "bidirectional": of_case.get("bidirectional", False),
        "param_dtype": dtype,
        "rngs": nnx.Rngs(0),
    }
    if diagonal:
        linear = S4D(6, 16, discretization=of_case["disc"], **options)
    else:
        linear = S4(6, 16, l_max=length, **options)
    if case == "plain_nplr":
        return linear
    return LiquidS4Released(
        linear,
        liquid=of_case["liquid_kernel"].replace("polyb", "pb"),
        degree=of_case["liquid_degree"],
        all_combinations=of_case["allcombs"],
        contract=of_case.get("lcontract", "none"),
    )


def linear_params(raw, c, diagonal):
    """Ours of the linear layer, differentiably; `c` is (directions, D, N / 2, 2)."""
    params = {"log_dt": raw["log_dt"], "d": raw["D"][0]}
    if diagonal:
        params |= {"log_a_re": raw["inv_A_real"], "a_im": raw["A_imag"]}
        pairs = {"b": raw["B"]}
    else:
        params |= {"log_a_re": raw["inv_w_real"], "a_im": raw["w_imag"]}
        pairs = {"b": raw["B"][0], "p": raw["P"]}
    pairs |= dict(zip(("c", "c2"), c, strict=False))
    for name, pair in pairs.items():
        params[f"{name}_re"], params[f"{name}_im"] = pair[..., 0], pair[..., 1]
    return params


def constants(file, case, diagonal):
    """s and c_1 of the tensors that the released code keeps outside its parameters."""
    side = published(file, "side", case)
    w, b, c = (np.asarray(side[f"kernel.{k}"], complex) for k in ("w", "B", "C"))
    dt = np.exp(side["kernel.log_dt"].astype(float))[:, None]
    bbar = dt * b / (1 - dt * w / 2)
    return 2 * np.sum(bbar.real, -1), 2 * np.sum((c * bbar[None]).real, -1)


@pytest.mark.parametrize("dtype", mostly_slow(["float32", "float64"], "float64"))
@pytest.mark.parametrize("case", CASES)
def test_released_code(case, dtype):
    file = golden.load(FILE)
    meta = json.loads(str(file["meta"]))
    of_case = meta["cases"][case]
    diagonal = of_case["mode"] == "diag"
    suggested = meta["suggested_tolerance_by_case"][case]
    tolerances = suggested["out"], suggested["grad"]
    if dtype == "float64":  # gradients are stored as float32
        tolerances = 1e-11, 1e-7
    with jax.enable_x64(dtype == "float64"):
        raw = jax.tree.map(lambda v: jnp.asarray(v, dtype), published(file, "w", case))
        if not diagonal:  # trained is C (I - Abar^T) there too
            raw["C"] = jnp.asarray(file[f"out64/{case}/C_tilde"], dtype)
        x = jnp.asarray(file["in/u"].swapaxes(1, 2), dtype)
        cotangent = jnp.asarray(file["in/cot_y"].swapaxes(1, 2), dtype)
        layer = nnx.eval_shape(lambda: make(case, of_case, x.shape[1], dtype))
        fixed = [jnp.asarray(v, dtype) for v in constants(file, case, diagonal)]

        def loss(raw, x):
            params = linear_params(raw, raw["C"], diagonal)
            if case != "plain_nplr":
                params = {"linear": params, "s": fixed[0], "c_1": fixed[1]}
            y, _ = nnx.merge(*with_params(layer, params))(x)
            gelu = jax.nn.gelu(y, approximate=False)
            kernel, bias = raw["output_linear.0.weight"], raw["output_linear.0.bias"]
            out = jax.nn.glu(gelu @ kernel.T + bias[None, None])
            return jnp.sum(out * cotangent), (out, y)

        run = jit(jax.grad(loss, (0, 1), has_aux=True))
        (raw_gradients, x_gradient), (out, y) = run(raw, x)
    kind = f"out64/{case}"
    close(y, file[f"{kind}/before_activation"].swapaxes(1, 2), tolerances[0])
    close(out, file[f"{kind}/y"].swapaxes(1, 2), tolerances[0])
    want = published(file, "grad64", case)
    close(x_gradient, want.pop("u").swapaxes(1, 2), tolerances[1])
    for name, gradient in want.items():
        if name != "A":  # of a parameter that is never read
            close(raw_gradients[name], gradient, tolerances[1])


U8 = np.array([1, -0.5, 2, 0.25, -1, 0.75, -0.25, 1.5])
TERMS = {
    ("pb", True): "-0.0191077948 0.0573233845 -0.0095538974 -0.0764311793 0.0127385299 "
    "-0.0382155897 0.0191077948 -0.0031846325",
    ("pb", False): "-0.0191077948 -0.0095538974 -0.0382155897 -0.0127385299 "
    "0.0254770598 -0.0509541196 -0.0254770598 0",
    (
        "kb",
        True,
    ): "-0.0611062373 0.0559144931 -0.0403640018 -0.0026647674 -0.0358496602 "
    "-0.0402078162 -0.0206301705 -0.0329913676",
    ("kb", False): "-0.0441622692 -0.0457777877 -0.1084562896 -0.0337207682 "
    "-0.0293585582 -0.0696334358 -0.0661355456 -0.0672945444",
}


@pytest.mark.parametrize(("liquid", "combined"), TERMS)
def test_worked_numbers(liquid, combined):
    with jax.enable_x64(True):
        linear = of_two(S4D, discretization="bilinear")
        layer = LiquidS4Released(linear, liquid=liquid, all_combinations=combined)
        np.testing.assert_allclose(layer.s[...], 0.3857665979, atol=1e-10)
        np.testing.assert_allclose(layer.c_1[...], 0.1320853590, atol=1e-10)
        x = jnp.asarray(U8)[None, :, None]
        got = (layer(x)[0] - linear(x)[0])[0, :, 0]
    want = np.array(TERMS[liquid, combined].split(), float)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def released(**options):
    linear = S4D(3, 6, rngs=nnx.Rngs(0))
    return LiquidS4Released(linear, **options)


@pytest.mark.parametrize("liquid", ["pb", "kb"])
def test_it_looks_ahead(liquid):
    """Nobody should take it for a language model: y_0 moves with the last input."""
    layer, x = released(liquid=liquid), jnp.ones((1, 12, 3))
    gradient = jax.grad(lambda x: jnp.sum(layer(x)[0][:, 0]))(x)
    assert jnp.all(gradient[:, -1] != 0)
    assert not layer.causal
    for call in (lambda: layer.init_carry(1), lambda: layer(x, jnp.zeros((1, 3, 3)))):
        with pytest.raises(ValueError, match="no carry"):
            call()
    with pytest.raises(ValueError, match="documents cannot be packed"):
        layer(x, reset=jnp.zeros((1, 12), bool))


def test_constants_are_kept_and_not_trained():
    layer, x = released(), jnp.ones((1, 12, 3))
    graphdef, params, fixed = nnx.split(layer, nnx.Param, Constant)
    assert set(nnx.to_pure_dict(fixed)) == {"s", "c_1"}

    def loss(params, layer_of):
        graphdef, rest = layer_of
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params, rest)(x)[0]))

    # Of the term, the gradient in B is none: all of it is of the linear layer.
    plain = nnx.split(layer.linear)
    got = jax.grad(loss)(params, (graphdef, fixed))["linear"]["b_re"][...]
    y, _ = layer(x)

    def of_linear(params):
        return jnp.sum(jnp.cos(y) * nnx.merge(plain[0], params)(x)[0])

    np.testing.assert_allclose(
        got, jax.grad(of_linear)(plain[1])["b_re"][...], rtol=1e-5
    )
    changed = jax.tree.map(lambda v: v + 1, params)
    reloaded = nnx.merge(graphdef, changed, fixed)
    np.testing.assert_array_equal(reloaded.s[...], layer.s[...])


@pytest.mark.parametrize(
    ("options", "time", "message"),
    [
        ({"degree": 2}, 2, "2 steps have fewer than 2 choices of 2"),
        ({"degree": 3}, 3, "3 steps have fewer than 3 choices of 3"),
        ({"degree": 1}, 9, "degree=1, wanted at least 2"),
        ({"liquid": "polyb"}, 9, "liquid='polyb' is unknown, wanted one of 'pb', 'kb'"),
        ({"contract": "lacun"}, 9, "did you mean 'lecun'"),
    ],
)
def test_what_is_refused(options, time, message):
    with pytest.raises(ValueError, match=message):
        released(**options)(jnp.ones((1, time, 3)))
