"""`lightning_attention` against the float64 loop, in value and in every gradient."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssm import ops, reference
from tests import golden
from tests.pairwise import mostly_slow, name_of, pairwise

IMPLEMENTATIONS = ("chunked", "loop", "scan")
GRID = {
    "implementation": IMPLEMENTATIONS,
    "decay": ("head", "step", "channel", "bfloat16 channel"),
    "time": (1, 2, 7, 63, 64, 65, 257),
    "dtype": ("float32", "bfloat16", "float64"),
    "sizes": ((3, 5, 7), (1, 1, 1), (3, 1, 7), (1, 5, 1)),  # H, K, V
    "s0": (False, True),
    "reset": (False, True),
}
QUICK = pairwise(
    GRID | {"time": (7, 65), "decay": GRID["decay"][:3], "sizes": ((3, 5, 7),)}
)
RESULTS = ("o", "s_last", "dq", "dk", "dv", "dlog_decay", "ds0")


def draw(row, batch=2, strongest=1.0):
    """Inputs of a case as numpy arrays, already rounded to the dtypes of the case."""
    rng = np.random.default_rng(0)
    time, (heads, keys, values) = row["time"], row["sizes"]
    dtype = jnp.dtype(row["dtype"])
    wide = np.float64 if dtype == np.float64 else np.float32
    of_decay = jnp.bfloat16 if "bfloat16" in row["decay"] else wide
    shape = batch, time, heads, keys
    decay_shape = {"head": shape[2:3], "step": shape[:3]}.get(row["decay"], shape)
    state = batch, heads, keys, values
    return {
        "q": rng.normal(size=shape).astype(dtype),
        "k": rng.normal(size=shape).astype(dtype),
        "v": rng.normal(size=(*shape[:3], values)).astype(dtype),
        "log_decay": -rng.uniform(0, strongest, decay_shape).astype(of_decay),
        "s0": rng.normal(size=state).astype(wide) if row["s0"] else None,
        "reset": rng.random((batch, time)) < 0.1 if row["reset"] else None,
        "d_o": rng.normal(size=(*shape[:3], values)).astype(dtype),
        "d_last": rng.normal(size=state).astype(wide),
    }


def exact(value):
    """An array in float64; None and masks as they are."""
    if value is None or value.dtype == bool:
        return value
    return np.asarray(value).astype(np.float64)


def loop(case):
    """The seven results in float64."""
    case = {name: exact(value) for name, value in case.items()}
    cotangents = case.pop("d_o"), case.pop("d_last")
    return [
        *reference.lightning_attention(**case),
        *reference.lightning_attention_vjp(*cotangents, **case),
    ]


def moduli(case):
    """The results of a case with every number but the log decay made positive.

    They bound the sums of the moduli of the terms that a result is the sum of.
    """
    return loop(
        {
            name: value if value is None or name == "log_decay" else np.abs(value)
            for name, value in case.items()
        }
    )


def operations(case, unit):
    """How many times the unit round-off a term of a result can be off, relatively.

    A term is a product of at most five factors, in sums over steps, keys and values;
    each sum costs its length. Its decay is the exponential of a sum of log decays,
    which is off by its depth, log2 of a chunk and one for each chunk after it, times
    itself; beyond the logarithm of the smallest number the term is 0.
    """
    (batch, time, heads, keys), values = case["q"].shape, case["v"].shape[-1]
    decay = np.abs(exact(case["log_decay"]))
    if decay.ndim == 1:
        decay = np.broadcast_to(decay, (batch, time, heads))
    furthest = min(np.max(decay.sum(1)), -np.log(np.finfo(unit).tiny))
    depth = 7 + time / 64
    return 10 + time + keys + values + depth * furthest


def error_bounds(row, case):
    """Bounds on the rounding errors of the results, elementwise.

    In bfloat16 the results o, dq, dk and dv are rounded, and a kernel on a matrix unit
    rounds the factors of its products: of any term at most the decayed key, the state
    and the weight. The gradient of the decay has twice the terms. In a kernel it comes
    from sums over the rows and columns of a chunk, whose terms cancel: they are bounded
    by those of q dq and k dk, over the chunk of 128 steps. That of a decay of each
    channel has no such sums.
    """
    narrow = row["dtype"] == "bfloat16"
    unit = np.float64 if row["dtype"] == "float64" else np.float32
    u = float(np.finfo(unit).eps)
    in_kernel = row["implementation"] not in IMPLEMENTATIONS
    rounding = float(jnp.finfo(jnp.bfloat16).eps) if narrow else 0.0
    factors = 3 * rounding if in_kernel else 0.0
    o, last, dq, dk, dv, d_decay, ds0 = moduli(case)
    off = operations(case, unit) * u
    stored = float(jnp.finfo(case["log_decay"].dtype).eps)
    steps = case["q"].shape[0] * case["q"].shape[1] if row["decay"] == "head" else 0
    decay_bound = (2 * off + steps * u + stored + factors) * d_decay
    if in_kernel and d_decay.ndim < 4:
        terms = (np.abs(exact(case["q"])) * dq + np.abs(exact(case["k"])) * dk).sum(-1)
        edges = range(0, terms.shape[1], 128)
        sums = np.add.reduceat(terms, edges, axis=1).repeat(128, axis=1)
        sums = (2 * off + 256 * u) * sums[:, : terms.shape[1]]
        decay_bound += 128 * sums.sum((0, 1)) if d_decay.ndim == 1 else sums
    return [
        (off + factors + rounding) * o,
        (off + factors) * last,
        (off + factors + rounding) * dq,
        (off + factors + rounding) * dk,
        (off + factors + rounding) * dv,
        decay_bound,
        (off + factors) * ds0,
    ]


def compute(row, case):
    """The seven results of the op."""
    names = [name for name in ("q", "k", "v", "log_decay", "s0") if name in case]

    def run(*arguments):
        return ops.lightning_attention(
            **dict(zip(names, arguments, strict=True)),
            reset=case["reset"],
            implementation=row["implementation"],
        )

    @jax.jit
    def all_results(arguments, cotangents):
        out, vjp = jax.vjp(run, *arguments)
        return *out, *vjp(cotangents)

    arguments = jax.tree.map(jnp.asarray, [case[name] for name in names])
    return all_results(arguments, (jnp.asarray(case["d_o"]), case["d_last"]))


def check(row, **options):
    check_case(row, draw(row, **options))


def check_case(row, case):
    """Holds the results of the op against those of the loop."""
    wide = row["dtype"] == "float64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        got = compute(row, case)
    assert got[0].dtype == case["v"].dtype
    assert got[1].dtype == case["d_last"].dtype
    tiny = float(np.finfo(np.float64 if wide else np.float32).tiny)
    for name, mine, true, bound in zip(
        RESULTS, got, loop(case), error_bounds(row, case), strict=True
    ):
        if mine is None:
            assert name == "ds0" and case["s0"] is None
            continue
        assert mine.shape == true.shape, name
        error = np.abs(exact(mine) - true)
        # Terms that underflow: as many as there are steps, each times a factor of ten.
        bound = bound + 10 * row["time"] * tiny
        assert np.all(error <= bound), (name, np.max(error / bound))


@pytest.mark.parametrize("row", QUICK, ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row):
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decay", GRID["decay"])
def test_equals_the_loop_on_the_full_grid(implementation, decay):
    """Lengths with every dtype and kind of decay; the other options take turns."""
    names = "sizes", "s0", "reset"
    options = itertools.cycle(itertools.product(*(GRID[name] for name in names)))
    for time, dtype in itertools.product(GRID["time"][::2], GRID["dtype"]):
        row = {"implementation": implementation, "decay": decay}
        row |= {"time": time, "dtype": dtype}
        check(row | dict(zip(names, next(options), strict=True)))


def row_of(**fields):
    """A row of the grid, of float32 and a few steps where nothing else is said."""
    usual = {"implementation": "chunked", "time": 9, "sizes": (2, 3, 4)}
    usual |= {"dtype": "float32", "decay": "head"}
    return usual | {"s0": True, "reset": True} | fields


ALL_DECAYS = "head", "step", "channel"


@pytest.mark.parametrize("decay", mostly_slow(ALL_DECAYS, "step"))
def test_several_blocks(decay):
    """More steps than the chunked form has in one block, and no multiple of it."""
    check(row_of(time=1100, decay=decay), batch=32)


@pytest.mark.parametrize("decay", mostly_slow(ALL_DECAYS, "channel"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strong_decays(decay, dtype):
    """Decays down to e^-20 a step: within the same bounds, beside weak ones too."""
    check(row_of(time=100, decay=decay, dtype=dtype), strongest=20.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_long_and_so_strong_that_only_the_step_itself_is_left(implementation):
    """e^-20 a step is 2e-9, below the round-off of float32: o_t = (q_t . k_t) v_t."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.uniform(1, 2, (1, 4096, 1, 8)), "float32") for _ in "qkv"
    )
    decay = jnp.full(q.shape, -20.0)
    o, _ = ops.lightning_attention(q, k, v, decay, implementation=implementation)
    want = np.sum(exact(q) * exact(k), -1, keepdims=True) * exact(v)
    # The step before adds e^-20 times at most 4; 8 products, their sum, one product.
    np.testing.assert_allclose(o, want, rtol=4 * np.exp(-20) + 10 * 1.2e-7)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "chunked"))
