"""`rg_lru_scan` against the float64 loop, in value and in every gradient."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssm import ops, reference
from tests.pairwise import crossed, mostly_slow, name_of, pairwise

IMPLEMENTATIONS = ("loop", "scan", "associative")
GRID = {
    "implementation": IMPLEMENTATIONS,
    "time": (1, 2, 7, 63, 64, 65, 257),
    "width": (1, 96, 128, 1000),
    "dtype": ("float32", "bfloat16", "float64"),
    "h0": (False, True),
    "reset": (False, True),
}
SIZES = {name: GRID[name] for name in ("time", "width")}
OPTIONS = {name: GRID[name] for name in ("h0", "reset")}
# The full grid is slow; one step alone has a test of its own.
QUICK = pairwise(GRID | {"time": (2, 7, 65), "width": (1, 130)})


def draw(row, batch=2):
    """Inputs of a case as numpy arrays, already rounded to the dtypes of the case."""
    rng = np.random.default_rng(0)
    time, width, dtype = row["time"], row["width"], jnp.dtype(row["dtype"])
    wide = np.float64 if dtype == np.float64 else np.float32
    shape = batch, time, width
    x, r, i, d_h = (rng.normal(size=shape).astype(dtype) for _ in range(4))
    return {
        "arguments": (x, r, i, rng.uniform(-6, -1, width).astype(wide)),
        "h0": rng.normal(size=(batch, width)).astype(wide) if row["h0"] else None,
        "reset": rng.random((batch, time)) < 0.2 if row["reset"] else None,
        "cotangents": (d_h, rng.normal(size=(batch, width)).astype(wide)),
    }


def exact(value):
    return None if value is None else np.asarray(value).astype(np.float64)


def error_bounds(row, case):
    """Bounds on the rounding error of h, h_last, dx, dr, di, d a_param and dh0.

    A running error analysis in units u of round-off. log a is at most `rate`, so a step
    multiplies by a decay that is off by 6 rate + 3, and adds: T steps come to
    `scan` times the same sums of moduli. What is elementwise, sigmoids, the root (off
    by 16, where a series meets the difference) and products, comes to 40 more. A
    sigmoid's slope s (1 - s) is off by 4 of one, not of itself. In bfloat16 every
    output of that dtype is rounded, and h enters the gradient of a rounded.
    """
    dtype = jnp.dtype(row["dtype"])
    u = np.finfo(np.float32 if dtype == jnp.bfloat16 else dtype).eps
    rounding = float(jnp.finfo(jnp.bfloat16).eps) if dtype == jnp.bfloat16 else 0.0
    x, r, i, p = map(exact, case["arguments"])
    rate = 8 * np.logaddexp(0.0, p)
    scan = ((6 * np.max(rate) + 5) * (row["time"] + 1) + 40) * u

    sr, si = (1 / (1 + np.exp(-v)) for v in (r, i))
    a, root = np.exp(-rate * sr), np.sqrt(-np.expm1(-2 * rate * sr))
    if case["reset"] is not None:
        at_reset = case["reset"][..., None]
        a, root = np.where(at_reset, 0, a), np.where(at_reset, 1, root)
    drive = root * si * np.abs(x)
    h0 = None if case["h0"] is None else np.abs(exact(case["h0"]))
    h, last = reference.linear_scan(drive, a, h0=h0)
    cotangents = [np.abs(exact(v)) for v in case["cotangents"]]
    g, da, dh0 = reference.linear_scan_vjp(*cotangents, drive, a, h0=h0)
    d_log_a = a * da + g * si * np.abs(x) * a**2 * np.minimum(1 / root, 2000)
    late = 2 * scan + rounding
    terms = late + x.shape[0] * row["time"] * u
    return [
        (scan + rounding) * h,
        scan * last,
        (scan + rounding) * g * root * si,
        d_log_a * rate * ((late + rounding) * sr * (1 - sr) + 4 * u),
        g * root * np.abs(x) * ((scan + rounding) * si * (1 - si) + 4 * u),
        terms * 8 / (1 + np.exp(-p)) * np.sum(d_log_a * sr, axis=(0, 1)),
        scan * dh0,
    ]


def check(row, batch=2):
    case = draw(row, batch)
    wide = row["dtype"] == "float64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():

        def run(x, r, i, a_param, h0):
            return ops.rg_lru_scan(
                *(x, r, i, a_param),
                h0=h0,
                reset=case["reset"],
                implementation=row["implementation"],
            )

        arguments = jax.tree.map(jnp.asarray, (*case["arguments"], case["h0"]))
        out, vjp = jax.vjp(jax.jit(run), *arguments)
        got = [*out, *jax.jit(vjp)(jax.tree.map(jnp.asarray, case["cotangents"]))]
    assert got[0].dtype == case["arguments"][0].dtype
    assert got[1].dtype == case["cotangents"][1].dtype

    inputs = list(map(exact, case["arguments"]))
    keep = {"h0": exact(case["h0"]), "reset": case["reset"]}
    want = [
        *reference.rg_lru_scan(*inputs, **keep),
        *reference.rg_lru_scan_vjp(*map(exact, case["cotangents"]), *inputs, **keep),
    ]
    if case["h0"] is None:
        assert got.pop() is None
    labels = ("h", "h_last", "dx", "dr", "di", "d a_param", "dh0")
    compare(labels, got, want, error_bounds(row, case), 0.0 if wide else 1.2e-38)


def compare(labels, got, want, bounds, tiny):
    for label, mine, true, bound in zip(labels, got, want, bounds, strict=False):
        assert mine.shape == true.shape, label
        kind = np.complex128 if np.iscomplexobj(mine) else np.float64
        error = np.abs(np.asarray(mine).astype(kind) - true)
        assert np.all(error <= bound + tiny), (label, np.max(error / (bound + 1e-300)))


@pytest.mark.parametrize("row", QUICK, ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row):
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("time", GRID["time"])
def test_equals_the_loop_on_the_full_grid(implementation, time):
    """Every length and width."""
    for row in crossed(SIZES, OPTIONS | {"dtype": GRID["dtype"]}):
        if row["time"] == time:
            check({"implementation": implementation} | row)


def inputs(batch=2, time=9, width=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (batch, time, width)
    x, r, i = (jax.random.normal(key, shape, dtype) for key in keys[:3])
    a_param = jax.random.uniform(keys[3], (width,), dtype, minval=-6, maxval=-1)
    return x, r, i, a_param, jax.random.normal(keys[4], (batch, width), dtype)


def test_reference_gradient_by_finite_differences():
    """The ground truth itself: the loop's gradient against differences of the loop."""
    rng = np.random.default_rng(1)
    x, r, i = rng.normal(size=(3, 2, 6, 3))
    arguments = [x, r, i, rng.uniform(-6, -1, 3), rng.normal(size=(2, 3))]
    reset = rng.random((2, 6)) < 0.3
    d_h, d_last = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 3))

    def scalar(*arguments):
        *arguments, h0 = arguments
        h, last = reference.rg_lru_scan(*arguments, h0=h0, reset=reset)
        return np.sum(h * d_h) + np.sum(last * d_last)

    got = reference.rg_lru_scan_vjp(
        d_h, d_last, *arguments[:4], h0=arguments[4], reset=reset
    )
    for k, gradient in enumerate(got):
        direction = rng.normal(size=gradient.shape)
        plus, minus = (
            [v + s * direction if j == k else v for j, v in enumerate(arguments)]
            for s in (1e-6, -1e-6)
        )
        slope = (scalar(*plus) - scalar(*minus)) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6)


