"""`causal_conv1d` against the float64 loop, in value and in every gradient."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from ssm import ops, reference
from tests.pairwise import pairwise

GRID = {
    "time": (1, 3, 9, 65),
    "width": (1, 5),
    "taps": (1, 2, 4),
    "dtype": ("float32", "bfloat16", "complex64", "float64"),
    "b": (False, True),
    "carry": (False, True),
    "reset": (False, True),
}
BATCH = 3


def draw(row):
    rng = np.random.default_rng(0)
    time, width, taps, dtype = (row[k] for k in ("time", "width", "taps", "dtype"))

    def normal(*shape):
        value = rng.normal(size=shape)
        if dtype == "complex64":
            value = value + 1j * rng.normal(size=shape)
        return value.astype(jnp.dtype(dtype))

    return {
        "x": normal(BATCH, time, width),
        "w": normal(taps, width),
        "b": normal(width) if row["b"] else None,
        "carry": normal(BATCH, taps - 1, width) if row["carry"] else None,
        "reset": rng.random((BATCH, time)) < 0.3 if row["reset"] else None,
    }, (normal(BATCH, time, width), normal(BATCH, taps - 1, width))


def vjp(case, d_y, d_last):
    """The cotangents of x, w, b and carry, input by input, from the definition."""
    x, w = (np.asarray(case[name], complex) for name in ("x", "w"))
    d_y, d_last = np.asarray(d_y, complex), np.asarray(d_last, complex)
    before = len(w) - 1
    carry = np.zeros((BATCH, before, x.shape[2])) if (c := case["carry"]) is None else c
    inputs = np.concatenate([np.asarray(carry, complex), x], axis=1)
    reset = case["reset"]
    reset = np.zeros(x.shape[:2], bool) if reset is None else reset
    d_inputs, d_w = np.zeros(inputs.shape, complex), np.zeros(w.shape, complex)
    for row in range(BATCH):
        for place in range(inputs.shape[1]):
            step = place - before  # negative in the carry
            for t in range(max(step, 0), min(step + before + 1, x.shape[1])):
                if not reset[row, max(step + 1, 0) : t + 1].any():
                    tap = before - (t - step)
                    d_inputs[row, place] += w[tap] * d_y[row, t]
                    d_w[tap] += inputs[row, place] * d_y[row, t]
            kept = place - (inputs.shape[1] - before)
            if kept >= 0 and not reset[row, max(step + 1, 0) :].any():
                d_inputs[row, place] += d_last[row, kept]
    return d_inputs[:, before:], d_w, d_y.sum((0, 1)), d_inputs[:, :before]


def modulus(case):
    return {
        name: value if value is None or name == "reset" else np.abs(value).astype(float)
        for name, value in case.items()
    }


def check(row):
    case, cotangents = draw(row)
    dtype = jnp.dtype(row["dtype"])
    with (
        jax.enable_x64(True) if row["dtype"] == "float64" else contextlib.nullcontext()
    ):
        arguments = {k: jnp.asarray(v) for k, v in case.items() if v is not None}
        reset = arguments.pop("reset", None)

        def run(arguments):
            return ops.causal_conv1d(**arguments, reset=reset)

        out, pull = jax.vjp(jax.jit(run), arguments)
        (gradients,) = pull(tuple(map(jnp.asarray, cotangents)))
    want = reference.causal_conv1d(**case)
    d_want = vjp(case, *cotangents)
    # Sums of products: n operations are off by n u times the same sum of moduli (twice
    # and a root more for complex products); what is stored in bfloat16 by one rounding.
    u = np.finfo(np.float32 if dtype == jnp.bfloat16 else dtype).eps
    rounding = float(jnp.finfo(jnp.bfloat16).eps) if dtype == jnp.bfloat16 else 0.0
    bounds = (
        *reference.causal_conv1d(**modulus(case)),
        *vjp(modulus(case), *map(np.abs, cotangents)),
    )
    steps = dict.fromkeys(("y", "last", "x", "carry"), 4 * row["taps"] + 4)
    steps |= dict.fromkeys(("w", "b"), 4 * BATCH * row["time"] + 4)
    got = {"y": out[0], "last": out[1], **gradients}
    names = ("y", "last", "x", "w", "b", "carry")
    assert all(value.dtype == dtype for value in got.values())
    for name, value, bound in zip(names, (*want, *d_want), bounds, strict=True):
        if name in got:
            error = np.abs(np.asarray(got[name], complex) - value)
            limit = (steps[name] * u + rounding) * np.abs(bound)
            assert np.all(error <= limit + 1e-300), (row, name, error.max())


@pytest.mark.parametrize("row", pairwise(GRID), ids=str)
def test_equals_the_loop(row):
    check(row)


def test_worked_example():
    """One channel by hand, with a document that ends within the last inputs."""
    run = jax.jit(ops.causal_conv1d)
    w = jnp.array([[0.1], [-0.2], [0.3], [1.0]])
    x = jnp.array([1, 2, -1, 0.5, 3, -2, 1, 4.0])[None, :, None]
    b = jnp.array([0.5])
    y, last = run(x, w, b)
    np.testing.assert_allclose(
        y[0, :, 0], [1.5, 2.8, -0.1, 0.4, 4.05, -0.8, 0.35, 5.5], atol=1e-6
    )
    np.testing.assert_array_equal(last[0, :, 0], [-2, 1, 4])
    y, _ = run(x, w, b, reset=jnp.arange(8)[None] == 3)
    np.testing.assert_allclose(
        y[0, :, 0], [1.5, 2.8, -0.1, 1.0, 3.65, -0.7, 0.35, 5.5], atol=1e-6
    )
    _, last = run(x, w, b, reset=jnp.arange(8)[None] == 6)
    np.testing.assert_array_equal(last[0, :, 0], [0, 1, 4])
    y, last = run(jnp.full((1, 1, 1), 2.0), w, b, carry=last)
    np.testing.assert_allclose(y[0, 0], [3.5], atol=1e-6)
    np.testing.assert_array_equal(last[0, :, 0], [1, 4, 2])


@pytest.mark.usefixtures("x64")
def test_twice_differentiable():
    case, _ = draw(dict(zip(GRID, (5, 2, 3, "float64", True, True, True), strict=True)))
    arguments = [jnp.asarray(case[name]) for name in ("x", "w", "b", "carry")]

    @jax.jit
    def run(x, w, b, carry):
        y, last = ops.causal_conv1d(x, w, b, carry=carry, reset=case["reset"])
        return jnp.sin(y), last

    check_grads(run, arguments, order=1, modes=("fwd",))
    check_grads(run, arguments, order=2, modes=("rev",))


def test_keeps_its_arguments_for_the_gradient_and_nothing_more():
    x = jnp.ones((2, 50, 3))
    reset = jnp.zeros((2, 50), bool)
    arguments = x, jnp.ones((4, 3)), jnp.ones((3,))
    _, pull = jax.vjp(lambda *a: ops.causal_conv1d(*a, reset=reset)[0], *arguments)
    assert sum(leaf.size >= x.size for leaf in jax.tree.leaves(pull)) == 1


def test_empty_sequence():
    carry = jnp.ones((2, 3, 5))
    y, last = ops.causal_conv1d(jnp.ones((2, 0, 5)), jnp.ones((4, 5)), carry=carry)
    assert y.shape == (2, 0, 5)
    np.testing.assert_array_equal(last, carry)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [{"time": 8}, {"data": 2, "tensor": 2, "time": 2}])
def test_ambient_mesh(sizes):
    """Plain operations: XLA exchanges the few steps that cross a border."""
    rng = np.random.default_rng(0)
    x, d_y = rng.normal(size=(2, 2, 16, 4))
    w, b, carry = (
        rng.normal(size=(4, 4)),
        rng.normal(size=4),
        rng.normal(size=(2, 3, 4)),
    )
    reset = rng.random((2, 16)) < 0.2

    def run(x, w, b, carry, reset):
        def outputs(x, w, b, carry):
            return ops.causal_conv1d(x, w, b, carry=carry, reset=reset)

        out, pull = jax.vjp(outputs, x, w, b, carry)
        return out, pull((d_y, jnp.ones_like(carry)))

    want = jax.jit(run)(x, w, b, carry, reset)
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (jax.sharding.AxisType.Auto,) * len(sizes)
    )
    names = [name if name in sizes else None for name in ("data", "time", "tensor")]
    with jax.set_mesh(mesh):
        put = jax.NamedSharding(mesh, P(*names))
        got = jax.jit(run)(jax.device_put(x, put), w, b, carry, reset)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-13)


def call(x=(2, 3, 4), w=(4, 4), b=(4,), carry=(2, 3, 4), reset=(2, 3)):
    arrays = {"x": x, "w": w, "b": b, "carry": carry}
    arrays = {k: jnp.ones(v) for k, v in arrays.items()}
    reset = jnp.zeros(reset, bool)
    return ops.causal_conv1d(**arrays, reset=reset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (3, 4)}, r"x has shape \(3, 4\), wanted three axes = \(B, T, D\)"),
        ({"w": (4, 5)}, r"w has shape \(4, 5\), wanted \(W, 4\) = \(W, D\)"),
        ({"w": (0, 4)}, r"w has shape \(0, 4\)"),
        ({"b": (1,)}, r"b has shape \(1,\), wanted \(4,\) = \(D,\)"),
        ({"carry": (2, 4, 4)}, r"carry has shape .* wanted \(2, 3, 4\) = \(B, W - 1"),
        ({"reset": (2, 4)}, r"reset has shape \(2, 4\)"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        call(**change)


def test_wrong_types_are_named():
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 4))
    with pytest.raises(ValueError, match="x has dtype int32"):
        ops.causal_conv1d(x.astype(int), w)
    with pytest.raises(ValueError, match="reset has dtype int32, wanted bool"):
        ops.causal_conv1d(x, w, reset=jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match="w is complex64 while x is float32"):
        ops.causal_conv1d(x, w.astype(jnp.complex64))
