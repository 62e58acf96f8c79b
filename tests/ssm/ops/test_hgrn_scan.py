"""`hgrn_scan` against the float64 loop, in value and in every gradient."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssm import ops, reference
from tests import golden
from tests.pairwise import crossed, mostly_slow, name_of, pairwise
from tests.ssm.ops.test_rg_lru_scan import compare, exact, same

IMPLEMENTATIONS = ("loop", "scan", "associative")
GRID = {
    "implementation": IMPLEMENTATIONS,
    "time": (1, 2, 7, 63, 64, 65, 257),
    "width": (1, 96, 128, 1000),
    "dtype": ("float32", "bfloat16", "float64", "complex64", "complex128"),
    "theta": (False, True),
    "h0": (False, True),
    "reset": (False, True),
    "reverse": (False, True),
}
SIZES = {name: GRID[name] for name in ("time", "width")}
OPTIONS = {name: GRID[name] for name in ("theta", "h0", "reset", "reverse")}
# The full grid is slow; one step alone has a test of its own.
QUICK = pairwise(GRID | {"time": (2, 7, 65), "width": (1, 130)})


def draw(row, batch=2):
    """Inputs of a case as numpy arrays, already rounded to the dtypes of the case."""
    rng = np.random.default_rng(0)
    time, width, dtype = row["time"], row["width"], jnp.dtype(row["dtype"])
    double = row["dtype"] in ("float64", "complex128")
    wide = np.float64 if double else np.float32
    real = dtype if dtype == jnp.bfloat16 else wide
    is_complex = np.issubdtype(dtype, np.complexfloating)
    state = np.result_type(wide, np.complex64 if row["theta"] or is_complex else wide)

    def normal(*shape, dtype):
        value = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            value = value + 1j * rng.normal(size=shape)
        return value.astype(dtype)

    shape = batch, time, width
    return {
        "x": normal(*shape, dtype=dtype),
        "f": normal(*shape, dtype=real),
        "lower_bound": rng.uniform(0, 0.9, width).astype(wide),
        "theta": rng.uniform(-3, 3, width).astype(wide) if row["theta"] else None,
        "h0": normal(batch, width, dtype=state) if row["h0"] else None,
        "reset": rng.random((batch, time)) < 0.2 if row["reset"] else None,
        "cotangents": (
            normal(*shape, dtype=state if row["theta"] else dtype),
            normal(batch, width, dtype=state),
        ),
    }


def widened(value):
    if value is None or not np.iscomplexobj(value):
        return exact(value)
    return value.astype(np.complex128)


def error_bounds(row, case):
    """Bounds on the rounding error of h, h_last, dx, df, d bound, d theta and dh0.

    A running error analysis in units u of round-off: the decay, a sum of products of a
    sigmoid and of a unit complex number, is off by 12, and a step multiplies and adds:
    T steps come to `scan` times the same sums of moduli. What is elementwise comes to
    30 more. A sigmoid's slope s (1 - s) is off by 4 of one, not of itself. In bfloat16
    every output of that dtype is rounded, and h enters the gradient of a rounded.
    """
    dtype = jnp.dtype(row["dtype"])
    u = np.finfo(np.float32 if dtype == jnp.bfloat16 else dtype).eps
    rounding = float(jnp.finfo(jnp.bfloat16).eps) if dtype == jnp.bfloat16 else 0.0
    scan = (17 * (row["time"] + 1) + 30) * u
    modulus = {
        name: None if value is None else np.abs(widened(value))
        for name, value in case.items()
        if name in ("x", "h0")
    }
    f, bound = exact(case["f"]), exact(case["lower_bound"])
    s = 1 / (1 + np.exp(-f))
    a, scale = bound + (1 - bound) * s, (1 - bound) * (1 - s)
    drive = scale * modulus["x"]
    options = {"reset": case["reset"], "reverse": row["reverse"], "h0": modulus["h0"]}
    h, last = reference.linear_scan(drive, a, **options)
    cotangents = [np.abs(widened(v)) for v in case["cotangents"]]
    g, da, dh0 = reference.linear_scan_vjp(*cotangents, drive, a, **options)
    d_gate = da + g * modulus["x"]
    late = 2 * scan + rounding
    terms = late + f.shape[0] * row["time"] * u
    return [
        (scan + rounding) * h,
        scan * last,
        (scan + rounding) * g * scale,
        d_gate * (1 - bound) * ((late + rounding) * s * (1 - s) + 4 * u),
        np.sum(d_gate * (terms * (1 - s) + 4 * u), axis=(0, 1)),
        terms * np.sum(da * a, axis=(0, 1)),
        scan * dh0,
    ]


def check(row, batch=2):
    case = draw(row, batch)
    double = row["dtype"] in ("float64", "complex128")
    options = {"reset": case["reset"], "reverse": row["reverse"]}
    names = ("x", "f", "lower_bound", "theta", "h0")
    with jax.enable_x64(True) if double else contextlib.nullcontext():

        def run(x, f, lower_bound, theta, h0):
            return ops.hgrn_scan(
                *(x, f, lower_bound),
                theta=theta,
                h0=h0,
                implementation=row["implementation"],
                **options,
            )

        arguments = jax.tree.map(jnp.asarray, tuple(case[name] for name in names))
        out, vjp = jax.vjp(jax.jit(run), *arguments)
        got = [*out, *jax.jit(vjp)(jax.tree.map(jnp.asarray, case["cotangents"]))]
    assert got[0].dtype == case["cotangents"][0].dtype
    assert got[1].dtype == case["cotangents"][1].dtype

    inputs = {name: widened(case[name]) for name in names} | options
    d_h, d_last = map(widened, case["cotangents"])
    want = [
        *reference.hgrn_scan(**inputs),
        *reference.hgrn_scan_vjp(d_h, d_last, **inputs),
    ]
    labels = ["h", "h_last", *(f"d {name}" for name in names)]
    rows = zip(labels, got, want, error_bounds(row, case), strict=True)
    rows = [r for r in rows if not (r[0][2:] in names and case[r[0][2:]] is None)]
    compare(*zip(*rows, strict=True), 0.0 if double else 1.2e-38)


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


def inputs(batch=2, time=9, width=3, dtype=jnp.float32, is_complex=True):
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (batch, time, width)
    x, f = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    h0 = jax.random.normal(keys[2], (batch, width), dtype)
    bound = jax.random.uniform(keys[3], (width,), dtype, maxval=0.9)
    if not is_complex:
        return x, f, bound, None, h0
    theta = jax.random.normal(keys[4], (width,), dtype)
    return jax.lax.complex(x, f[::-1]), f, bound, theta, jax.lax.complex(h0, -h0)


def test_reference_gradient_by_finite_differences():
    """The ground truth itself: the loop's gradient against differences of the loop."""
    rng = np.random.default_rng(1)
    x, f = rng.normal(size=(2, 2, 6, 3))
    arguments = [x, f, rng.uniform(0, 0.9, 3), rng.normal(size=3)]
    arguments.append(rng.normal(size=(2, 3)))
    reset = rng.random((2, 6)) < 0.3
    d_h, d_last = (rng.normal(size=s) + 1j for s in ((2, 6, 3), (2, 3)))

    def scalar(x, f, bound, theta, h0):
        h, last = reference.hgrn_scan(
            x, f, bound, theta=theta, h0=h0, reset=reset, reverse=True
        )
        return np.real(np.sum(h * d_h) + np.sum(last * d_last))

    x, f, bound, theta, h0 = arguments
    got = reference.hgrn_scan_vjp(
        *(d_h, d_last, x, f, bound), theta=theta, h0=h0, reset=reset, reverse=True
    )
    for k, gradient in enumerate(got):
        direction = rng.normal(size=gradient.shape)
        plus, minus = (
            [v + s * direction if j == k else v for j, v in enumerate(arguments)]
            for s in (1e-6, -1e-6)
        )
        slope = (scalar(*plus) - scalar(*minus)) / 2e-6
        found = np.real(np.sum(gradient * direction))
        np.testing.assert_allclose(found, slope, rtol=1e-6)