def test_published_numbers():
    """Outputs and gradients of the released RecurrentGemma in JAX, width 2."""
    x = jnp.array([[1.0, -0.5], [0.5, 2.0], [-1.0, 0.25], [2.0, -1.0]])[None]
    r = x * jnp.array([[[0.5, -1.0]]]) + jnp.array([[[0.1, -0.2]]])
    i = x * jnp.array([[[1.0, 0.25]]]) + jnp.array([[[0.0, 0.5]]])
    a_param = jnp.array([-4.0, -2.0])
    reset = jnp.array([[True, False, False, False]])

    def run(x, r, i, a_param, reset=reset, h0=None):
        return ops.rg_lru_scan(x, r, i, a_param, reset=reset, h0=h0)[0]

    h, vjp = jax.vjp(run, x, r, i, a_param)
    want = [
        *(0.73105858, -0.2963333, 0.79454277, 0.35832818),
        *(0.66036735, 0.35904107, 1.37164936, -0.30987625),
    ]
    # Eight digits are given, of numbers of order one that float32 holds to seven.
    np.testing.assert_allclose(h.ravel(), want, rtol=0, atol=4e-7)
    _, dr, di, d_a_param = vjp(jnp.ones_like(h))
    np.testing.assert_allclose(d_a_param, [0.11866534, 0.28166401], rtol=4e-6)
    np.testing.assert_allclose(dr.sum((0, 1)), [-0.02715411, 0.43423885], rtol=4e-6)
    np.testing.assert_allclose(di.sum((0, 1)), [0.79920447, -0.15137839], rtol=4e-6)
    h = run(x, r, i, a_param, reset=None, h0=jnp.array([[1.0, -1.0]]))
    want = [
        *(1.21279244, -0.80395131, 1.23694313, -0.10039189),
        *(1.07772559, 0.05012369, 1.74593064, -0.4631855),
    ]
    np.testing.assert_allclose(h.ravel(), want, rtol=0, atol=4e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
def test_is_differentiable_twice(implementation):
    arguments = inputs(time=5, dtype=jnp.float64)
    reset = jnp.zeros((2, 5), bool).at[0, 2].set(True)

    def run(x, r, i, a_param, h0):
        return ops.rg_lru_scan(
            *(x, r, i, a_param), h0=h0, reset=reset, implementation=implementation
        )

    modes = ["rev"] if implementation == "loop" else ["fwd", "rev"]
    check_grads(run, arguments, order=2, modes=modes)


def loss(implementation, x, r, i, a_param, h0):
    h, last = ops.rg_lru_scan(x, r, i, a_param, h0=h0, implementation=implementation)
    return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)