@pytest.mark.parametrize("rank", mostly_slow([1, 3, 4], 4))
def test_a_decay_of_zero_is_a_reset(implementation, rank):
    row = row_of(
        time=70, implementation=implementation, decay=("head", "step")[rank > 1]
    )
    case = draw(row)
    zero = np.zeros((2, 70), bool)
    if rank == 1:
        log_decay, zero[:] = np.full(2, -np.inf, "float32"), True
        weak = np.zeros(2, "float32")
    else:
        zero[0, [0, 3, 4, 64]] = zero[1, 33] = True
        weak = case["log_decay"] if rank == 3 else case["log_decay"][..., None]
        weak = weak if rank == 3 else np.broadcast_to(weak, (2, 70, 2, 3))
        log_decay = np.where(zero.reshape(2, 70, *(1,) * (rank - 2)), -np.inf, weak)
    got = compute(row, case | {"log_decay": log_decay.astype("float32"), "reset": None})
    want = compute(row, case | {"log_decay": weak.astype("float32"), "reset": zero})
    for name, mine, true in zip(RESULTS, got, want, strict=True):
        assert np.all(np.isfinite(mine)), name
        # The same sums of the same numbers, in another order where XLA fuses otherwise.
        np.testing.assert_allclose(mine, true, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_positive_log_decays(implementation):
    """Growth: no promise but that of the loop, whose terms grow with it."""
    row = row_of(time=80, implementation=implementation, decay="step", reset=False)
    case = draw(row)
    case |= {"log_decay": -case["log_decay"] / 4}
    for mine, true, bound in zip(
        compute(row, case), loop(case), error_bounds(row, case), strict=True
    ):
        assert np.all(np.abs(exact(mine) - true) <= bound)


def test_reference_gradient_by_finite_differences():
    """The ground truth itself: the loop's gradient against differences of the loop."""
    rng = np.random.default_rng(1)
    for rank in (1, 3, 4):
        case = draw(row_of(time=6, dtype="float64", decay=DECAYS[rank]))
        names = ("q", "k", "v", "log_decay", "s0")
        gradients = loop(case)[2:]

        def scalar(step, name, direction, case=case):
            moved = case | {name: case[name] + step * direction}
            o, last = loop(moved)[:2]
            return np.sum(o * case["d_o"]) + np.sum(last * case["d_last"])

        for name, gradient in zip(names, gradients, strict=True):
            direction = rng.normal(size=gradient.shape)
            plus, minus = (scalar(step, name, direction) for step in (1e-6, -1e-6))
            slope = (plus - minus) / 2e-6
            np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7)


