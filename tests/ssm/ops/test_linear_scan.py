"""`linear_scan` against the float64 loop, in value and in every gradient."""

import contextlib
import functools
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
    "width": (1, 5, 13),
    "dtype": ("float32", "complex64", "bfloat16", "float64", "complex128"),
    "decay": ("a", "log_a", "constant a", "constant log_a", "real a", "float32 log_a"),
    "h0": (False, True),
    "reset": (False, True),
    "reverse": (False, True),
}
QUICK = pairwise(GRID)
KINDS = {  # dtypes of x, and decays
    "real": (
        ("float32", "a"),
        ("bfloat16", "log_a"),
        ("float32", "log_a"),
        ("bfloat16", "float32 log_a"),
    ),
    "complex": (("complex64", "a"), ("complex64", "log_a"), ("complex64", "real a")),
    "constant": (("complex64", "constant a"), ("float32", "constant log_a")),
}
SIZES = {"time": GRID["time"], "width": (1, 96, 128, 1000)}
OPTIONS = {name: GRID[name] for name in ("h0", "reset", "reverse")}


def full_grid(kinds, **dealt):
    """Every kind, length and width."""
    rows = []
    for kind in kinds.values():
        for row in crossed(SIZES, OPTIONS | {"kind": kind} | dealt):
            dtype, decay = row.pop("kind")
            rows.append(row | {"dtype": dtype, "decay": decay})
    return rows


def draw(row, batch=3):
    """Inputs of a case as numpy arrays, already rounded to the dtypes of the case."""
    rng = np.random.default_rng(0)
    time, width, dtype = row["time"], row["width"], jnp.dtype(row["dtype"])
    is_complex = np.issubdtype(dtype, np.complexfloating)

    def normal(*shape, dtype=dtype, is_complex=is_complex):
        value = rng.normal(size=shape)
        value = value + 1j * rng.normal(size=shape) if is_complex else value
        return value.astype(dtype)

    shape = (width,) if "constant" in row["decay"] else (batch, time, width)
    modulus = rng.uniform(0.3, 1.0, shape)
    real = np.finfo(dtype).dtype if is_complex else dtype
    phase = rng.uniform(0, 6.28, shape) if is_complex else 0.0
    log_a = np.log(modulus) + (1j * phase if is_complex else 0.0)
    match row["decay"]:
        case "a" | "constant a":  # a bfloat16 `a` warns: it has a test of its own
            wide = jnp.float32 if dtype == jnp.bfloat16 else dtype
            decay = {"a": np.exp(log_a).astype(wide)}
        case "log_a" | "constant log_a":
            decay = {"log_a": log_a.astype(dtype)}
        case "real a":
            wide = jnp.float32 if real == jnp.bfloat16 else real
            decay = {"a": modulus.astype(wide)}
        case "float32 log_a":
            decay = {"log_a": np.log(modulus).astype(np.float32)}
    wide = np.float32 if dtype == jnp.bfloat16 else dtype
    return {
        "x": normal(batch, time, width),
        "decay": decay,
        "h0": normal(batch, width, dtype=wide) if row["h0"] else None,
        "reset": rng.random((batch, time)) < 0.2 if row["reset"] else None,
        "d_h": normal(batch, time, width),
        "d_last": normal(batch, width, dtype=wide),
    }


def absolute(case):
    """The same case with every number replaced by its modulus."""

    def modulus(value):
        return None if value is None else np.abs(value).astype(np.float64)

    ((name, decay),) = case["decay"].items()
    if name == "log_a":
        decay = np.exp(np.real(decay).astype(np.float64))
    return {
        "x": modulus(case["x"]),
        "a": modulus(decay),
        "h0": modulus(case["h0"]),
        "reset": case["reset"],
    }, (modulus(case["d_h"]), modulus(case["d_last"]))