def same(got, want):
    jax.tree.map(
        # The same operations, fused or summed otherwise, of magnitudes below 10.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-6, atol=4e-6),
        got,
        want,
    )


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
def test_under_vmap_jit_scan_and_remat(implementation):
    arguments = inputs()
    which = (1, 2, 3, 4, 5)
    gradients = jax.jit(jax.grad(loss, which), static_argnums=0)
    want = gradients(implementation, *arguments)

    def run(*arguments):
        return loss(implementation, *arguments)

    remat = jax.jit(jax.grad(jax.checkpoint(run), range(5)))
    same(remat(*arguments), want)
    x, *rest = arguments
    stacked = jnp.stack([x, 2 * x])
    got = jax.vmap(jax.grad(run, range(5)), (0, None, None, None, None))(stacked, *rest)
    same(jax.tree.map(lambda g: g[0], got), want)
    same(jax.tree.map(lambda g: g[1], got), gradients(implementation, 2 * x, *rest))
    a_params = jnp.stack([rest[2], rest[2] / 2])
    got = jax.vmap(jax.grad(run, range(5)), (None, None, None, 0, None))(
        x, *rest[:2], a_params, rest[3]
    )
    same(jax.tree.map(lambda g: g[0], got), want)

    def body(total, x):
        return total + run(x, *rest), None

    scanned = jax.grad(lambda xs: jax.lax.scan(body, 0.0, xs)[0])(stacked)
    same(scanned[0], want[0])


# XLA of jax 0.11.2 crashes on compiling an associative_scan in a shard_map.
@pytest.mark.parametrize("implementation", ["loop", "scan"])
def test_inside_a_shard_map(implementation):
    """Rows of the batch on two devices, and jax checks what varies between them."""
    *arguments, _ = inputs(batch=4)
    rows, whole = jax.P("data"), jax.P()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))

    def run(x, r, i, a_param):
        return ops.rg_lru_scan(x, r, i, a_param, implementation=implementation)

    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(rows, rows, rows, whole), out_specs=rows
    )

    def value_and_gradients(run):
        def both(*arguments):
            out, vjp = jax.vjp(run, *arguments)
            return out, vjp(jax.tree.map(jnp.cos, out))

        return jax.jit(both)(*arguments)

    same(value_and_gradients(sharded), value_and_gradients(run))