def test_published_numbers():
    """A bare complex recurrence of the paper's authors' code, both ways."""
    decay = np.array([0.5, 0.9, 0.8, 0.95])
    x = jnp.array([1 + 0.5j, -1 + 2j, 0.25 - 1j, 2], jnp.complex64)[None, :, None]
    f = jnp.asarray(np.log(decay / (1 - decay)), jnp.float32)[None, :, None]
    theta, bound = jnp.array([0.7]), jnp.zeros(1)
    want = {
        False: [
            *(0.5 + 0.25j, 0.09923 + 0.66198745j),
            *(-0.23045498 + 0.25619332j, -0.22424067 + 0.04511007j),
        ],
        True: [
            *(0.4716764 + 0.33222445j, 0.06261472 + 0.16227058j),
            *(0.11118737 - 0.14846259j, 0.1),
        ],
    }
    for reverse, numbers in want.items():
        h, _ = ops.hgrn_scan(x, f, bound, theta=theta, reverse=reverse)
        # Eight digits are given, of numbers of order one that float32 holds to seven.
        np.testing.assert_allclose(h[0, :, 0], numbers, rtol=0, atol=4e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case", ["hgrn_no_h0", "hgrn_h0", "hgrn_strong_decay", "hgrn_packed"]
)
def test_equals_flash_linear_attention(case):
    """Its h = e^g h + x is ours with sigmoid(f) = e^g and x / (1 - e^g) for x.

    Packed sequences have a state each to start from there; here e^g of the first step
    takes it in with x.
    """
    z = golden.load("fla_ops.npz")

    def array(key):
        return jnp.asarray(z[key], jnp.float64) if key in z else None

    names = ("x", "g", "initial_state", "cot_o", "cot_final_state")
    x, g, h0, d_o, d_last = (array(f"in/{case}/{name}") for name in names)
    ends = z.get(f"in/{case}/cu_seqlens")

    def run(x, g, h0):
        scale = -jnp.expm1(g)
        f, reset = g - jnp.log(scale), None
        if ends is not None:
            first = ends[:-1]
            x = x.at[0, first].add(jnp.exp(g[0, first]) * h0)
            reset, h0 = jnp.zeros(x.shape[:2], bool).at[0, first].set(True), None
        bound = jnp.zeros(x.shape[-1])
        h, last = ops.hgrn_scan(x / scale, f, bound, h0=h0, reset=reset)
        return h, last if ends is None else h[0, ends[1:] - 1]

    out, vjp = jax.vjp(run, x, g, h0)
    d_x, d_g, d_h0 = vjp((d_o, d_last))
    for name, mine in {
        "out64/{}/o": out[0],
        "out64/{}/final_state": out[1],
        "grad64/{}/x": d_x,
        "grad64/{}/g": d_g,
        "grad64/{}/initial_state": d_h0,
    }.items():
        if mine is None:
            continue
        true = z[name.format(case)]
        # 37 steps in float64, where exp and log lose the digits of g / (1 - e^g); the
        # gradients are stored in float32.
        eps = 1e-12 + (0 if name.startswith("out64") else 2.0**-24)
        np.testing.assert_allclose(mine, true, rtol=0, atol=eps * np.max(np.abs(true)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
@pytest.mark.parametrize("is_complex", [False, True])
def test_is_differentiable_twice(implementation, is_complex):
    x, f, bound, theta, h0 = inputs(3, 5, 2, jnp.float64, is_complex)
    reset = jnp.zeros((3, 5), bool).at[0, 2].set(True)

    def run(x, f, bound, theta, h0):
        return ops.hgrn_scan(
            *(x, f, bound),
            theta=theta,
            h0=h0,
            reset=reset,
            reverse=True,
            implementation=implementation,
        )

    modes = ["rev"] if implementation == "loop" else ["fwd", "rev"]
    check_grads(run, (x, f, bound, theta, h0), order=2, modes=modes)


def loss(implementation, x, f, bound, theta, h0):
    h, last = ops.hgrn_scan(
        x, f, bound, theta=theta, h0=h0, implementation=implementation
    )
    return jnp.sum(jnp.sin(jnp.abs(h))) + jnp.sum(jnp.abs(last) ** 2)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
def test_under_vmap_and_remat(implementation):
    arguments = inputs()

    def run(*arguments):
        return loss(implementation, *arguments)

    want = jax.jit(jax.grad(run, range(5)))(*arguments)
    same(jax.jit(jax.grad(jax.checkpoint(run), range(5)))(*arguments), want)
    x, f, *rest = arguments
    got = jax.vmap(jax.grad(run, range(5)), (0, None, None, None, None))(
        jnp.stack([x, 2 * x]), f, *rest
    )
    same(jax.tree.map(lambda g: g[0], got), want)


# XLA of jax 0.11.2 crashes on compiling an associative_scan in a shard_map.
@pytest.mark.parametrize("implementation", ["loop", "scan"])
@pytest.mark.parametrize("is_complex", [False, True])
def test_inside_a_shard_map(implementation, is_complex):
    """Rows of the batch on two devices, and jax checks what varies between them."""
    *arguments, _ = inputs(batch=4, is_complex=is_complex)
    rows, whole = jax.P("data"), jax.P()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))

    def run(x, f, bound, theta):
        return ops.hgrn_scan(x, f, bound, theta=theta, implementation=implementation)

    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(rows, rows, whole, whole), out_specs=rows
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


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
@pytest.mark.parametrize("reverse", [False, True])
def test_whole_is_chunks_is_steps(implementation, reverse):
    x, f, bound, theta, h0 = inputs(time=11)
    reset = jnp.zeros((2, 11), bool).at[0, 4].set(True).at[1, 7].set(True)

    def run(bounds, x, f, bound, theta, h0):
        pieces, outputs = list(itertools.pairwise(bounds)), {}
        for low, high in reversed(pieces) if reverse else pieces:
            outputs[low], h0 = ops.hgrn_scan(
                *(x[:, low:high], f[:, low:high], bound),
                theta=theta,
                h0=h0,
                reset=reset[:, low:high],
                reverse=reverse,
                implementation=implementation,
            )
        return jnp.concatenate([outputs[low] for low, _ in pieces], axis=1), h0

    def value_and_gradient(bounds):
        def both(*arguments):
            out, vjp = jax.vjp(lambda *args: run(bounds, *args), *arguments)
            return out, vjp(jax.tree.map(jnp.ones_like, out))

        return jax.jit(both)(x, f, bound, theta, h0)

    want = value_and_gradient((0, 11))
    for bounds in ((0, 4, 11), tuple(range(12))):
        same(value_and_gradient(bounds), want)


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("turned", [False, True])
def test_no_step_and_one_step(time, dtype, turned):
    x, f = jnp.ones((2, time, 3), dtype), jnp.zeros((2, time, 3))
    is_complex = turned or dtype == jnp.complex64
    h0 = jnp.full((2, 3), 4, jnp.complex64 if is_complex else jnp.float32)
    theta = jnp.full(3, np.pi / 2) if turned else None
    h, last = ops.hgrn_scan(x, f, jnp.full(3, 0.5), theta=theta, h0=h0)
    assert h.shape == x.shape and h.dtype == (jnp.complex64 if turned else dtype)
    assert last.dtype == h0.dtype
    want = 4 if time == 0 else 0.75 * 4 * (1j if turned else 1) + 0.25
    # A cosine of pi / 2 in float32 is off by half of its last digit, 4e-8, times 3.
    np.testing.assert_allclose(last, np.full((2, 3), want), rtol=0, atol=4e-7)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