def error_bounds(row, case):
    """Bounds on the rounding error of h, h_last, dx, d_decay, dh0, elementwise.

    The running error analysis of a recurrence: after n operations a sum of products is
    off by at most n u / (1 - n u) times the same sum of moduli, u the unit round-off.
    A step costs an exponential (error 2 ulp, and |log_a| ulp of its argument), a
    product (2 when complex, with sqrt 2 more) and a sum; the gradient of the decay
    doubles the chain, and for a constant decay sums over batch and time. In bfloat16 x,
    h and dx are rounded on output, and d_decay is made from rounded h and dx.
    """
    dtype = jnp.dtype(row["dtype"])
    u = np.finfo(np.float32 if dtype == jnp.bfloat16 else dtype).eps
    if row["decay"] == "float32 log_a":  # its gradient comes back in its own float32
        u = max(u, np.finfo(np.float32).eps)
    rounding = float(jnp.finfo(jnp.bfloat16).eps) if dtype == jnp.bfloat16 else 0.0
    inputs, cotangents = absolute(case)
    h, last = reference.linear_scan(**inputs, reverse=row["reverse"])
    dx, da, dh0 = reference.linear_scan_vjp(
        *cotangents, **inputs, reverse=row["reverse"]
    )
    if "log_a" in case["decay"]:  # da is bounded for `a`, and a <= 1
        decay_steps = 3 + np.max(np.abs(case["decay"]["log_a"].astype(complex)))
    else:
        decay_steps = 0
    steps = (5 + decay_steps) * (row["time"] + 1)
    terms = case["x"].shape[0] * row["time"] if da.ndim == 1 else 0
    late = (2 * steps + terms) * u + 3 * rounding
    if "log_a" in case["decay"]:  # stored in its own dtype
        late += float(jnp.finfo(case["decay"]["log_a"].dtype).eps)
    scan = steps * u
    return [
        (scan + rounding) * h,
        scan * last,
        (scan + rounding) * dx,
        late * da,
        scan * dh0,
    ]


def check(row, batch=3):
    case = draw(row, batch)
    wide = jnp.dtype(row["dtype"]).itemsize in (8, 16) and row["dtype"] != "complex64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        ((name, decay),) = case["decay"].items()
        keep = {"reset": case["reset"], "reverse": row["reverse"]}

        def run(x, decay, h0):
            return ops.linear_scan(
                x, **{name: decay}, h0=h0, **keep, implementation=row["implementation"]
            )

        arguments = jax.tree.map(jnp.asarray, (case["x"], decay, case["h0"]))
        (h, last), vjp = jax.vjp(jax.jit(run), *arguments)
        cotangents = jnp.asarray(case["d_h"]), jnp.asarray(case["d_last"])
        got = [h, last, *(g for g in vjp(cotangents))]

    assert h.dtype == case["x"].dtype
    state_dtype = case["d_last"].dtype
    assert last.dtype == state_dtype

    def exact(value):
        if value is None:
            return None
        kind = np.complex128 if np.iscomplexobj(value) else np.float64
        return np.asarray(value).astype(kind)

    inputs = {"h0": exact(case["h0"]), name: exact(decay), **keep}
    want = [
        *reference.linear_scan(exact(case["x"]), **inputs),
        *reference.linear_scan_vjp(
            exact(case["d_h"]), exact(case["d_last"]), exact(case["x"]), **inputs
        ),
    ]
    names = ("h", "h_last", "dx", f"d{name}", "dh0")
    for label, mine, true, bound in zip(
        names, got, want, error_bounds(row, case), strict=True
    ):
        if mine is None:
            assert label == "dh0" and case["h0"] is None
            continue
        assert mine.shape == true.shape, label
        error = np.abs(exact(mine) - true)
        tiny = np.finfo(np.float32).tiny if not wide else 0.0
        assert np.all(error <= bound + tiny), (label, np.max(error / (bound + 1e-300)))


@pytest.mark.parametrize("row", QUICK, ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row):
    check(row)


DOUBLE = {
    "real": (("float64", "a"), ("float64", "log_a")),
    "complex": (("complex128", "a"), ("complex128", "log_a"), ("complex128", "real a")),
    "constant": (("complex128", "constant a"), ("float64", "constant log_a")),
}


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", GRID["reverse"])
@pytest.mark.parametrize("time", GRID["time"])
def test_equals_the_loop_on_the_full_grid(implementation, kind, reverse, time):
    rows = full_grid({kind: KINDS[kind] + DOUBLE[kind]})
    for row in rows:
        if row["time"] == time:
            check(row | {"implementation": implementation, "reverse": reverse})


def test_reference_gradient_by_finite_differences():
    """The ground truth itself: the loop's gradient against differences of the loop."""
    rng = np.random.default_rng(1)
    x, h0 = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 3))
    log_a = -rng.uniform(0, 1, (2, 6, 3))
    reset = rng.random((2, 6)) < 0.3
    d_h, d_last = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 3))

    def scalar(x, log_a, h0):
        h, last = reference.linear_scan(
            x, log_a=log_a, h0=h0, reset=reset, reverse=True
        )
        return np.sum(h * d_h) + np.sum(last * d_last)

    got = reference.linear_scan_vjp(
        d_h, d_last, x, log_a=log_a, h0=h0, reset=reset, reverse=True
    )
    for i, gradient in enumerate(got):
        direction = rng.normal(size=gradient.shape)
        step = 1e-6
        plus, minus = [x, log_a, h0], [x, log_a, h0]
        plus[i] = plus[i] + step * direction
        minus[i] = minus[i] - step * direction
        slope = (scalar(*plus) - scalar(*minus)) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7)