DECAYS = {1: "head", 3: "step", 4: "channel"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "chunked"))
@pytest.mark.parametrize("rank", mostly_slow([1, 3, 4], 4))
def test_is_differentiable_twice(implementation, rank):
    case = draw(row_of(time=5, dtype="float64", decay=DECAYS[rank]))

    def run(q, k, v, log_decay, s0):
        return ops.lightning_attention(
            q,
            k,
            v,
            log_decay,
            s0=s0,
            reset=case["reset"],
            implementation=implementation,
        )

    arguments = [jnp.asarray(case[n]) for n in ("q", "k", "v", "log_decay", "s0")]
    modes = ["fwd", "rev"] if implementation == "scan" else ["rev"]
    check_grads(jax.jit(run), arguments, order=2, modes=modes)


def loss(arguments, implementation=None, reset=None):
    *arguments, s0 = arguments
    o, last = ops.lightning_attention(
        *arguments, s0=s0, reset=reset, implementation=implementation
    )
    return jnp.sum(jnp.sin(o)) + jnp.sum(last**2)


def inputs(rank=3, **fields):
    case = draw(row_of(decay=DECAYS[rank], **fields))
    return [jnp.asarray(case[n]) for n in ("q", "k", "v", "log_decay", "s0")]


def same(got, want, atol=1e-5):
    """The same operations, fused or grouped otherwise, on numbers of about one."""
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=atol), got, want
    )


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "chunked"))
def test_under_vmap_jit_scan_and_remat(implementation):
    arguments = inputs()
    gradient = jax.grad(functools.partial(loss, implementation=implementation))
    want = jax.jit(gradient)(arguments)
    same(jax.jit(jax.grad(jax.checkpoint(loss)))(arguments), want)

    stacked = [jnp.stack([x, x / 2]) for x in arguments]
    halves = [x / 2 for x in arguments]
    got = jax.jit(jax.vmap(gradient))(stacked)
    same([x[0] for x in got], want)
    same([x[1] for x in got], jax.jit(gradient)(halves))

    def body(total, arguments):
        return total + loss(arguments, implementation), None

    scanned = jax.jit(jax.grad(lambda xs: jax.lax.scan(body, 0.0, xs)[0]))
    same([x[0] for x in scanned(stacked)], want)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "chunked"))