def test_extreme_gates_stay_finite(implementation):
    """Gates that are open or shut up to rounding, and far beyond it."""
    f = jnp.broadcast_to(jnp.array([30.0, 90.0, -30.0, -90.0]), (1, 300, 4))
    x, bound = jnp.ones_like(f), jnp.zeros(4)

    def run(x, f, bound):
        return ops.hgrn_scan(x, f, bound, implementation=implementation)[0]

    h, vjp = jax.vjp(run, x, f, bound)
    want, _ = reference.hgrn_scan(x, f, bound)
    # Each of the steps may lose what is below the least normal number.
    np.testing.assert_allclose(h, want, rtol=2e-5, atol=300 * 1.2e-38)
    for gradient in vjp(jnp.ones_like(h)):
        assert np.all(np.isfinite(gradient))


def test_nan_stays_in_its_channel_and_goes_on():
    x, f, bound, *_ = inputs(time=6, is_complex=False)
    h, last = ops.hgrn_scan(x.at[0, 2, 1].set(jnp.nan), f, bound)
    bad = np.zeros(h.shape, bool)
    bad[0, 2:, 1] = True
    np.testing.assert_array_equal(np.isnan(h), bad)
    np.testing.assert_array_equal(np.isnan(last), bad[:, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": (2, 4)}, r"x has shape \(2, 4\), wanted three axes = \(B, T, D\)"),
        ({"f": (2, 5, 3)}, r"f has shape \(2, 5, 3\), wanted \(2, 4, 3\)"),
        ({"lower_bound": (1,)}, r"lower_bound has shape \(1,\), wanted \(3,\)"),
        ({"theta": (2, 4, 3)}, r"theta has shape \(2, 4, 3\), wanted \(3,\)"),
        ({"h0": (3,)}, r"h0 has shape \(3,\), wanted \(2, 3\) = \(B, D\)"),
        ({"reset": (2, 3)}, r"reset has shape \(2, 3\), wanted \(2, 4\)"),
        ({"reset": ((2, 4), "int32")}, "reset has dtype int32, wanted bool"),
        ({"x": ((2, 4, 3), "int32")}, "x has dtype int32, wanted real or complex"),
        ({"f": ((2, 4, 3), "complex64")}, "f has dtype complex64, wanted real"),
        ({"theta": ((3,), "complex64")}, "theta has dtype complex64, wanted real"),
        ({"h0": ((2, 3), "complex64")}, "h0 is complex64 while x is float32"),
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

    arguments = {"x": (2, 4, 3), "f": (2, 4, 3), "lower_bound": (3,)} | arguments
    with pytest.raises(ValueError, match=message):
        ops.hgrn_scan(**{name: array(name, v) for name, v in arguments.items()})


@pytest.mark.parametrize("name", ["pallas_tpu", "mosaic_gpu"])
def test_named_kernel_that_cannot_run_says_why(name):
    x, f, bound, *_ = inputs()
    with pytest.raises(NotImplementedError, match=f"'{name}' cannot run on 'cpu'"):
        ops.hgrn_scan(x, f, bound, implementation=name)