def inputs(batch=2, time=9, width=3, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (batch, time, width), dtype)
    modulus = jax.random.uniform(keys[1], (batch, time, width), minval=0.3)
    return x, modulus.astype(dtype), jax.random.normal(keys[2], (batch, width), dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_is_differentiable_twice(implementation, constant, log):
    x, a, h0 = inputs(time=5, dtype=jnp.float64)
    reset = jnp.zeros((2, 5), bool).at[0, 2].set(True)
    a = a[0, 0] if constant else a
    decay = jnp.log(a) if log else a

    def run(x, decay, h0):
        name = "log_a" if log else "a"
        return ops.linear_scan(
            x, **{name: decay}, h0=h0, reset=reset, implementation=implementation
        )

    modes = ["rev"] if implementation == "loop" else ["fwd", "rev"]
    check_grads(run, (x, decay, h0), order=2, modes=modes)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "loop"))
def test_under_vmap_jit_scan_and_remat(implementation):
    x, a, h0 = inputs()

    def loss(x, a, h0):
        h, last = ops.linear_scan(x, a, h0=h0, implementation=implementation)
        return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)

    want = jax.grad(loss, (0, 1, 2))(x, a, h0)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}  # the same operations, fused otherwise

    def same(got, want):
        jax.tree.map(
            lambda g, w: np.testing.assert_allclose(g, w, **tolerance), got, want
        )

    remat = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2)))
    same(remat(x, a, h0), want)

    def stacked(v):
        return jnp.stack([v, 2 * v])

    mapped = jax.vmap(jax.grad(loss, (0, 1, 2)), (0, None, 0))
    got = mapped(stacked(x), a, stacked(h0))
    same(jax.tree.map(lambda g: g[0], got), want)
    same(jax.tree.map(lambda g: g[1], got), jax.grad(loss, (0, 1, 2))(2 * x, a, 2 * h0))

    def body(total, xs):
        return total + loss(xs[0], a, xs[1]), None

    scanned = jax.grad(lambda xs: jax.lax.scan(body, 0.0, xs)[0])
    gx, gh0 = scanned((stacked(x), stacked(h0)))
    same((gx[0], gh0[0]), (want[0], want[2]))


# XLA of jax 0.11.2 crashes on compiling an associative_scan here; it carries no state,
# so there is nothing of ours to check in it.
@pytest.mark.parametrize("implementation", ["loop", "scan"])
@pytest.mark.parametrize("constant", [False, True])
def test_inside_a_shard_map(implementation, constant):
    """Rows of the batch on two devices, and jax checks what varies between them."""
    x, a, _ = inputs(batch=4)
    a = a[0, 0] if constant else a
    rows, whole = jax.P("data"), jax.P()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))

    def run(x, a):
        return ops.linear_scan(x, a, implementation=implementation)

    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(rows, whole if constant else rows), out_specs=rows
    )

    def value_and_gradients(run):
        def both(x, a):
            out, vjp = jax.vjp(run, x, a)
            return out, vjp(jax.tree.map(jnp.cos, out))

        return jax.jit(both)(x, a)

    jax.tree.map(
        # The sum over the batch of a constant decay's gradient is taken in two parts.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-6),
        value_and_gradients(sharded),
        value_and_gradients(run),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
def test_whole_is_chunks_is_steps(implementation, reverse):
    x, a, h0 = inputs(time=11)
    reset = jnp.zeros((2, 11), bool).at[0, 4].set(True).at[1, 7].set(True)

    def run(bounds, x, a, h0):
        pieces = list(itertools.pairwise(bounds))
        outputs = {}
        for low, high in reversed(pieces) if reverse else pieces:
            outputs[low], h0 = ops.linear_scan(
                x[:, low:high],
                a[:, low:high],
                h0=h0,
                reset=reset[:, low:high],
                reverse=reverse,
                implementation=implementation,
            )
        return jnp.concatenate([outputs[low] for low, _ in pieces], axis=1), h0

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradient(bounds):
        out, vjp = jax.vjp(lambda *args: run(bounds, *args), x, a, h0)
        return out, vjp(jax.tree.map(jnp.ones_like, out))

    want = value_and_gradient((0, 11))
    for bounds in ((0, 4, 11), (0, 1, 2, 10, 11), tuple(range(12))):
        got = value_and_gradient(bounds)
        jax.tree.map(
            # One product and one sum per step, 11 steps, magnitudes below 10.
            lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=11 * 2e-6),
            got,
            want,
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_is_separate(implementation):
    x, a, _ = inputs(batch=1, time=12)
    starts = (0, 5, 6, 12)
    reset = jnp.zeros((1, 12), bool).at[0, jnp.array(starts[1:-1])].set(True)

    def packed(x, a):
        return ops.linear_scan(x, a, reset=reset, implementation=implementation)[0]

    def separate(x, a):
        parts = [
            ops.linear_scan(x[:, i:j], a[:, i:j], implementation=implementation)[0]
            for i, j in itertools.pairwise(starts)
        ]
        return jnp.concatenate(parts, axis=1)

    for run in (packed, separate):
        h, vjp = jax.vjp(jax.jit(run), x, a)
        got = h, *vjp(jnp.cos(h))
        if run is packed:
            want = got
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=12 * 2e-6), got, want
    )
    assert np.all(np.asarray(want[2])[0, list(starts[1:-1])] == 0)  # cut decays


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_no_step_and_one_step(time, dtype):
    x = jnp.ones((2, time, 3), dtype)
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    a, h0 = jnp.full((2, time, 3), 0.5, wide), jnp.full((2, 3), 4, wide)
    h, last = ops.linear_scan(x, a, h0=h0)
    assert h.shape == x.shape and h.dtype == dtype and last.dtype == wide
    np.testing.assert_array_equal(last, h0 if time == 0 else jnp.full((2, 3), 3, wide))
    zero = ops.linear_scan(x, a)[1]
    np.testing.assert_array_equal(zero, jnp.full((2, 3), float(time), wide))