@pytest.mark.parametrize("rank", [1, 4])
def test_inside_a_shard_map(implementation, rank):
    """Rows of the batch on two devices, and jax checks what varies between them."""
    *arguments, _ = inputs(rank)
    rows, whole = jax.P("data"), jax.P()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))

    def run(*arguments):
        return ops.lightning_attention(*arguments, implementation=implementation)

    specs = (rows, rows, rows, whole if rank == 1 else rows)
    sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows)

    def value_and_gradients(run):
        def both(*arguments):
            out, vjp = jax.vjp(run, *arguments)
            return out, vjp(jax.tree.map(jnp.cos, out))

        return jax.jit(both)(*arguments)

    same(value_and_gradients(sharded), value_and_gradients(run))


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"time": 2}])
@pytest.mark.parametrize("rank", mostly_slow([1, 3, 4], 1))
def test_under_a_mesh(sizes, rank):
    """Batch, heads and time on several devices; a reset in the second half of time."""
    arguments = inputs(rank, time=12)
    reset = jnp.zeros((2, 12), bool).at[0, 8].set(True)
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, reset=reset)))
    want = gradient(arguments)
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    with jax.set_mesh(jax.make_mesh(tuple(sizes.values()), tuple(sizes), auto)):
        same(gradient(arguments), want)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "chunked"))
