"""The layers of a Griffin block against DeepMind's own, and by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.blocks import GemmaNorm, ResidualBlock
from ssm.pretrained import recurrent_gemma
from ssm.pretrained.names import Name
from tests import golden
from tests.ssm import published
from tests.ssm.law import QUICK_COMPILE

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
WIDTH, LRU, HEADS = 32, 48, 4


def recurrence(**types):
    return ssm.GriffinRecurrence(WIDTH, HEADS, lru_width=LRU, **types)


def residual(**types):
    mlp = ssm.GatedMLP(WIDTH, 40, **types)
    return ResidualBlock(recurrence(**types), mlp, WIDTH, **types)


def norm(rngs, **types):
    return GemmaNorm(WIDTH, **types)


# The window of 8 of DeepMind's configuration lets a query see 9 keys.
PARTS = {
    "conv1d": (lambda **o: ssm.CausalConv1D(WIDTH, **o), recurrent_gemma.FLAX_CONV),
    "attention": (
        lambda **o: ssm.LocalAttention(WIDTH, HEADS, window=9, **o),
        recurrent_gemma.FLAX_ATTENTION,
    ),
    "recurrent_block": (recurrence, recurrent_gemma.FLAX_RECURRENT),
    "residual_recurrent": (residual, recurrent_gemma.flax_block("recurrent")),
    "rmsnorm": (norm, {("scale",): Name("scale")}),
    "mlp": (
        lambda **o: ssm.GatedMLP(WIDTH, 40, **o),
        recurrent_gemma.FLAX_MLP,
    ),
}
TYPES = ("float32", "float64")
CASES = [(part, "plain", dtype) for part in PARTS for dtype in TYPES]
CASES += [(part, "resets", dtype) for part in list(PARTS)[:4] for dtype in TYPES]
QUICK = {("plain", "float32"), ("resets", "float64")}
CASES = [
    pytest.param(*case, marks=() if case[1:] in QUICK else pytest.mark.slow)
    for case in CASES
]


def load(part, dtype, **options):
    make, table = PARTS[part]
    file = golden.load("dm_griffin_parts.npz")
    layer = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), param_dtype=dtype, **options))
    return file, table, *published.take(layer, table, file, f"w/{part}/params/")


def states(part, carry):
    """What of our carry the file has under the name of each state."""
    if part == "conv1d":
        return {"state": carry}
    if part == "attention":  # slot p mod 8 there, p mod 9 here; 24 steps in a row
        last = np.arange(16, 24)
        return {name: carry[name][:, last % 9] for name in ("keys", "values")}
    return {"rg_lru_state": carry["rg_lru"]["state"], "conv1d_state": carry["conv"]}


@pytest.mark.parametrize(("part", "case", "dtype"), CASES)
def test_equals_the_published_code(part, case, dtype):
    with jax.enable_x64(dtype == "float64"):
        file, table, graphdef, params = load(part, dtype)
        x, d_y = (jnp.asarray(file[f"in/{name}"], dtype) for name in ("x", "cot_y"))
        reset = jnp.asarray(file[f"in/{case}/segment_pos"] == 0)

        @jax.jit
        def run(params, x):
            layer = nnx.merge(graphdef, params)
            return (
                (layer(x), ()) if part in ("rmsnorm", "mlp") else layer(x, reset=reset)
            )

        y, pull, carry = jax.vjp(run, params, x, has_aux=True)
        d_params, d_x = pull(d_y)
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance_by_case"][part]
    if dtype == "float64":  # round-off; the gradients are stored in float32
        tolerance = {"out": 1e-12, "grad": 1e-7}
    published.close(y, file[f"out64/{part}/{case}/y"], tolerance["out"])
    prefix = f"grad64/{part}/{case}/"
    published.close(d_x, file[f"{prefix}x"], tolerance["grad"])
    published.check_gradients(
        d_params, table, file, f"{prefix}params/", tolerance["grad"]
    )
    if case == "plain" and part not in ("rmsnorm", "mlp"):
        for name, state in states(part, carry).items():
            want = file[f"out64/{part}/plain/cache/{name}"]
            published.close(state, want, tolerance["out"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("part", list(PARTS)[:4])
def test_decoding_equals_the_published_code(part):
    """Ten steps at once, then one by one."""
    file, _, graphdef, params = load(part, "float64")
    x = jnp.asarray(file["in/x"], jnp.float64)
    layer = nnx.merge(graphdef, params)
    y, carry = jit(lambda x: layer(x))(x[:, :10])
    step, outputs = jit(layer.step), [y]
    for t in range(10, x.shape[1]):
        y, carry = step(x[:, t], carry)
        outputs.append(y[:, None])
    want = file[f"out64/{part}/decode_prompt10/y"]
    published.close(np.concatenate(outputs, axis=1), want, 1e-12)


def test_worked_norm():
    norm = GemmaNorm(4)
    norm.scale[...] = jnp.array([0, 0.5, -0.5, 1])
    want = [0.36514834, 1.095445, -0.5477225, 2.9211867]
    np.testing.assert_allclose(norm(jnp.array([1.0, 2, -3, 4])), want, rtol=1e-6)
    x = jnp.array([1.0, 2, -3, 4], jnp.bfloat16)
    assert norm(x).dtype == jnp.float32
    half = GemmaNorm(4, dtype=jnp.bfloat16)
    half.scale[...] = norm.scale[...]
    np.testing.assert_array_equal(half(x), norm(x).astype(jnp.bfloat16))


def test_initial_values_of_the_released_code():
    """Standard deviations, within 5 standard errors of at least 16384 draws."""

    def std(param):
        return float(np.std(param[...]))

    mixer = ssm.GriffinRecurrence(
        128, 4, lru_width=256, out_variance=0.5, rngs=nnx.Rngs(0)
    )
    mlp = ssm.GatedMLP(128, 256, in_variance=0.5, out_variance=0.5, rngs=nnx.Rngs(0))
    conv = ssm.CausalConv1D(8192, 4, rngs=nnx.Rngs(0))
    for param, variance in (
        (mixer.linear_x.kernel, 1 / 128),
        (mixer.linear_y.kernel, 1 / 128),
        (mixer.linear_out.kernel, 0.5 / 256),
        (mixer.rg_lru.input_gate.kernel, 1 / 256),
        (mlp.gate.kernel, 0.5 / 128),
        (mlp.up.kernel, 0.5 / 128),
        (mlp.down.kernel, 0.5 / 256),
        (conv.kernel, 0.01 / 4),
    ):
        np.testing.assert_allclose(std(param), variance**0.5, rtol=0.03)


def test_types():
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    y, carry = jit(recurrence(**types))(jnp.ones((2, 5, WIDTH), jnp.bfloat16))
    assert y.dtype == carry["conv"].dtype == jnp.bfloat16
    assert carry["rg_lru"]["state"].dtype == jnp.float32