@pytest.mark.parametrize("axes", [{"data": 2, "tensor": 2}, {"time": 4}])
def test_on_an_ambient_mesh(axes):
    arguments = inputs(batch=2, time=8, width=4)
    want = jax.grad(loss, (1, 2, 3, 4, 5))(None, *arguments)
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), types)
    with jax.set_mesh(mesh):
        gradients = jax.jit(jax.grad(loss, (1, 2, 3, 4, 5)), static_argnums=0)
        same(gradients(None, *arguments), want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_whole_is_chunks_is_steps(implementation):
    x, r, i, a_param, h0 = inputs(time=11)
    reset = jnp.zeros((2, 11), bool).at[0, 4].set(True).at[1, 7].set(True)

    def run(bounds, x, r, i, a_param, h0):
        outputs = []
        for low, high in itertools.pairwise(bounds):
            part = (v[:, low:high] for v in (x, r, i))
            h, h0 = ops.rg_lru_scan(
                *part,
                a_param,
                h0=h0,
                reset=reset[:, low:high],
                implementation=implementation,
            )
            outputs.append(h)
        return jnp.concatenate(outputs, axis=1), h0

    def value_and_gradient(bounds):
        def both(*arguments):
            out, vjp = jax.vjp(lambda *args: run(bounds, *args), *arguments)
            return out, vjp(jax.tree.map(jnp.ones_like, out))

        return jax.jit(both)(x, r, i, a_param, h0)

    want = value_and_gradient((0, 11))
    for bounds in ((0, 4, 11), tuple(range(12))):
        same(value_and_gradient(bounds), want)


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_step_and_one_step(time, dtype):
    x, h0 = jnp.ones((2, time, 3), dtype), jnp.full((2, 3), 4.0)
    zero = jnp.zeros_like(x)
    h, last = ops.rg_lru_scan(x, zero, zero, jnp.zeros(3), c=2.0, h0=h0)
    assert h.shape == x.shape and h.dtype == dtype and last.dtype == jnp.float32
    # Open by a half, a is 2^-1 and its root sqrt(3)/2: 4/2 + sqrt(3)/4.
    want = 4.0 if time == 0 else 2 + np.sqrt(3) / 4
    np.testing.assert_allclose(last, np.full((2, 3), want), rtol=4e-7)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_extreme_gates_stay_finite(implementation):
    """Decays of 1 up to rounding, of 1 exactly, and far below underflow."""
    a_param = jnp.array([-20.0, -60.0, 20.0, 50.0])
    x, r = jnp.ones((1, 300, 4)), jnp.array([-5.0, -30.0, 30.0, 90.0])
    r = jnp.broadcast_to(r, x.shape)

    def run(x, r, i, a_param):
        return ops.rg_lru_scan(x, r, i, a_param, implementation=implementation)[0]

    h, vjp = jax.vjp(run, x, r, x, a_param)
    want, _ = reference.rg_lru_scan(x, r, x, a_param)
    # 300 steps, each off by a few units of 6e-8; a log a below the least normal number
    # may be lost, and with it a root of twice that.
    np.testing.assert_allclose(h, want, rtol=2e-5, atol=300 * (2 * 1.2e-38) ** 0.5)
    gradients = vjp(jnp.ones_like(h))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_slope_of_the_root_is_at_most_1000(implementation):
    """Where a is 1 the root is 0: its derivative by log a is then -2 * 1000."""
    x = jnp.ones((1, 2, 1))
    r = jnp.zeros_like(x)

    def run(a_param):
        h, _ = ops.rg_lru_scan(x, r, r, a_param, implementation=implementation)
        return h[0, 0, 0]

    tiny = jnp.array([-60.0])
    # h_0 = root / 2, and log a = -8 softplus(a_param) / 2, softplus' = sigmoid.
    want = 0.5 * -2000 * -4 * jax.nn.sigmoid(tiny)
    np.testing.assert_allclose(jax.grad(run)(tiny), want, rtol=1e-6)


def test_nan_stays_in_its_channel_and_goes_on():
    x, r, i, a_param, _ = inputs(time=6)
    h, last = ops.rg_lru_scan(x.at[0, 2, 1].set(jnp.nan), r, i, a_param)
    bad = np.zeros(h.shape, bool)
    bad[0, 2:, 1] = True
    np.testing.assert_array_equal(np.isnan(h), bad)
    np.testing.assert_array_equal(np.isnan(last), bad[:, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": (2, 4)}, r"x has shape \(2, 4\), wanted three axes = \(B, T, D\)"),
        ({"r": (2, 5, 3)}, r"r has shape \(2, 5, 3\), wanted \(2, 4, 3\)"),
        ({"i": (2, 4, 1)}, r"i has shape \(2, 4, 1\), wanted \(2, 4, 3\)"),
        ({"a_param": (4,)}, r"a_param has shape \(4,\), wanted \(3,\) = \(D,\)"),
        ({"h0": (3,)}, r"h0 has shape \(3,\), wanted \(2, 3\) = \(B, D\)"),
        ({"reset": (2, 3)}, r"reset has shape \(2, 3\), wanted \(2, 4\)"),
        ({"reset": ((2, 4), "int32")}, "reset has dtype int32, wanted bool"),
        ({"x": ((2, 4, 3), "complex64")}, "x has dtype complex64, wanted real"),
        ({"r": ((2, 4, 3), "int32")}, "r has dtype int32, wanted real"),
        ({"h0": ((2, 3), "complex64")}, "h0 has dtype complex64, wanted real"),
        ({"implementation": "fast"}, "'fast' is unknown, wanted 'loop'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    def array(name, value):
        if name == "implementation":
            return value
        default = "bool" if name == "reset" else "float32"
        shape, dtype = value if isinstance(value[0], tuple) else (value, default)
        return jnp.zeros(shape, dtype)

    plane = (2, 4, 3)
    arguments = {"x": plane, "r": plane, "i": plane, "a_param": (3,)} | arguments
    with pytest.raises(ValueError, match=message):
        ops.rg_lru_scan(**{name: array(name, v) for name, v in arguments.items()})


@pytest.mark.parametrize("name", ["pallas_tpu", "mosaic_gpu"])
def test_named_kernel_that_cannot_run_says_why(name):
    x, r, i, a_param, _ = inputs()
    with pytest.raises(NotImplementedError, match=f"'{name}' cannot run on 'cpu'"):
        ops.rg_lru_scan(x, r, i, a_param, implementation=name)