@pytest.mark.parametrize("rank", mostly_slow([1, 3, 4], 4))
def test_whole_is_chunks_is_steps(implementation, rank):
    arguments = inputs(rank, time=70)
    reset = jnp.zeros((2, 70), bool).at[0, 4].set(True).at[1, 66].set(True)

    def run(bounds, q, k, v, log_decay, s0):
        out = []
        for low, high in itertools.pairwise(bounds):
            here = slice(low, high)
            o, s0 = ops.lightning_attention(
                q[:, here],
                k[:, here],
                v[:, here],
                log_decay if rank == 1 else log_decay[:, here],
                s0=s0,
                reset=reset[:, here],
                implementation=implementation,
            )
            out.append(o)
        return jnp.concatenate(out, axis=1), s0

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradient(bounds):
        out, vjp = jax.vjp(functools.partial(run, bounds), *arguments)
        return out, vjp(jax.tree.map(jnp.ones_like, out))

    want = value_and_gradient((0, 70))
    for bounds in ((0, 65, 70), (0, 64, *range(65, 71))):
        # Sums of 70 terms below 10, and for a constant decay of 140 of those.
        same(value_and_gradient(bounds), want, atol=70 * 10 * 1.2e-7 * 10)


@pytest.mark.parametrize("implementation", mostly_slow(IMPLEMENTATIONS, "chunked"))
def test_packed_is_separate(implementation):
    q, k, v, log_decay, _ = inputs(4, time=12)
    starts = (0, 5, 6, 12)
    reset = jnp.zeros((2, 12), bool).at[:, jnp.array(starts[1:-1])].set(True)

    def packed(*arguments):
        return ops.lightning_attention(
            *arguments, reset=reset, implementation=implementation
        )[0]

    def separate(*arguments):
        parts = [
            ops.lightning_attention(
                *(x[:, i:j] for x in arguments), implementation=implementation
            )[0]
            for i, j in itertools.pairwise(starts)
        ]
        return jnp.concatenate(parts, axis=1)

    results = []
    for run in (packed, separate):
        o, vjp = jax.vjp(jax.jit(run), q, k, v, log_decay)
        results.append((o, *vjp(jnp.cos(o))))
    same(*results)
    assert np.all(np.asarray(results[0][4])[:, list(starts[1:-1])] == 0)  # cut decays


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_and_one_step(time, rank, dtype):
    q, v = jnp.ones((2, time, 3, 4), dtype), jnp.ones((2, time, 3, 5), dtype)
    shape = {1: (3,), 3: (2, time, 3), 4: q.shape}[rank]
    log_decay = jnp.full(shape, jnp.log(0.5))
    s0 = jnp.full((2, 3, 4, 5), 4.0)
    o, last = ops.lightning_attention(q, q, v, log_decay, s0=s0)
    assert o.shape == v.shape and o.dtype == dtype and last.dtype == jnp.float32
    np.testing.assert_allclose(last, s0 if time == 0 else 3.0 + 0 * s0, rtol=1e-6)
    np.testing.assert_allclose(exact(o), np.full(o.shape, 12.0), rtol=1e-6)