def test_long_extreme_decays_stay_finite():
    """Decays of exactly 0 and 1, and far below underflow, in values and gradients."""
    x = jnp.ones((1, 300, 4))
    log_a = jnp.broadcast_to(jnp.array([0.0, -80.0, -1e30, -jnp.inf]), x.shape)
    for implementation in IMPLEMENTATIONS:

        def run(x, log_a, implementation=implementation):
            return ops.linear_scan(x, log_a=log_a, implementation=implementation)[0]

        h, vjp = jax.vjp(run, x, log_a)
        np.testing.assert_allclose(h[0, -1], [300.0, 1.0, 1.0, 1.0])
        for gradient in vjp(jnp.ones_like(h)):
            assert np.all(np.isfinite(gradient))


def test_bfloat16_decay_warns_and_names_log_a():
    x = jnp.ones((1, 4, 2), jnp.bfloat16)
    with pytest.warns(UserWarning, match="log_a"):
        ops.linear_scan(x, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": (2, 4)}, r"x has shape \(2, 4\), wanted three axes = \(B, T, D\)"),
        ({}, "got neither, wanted exactly one"),
        ({"a": (2, 4, 3), "log_a": (2, 4, 3)}, "got both, wanted exactly one"),
        ({"a": (2, 5, 3)}, r"a has shape \(2, 5, 3\), wanted \(2, 4, 3\) or \(3,\)"),
        ({"log_a": (4,)}, r"log_a has shape \(4,\), wanted \(2, 4, 3\) or \(3,\)"),
        ({"a": (3,), "h0": (3,)}, r"h0 has shape \(3,\), wanted \(2, 3\) = \(B, D\)"),
        ({"a": (3,), "reset": (2, 3)}, r"reset has shape \(2, 3\), wanted \(2, 4\)"),
        ({"a": (3,), "reset": ((2, 4), "int32")}, "reset has dtype int32, wanted bool"),
        ({"x": ((2, 4, 3), "int32"), "a": (3,)}, "x has dtype int32, wanted real"),
        ({"a": ((3,), "int32")}, "a has dtype int32, wanted real"),
        ({"a": ((3,), "complex64")}, "a is complex64 while x is float32"),
        (
            {"a": (3,), "h0": ((2, 3), "complex64")},
            "h0 is complex64 while x is float32",
        ),
        ({"a": (3,), "implementation": "fast"}, "'fast' is unknown, wanted 'loop'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    def array(name, value):
        if name == "implementation":
            return value
        default = "bool" if name == "reset" else "float32"
        shape, dtype = value if isinstance(value[0], tuple) else (value, default)
        return jnp.zeros(shape, dtype)

    arguments = {"x": (2, 4, 3)} | arguments
    arguments = {name: array(name, value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        ops.linear_scan(**arguments)


@pytest.mark.parametrize("name", ["pallas_tpu", "mosaic_gpu"])
def test_named_kernel_that_cannot_run_says_why(name):
    x = jnp.ones((1, 4, 2))
    with pytest.raises(NotImplementedError, match=f"'{name}' cannot run on 'cpu'"):
        ops.linear_scan(x, x, implementation=name)