def test_the_worked_example():
    """One head, four steps, decay e^-0.25: numbers that stand on their own."""
    q = jnp.array([1, 0.5, -1, 2, 0.5, 1, 2, -0.5]).reshape(1, 4, 1, 2)
    k = jnp.array([0.5, 1, 1, -1, 2, 0.5, -0.5, 1]).reshape(1, 4, 1, 2)
    v = jnp.array([1, 2, -1, 0.5, 0.25, 1, 3, -2]).reshape(1, 4, 1, 2)
    d_o = jnp.array([1, -1, 0.5, 2, -0.5, 1, 1, 0.25]).reshape(1, 4, 1, 2)
    decay = jnp.array([-0.25])
    want = {
        "o": [1, 2, 4.16820117, 0.83640235, 1.52256372, 2.82162645, -5.05001764]
        + [7.15103281],
        "s": [-1.48094699, 3.33323345, 4.17624731, -0.96913183],
        "dq": [-0.5, -1, 2.25230176, 3.00460352, 2.98369878, 0.56849521, -0.64763863]
        + [3.93396435],
        "dk": [-2.63260587, 7.06472812, -1.17202826, 2.04415795, 1.21630078, 0.6802998]
        + [5, -1.25],
        "dv": [1.4412022, 2.15361149, 0.21102685, -6.01031873, 2.17050294, 2.23012573]
        + [-1.5, -0.375],
    }
    for implementation in IMPLEMENTATIONS:

        def run(q, k, v, implementation=implementation):
            return ops.lightning_attention(
                q, k, v, decay, implementation=implementation
            )

        (o, last), vjp = jax.vjp(jax.jit(run), q, k, v)
        got = [o, last, *vjp((d_o, jnp.zeros_like(last)))]
        for mine, true in zip(got, want.values(), strict=True):
            # Nine digits were noted; four steps of float32 on numbers below 10.
            np.testing.assert_allclose(mine.ravel(), true, rtol=0, atol=4 * 4 * 6e-7)


def close(name, got, want):
    """Equal up to the float32 in which the golden inputs and gradients are stored."""
    error = np.max(np.abs(np.asarray(got) - want))
    assert error <= 1e-6 * np.max(np.abs(want)), (name, error)


GOLDEN_FLA = {  # the name of the log decay, the scale of q
    "gla_no_h0": ("gk", 8**-0.5),
    "gla_h0": ("gk", 8**-0.5),
    "simple_gla_h0": ("g", 8**-0.5),
    "simple_gla_no_h0_scale1": ("g", 1.0),
    "lightning_layer0of4": ("g_gamma", 8**-0.5),
    "lightning_layer3of4": ("g_gamma", 8**-0.5),
    "linear_attn": (None, 8**-0.5),
    "retention_headfirst": ("retention", 8**-0.5),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case", mostly_slow(GOLDEN_FLA, "gla_h0", "simple_gla_h0", "retention_headfirst")
)
def test_golden_flash_linear_attention(case):
    file = golden.load("fla_ops.npz")
    decay, scale = GOLDEN_FLA[case]

    def stored(kind, name):
        value = file.get(f"{kind}/{case}/{name}")
        headfirst = value is not None and "headfirst" in case and value.ndim == 4
        return np.swapaxes(value, 1, 2) if headfirst else value

    q, k, v = (jnp.asarray(stored("in", n), jnp.float64) for n in "qkv")
    heads = q.shape[2]
    if decay == "retention":
        log_decay = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float64))))
    elif decay is None:
        log_decay = jnp.zeros(heads)
    else:
        log_decay = jnp.asarray(stored("in", decay), jnp.float64)
    state = stored("in", "initial_state")
    state = np.zeros((q.shape[0], heads, 8, 12)) if state is None else state

    def run(q, k, v, log_decay, s0):
        return ops.lightning_attention(scale * q, k, v, log_decay, s0=s0)

    arguments = q, k, v, log_decay, jnp.asarray(state, jnp.float64)
    (o, last), vjp = jax.vjp(jax.jit(run), *arguments)
    close("o", o, stored("out64", "o"))
    if "headfirst" not in case:
        close("final_state", last, stored("out64", "final_state"))
    d_last = stored("in", "cot_final_state")
    d_last = np.zeros(last.shape) if d_last is None else d_last
    cotangents = (jnp.asarray(x, jnp.float64) for x in (stored("in", "cot_o"), d_last))
    gradients = vjp(tuple(cotangents))
    for name, got in zip(
        ("q", "k", "v", decay, "initial_state"), gradients, strict=True
    ):
        want = stored("grad64", name)
        if want is not None:
            close(name, got, want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case",
    mostly_slow(
        ["h4_built", "h6_built_nonpow2", "h3_custom", "h2_no_decay"], "h3_custom"
    ),
)
def test_golden_lightning_attention(case):
    file = golden.load("lightning_attention.npz")

    def stored(key):
        return jnp.asarray(np.swapaxes(file[key], 1, 2), jnp.float64)

    q, k, v, d_o = (stored(f"in/{case}/{name}") for name in ("q", "k", "v", "cot_o"))
    slopes = file.get(f"in/{case}/slopes", np.zeros(q.shape[2])).ravel()
    log_decay = -jnp.asarray(slopes, jnp.float64)

    @jax.jit
    def run(*qkv):
        return ops.lightning_attention(*qkv, log_decay)[0]

    o, vjp = jax.vjp(run, q, k, v)
    close("o", o, stored(f"out64/{case}/o"))
    for name, got in zip("qkv", vjp(d_o), strict=True):
        close(name, got, stored(f"grad64/{case}/{name}"))


@pytest.mark.parametrize("rank", mostly_slow([1, 3, 4], 4))
def test_memory_of_the_gradient_grows_with_time_and_no_faster(rank):
    """Temporaries of value and gradient in bytes, from the compiler: no measurement."""

    def temporaries(time):
        shape = 1, time, 2, 16
        decay = {1: (2,), 3: shape[:3], 4: shape}[rank]
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape,) * 3 + (decay,)]

        def total(*arguments):
            return jnp.sum(ops.lightning_attention(*arguments)[0] ** 2)

        gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(4096), temporaries(16384)
    plane = 12288 * 2 * 16 * 4
    # o and its cotangent, the gradients before they are returned, one spare, and the
    # states, one in 1024 steps: 1/64 of a plane.
    assert long - short <= 7 * plane
    assert short <= long


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": (2, 4, 3)}, r"q has shape \(2, 4, 3\), wanted four axes"),
        ({"k": (2, 4, 3, 6)}, r"k has shape \(2, 4, 3, 6\), wanted \(2, 4, 3, 5\)"),
        ({"v": (2, 4, 2, 6)}, r"v has shape \(2, 4, 2, 6\), wanted \(2, 4, 3\)"),
        ({"v": (2, 4, 3)}, r"v has shape \(2, 4, 3\), wanted \(2, 4, 3\) and one more"),
        ({"log_decay": (4,)}, r"log_decay has shape \(4,\), wanted \(3,\) or"),
        ({"s0": (2, 3, 5)}, r"s0 has shape \(2, 3, 5\), wanted \(2, 3, 5, 6\)"),
        ({"reset": (2, 3)}, r"reset has shape \(2, 3\), wanted \(2, 4\)"),
        ({"reset": ((2, 4), "int32")}, "reset has dtype int32, wanted bool"),
        ({"v": ((2, 4, 3, 6), "int32")}, "v has dtype int32, wanted real floating"),
        ({"s0": ((2, 3, 5, 6), "complex64")}, "s0 has dtype complex64, wanted real"),
        (
            {"implementation": "fast"},
            "'fast' is unknown, wanted 'scan', 'loop', 'chunked'",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    def array(name, value):
        if name == "implementation":
            return value
        default = "bool" if name == "reset" else "float32"
        shape, dtype = value if isinstance(value[0], tuple) else (value, default)
        return jnp.zeros(shape, dtype)

    usual = {"q": (2, 4, 3, 5), "k": (2, 4, 3, 5), "v": (2, 4, 3, 6), "log_decay": (3,)}
    arguments = {n: array(n, value) for n, value in (usual | arguments).items()}
    with pytest.raises(ValueError, match=message):
        ops.lightning_attention(**arguments)


@pytest.mark.parametrize("name", ["pallas_tpu", "mosaic_gpu"])
def test_named_kernel_that_cannot_run_says_why(name):
    x = jnp.ones((1, 4, 2, 64))
    with pytest.raises(NotImplementedError, match=f"'{name}' cannot run on 'cpu'"):
        ops.lightning_attention(x, x, x, jnp.zeros(2), implementation=name)
