"""The fused GPU kernels in interpret mode, against the equations in float64.

Memory starts as NaN and accesses are checked for races.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ring_gpu
from ssm import ops, reference
from tests.pairwise import pairwise

SIZES = {
    "segments": (1, 2),
    "width": (5, 132),
    "h0": (True, False),
    "reset": (True, False),
    "turn": (1, 2),  # rows at a time
}


def quick(segments, reset):
    """What takes the interpreter the least time, for all else is in the slow rows."""
    sizes = {"segments": segments, "width": 5, "h0": True, "reset": reset}
    return sizes | {"turn": 1}


RG_LRU = [
    {"dtype": "float32"} | quick(2, True),
    {"dtype": "bfloat16"} | quick(1, False),
]
HGRN = [
    {"kind": "float32"} | quick(1, True) | {"reverse": True},
    {"kind": "bfloat16"} | quick(1, False) | {"reverse": False},
    {"kind": "complex"} | quick(2, True) | {"reverse": False},
]
SLOW_RG_LRU = pairwise({"dtype": ("float32", "bfloat16")} | SIZES)
SLOW_HGRN = pairwise(
    {"kind": ("float32", "bfloat16", "rotated", "complex")}
    | SIZES
    | {"reverse": (False, True)}
)
BATCH, TIME = 2, 7


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def rg_lru(x, r, i, rate, h0, d_h, d_last, *, reset, minus):
    """Values and cotangents. With `minus` 1 and moduli elsewhere, sums of moduli.

    `rate` is then the modulus, too: of it the sign is known.
    """
    gate, open_ = sigmoid(r), sigmoid(i)
    log_a = -np.abs(rate) * gate
    a, n = np.exp(log_a), np.sqrt(-np.expm1(2 * log_a))
    if reset is not None:
        a, n = np.where(reset[..., None], 0, a), np.where(reset[..., None], 1, n)
    u = n * open_ * x
    h, last = reference.linear_scan(u, a, h0=h0)
    du, da, dh0 = reference.linear_scan_vjp(d_h, d_last, u, a, h0=h0)
    d_log = da * a + minus * du * open_ * x * a**2 / n
    return (
        h,
        last,
        du * n * open_,
        d_log * rate * gate * (1 - gate),
        du * n * x * open_ * (1 - open_),
        (d_log * gate).sum((0, 1)),
        dh0,
    )


def hgrn(x, f, bound, theta, h0, d_h, d_last, *, reset, reverse, minus):
    """The same for the HGRN; its rotation changes no modulus."""
    gate = sigmoid(f)
    keep, rest = bound + (1 - bound) * gate, (1 - bound) * (1 - gate)
    decay = keep if reset is None else np.where(reset[..., None], 0, keep)
    turn = np.exp(1j * theta) if minus < 0 and theta.any() else 1.0
    u = rest * x
    options = {"h0": h0, "reverse": reverse}
    h, last = reference.linear_scan(u.astype(h0.dtype), decay * turn, **options)
    du, da, dh0 = reference.linear_scan_vjp(
        d_h, d_last, u.astype(h0.dtype), decay * turn, **options
    )
    d_decay = (da * turn) * (decay != 0)
    d_rest = du * x
    d_keep = (d_decay + minus * d_rest).real
    d_theta = d_decay * decay if minus > 0 else (1j * d_decay * decay).real
    return (
        h,
        last,
        du * rest if np.iscomplexobj(x) else (du * rest).real,
        d_keep * (1 - bound) * gate * (1 - gate),
        (d_keep * (1 - gate)).sum((0, 1)),
        d_theta.sum((0, 1)) * theta.any(),
        dh0,
    )


def check(run, arguments, cotangents, want, moduli, dtype, *, operations):
    """Holds values and gradients to the bound that `operations` roundings a step give.

    The error of a recurrence is at most that of n roundings of the sum of the moduli,
    n = steps x operations; cotangents double the steps, a sum over batch and time has
    so many terms, and with bfloat16 inputs and gradients are rounded.
    """
    out, vjp = jax.vjp(jax.jit(run), *arguments)
    got = (*out, *vjp(cotangents))
    narrow = dtype == "bfloat16"
    bound = 2 * (TIME + 1) * operations * 1.2e-7 + BATCH * TIME * 1.2e-7
    bound += 3 * float(jnp.finfo(jnp.bfloat16).eps) if narrow else 0
    for n, (mine, true, scale) in enumerate(zip(got, want, moduli, strict=True)):
        error = np.abs(np.asarray(mine).astype(true.dtype) - true)
        assert mine.shape == true.shape
        assert np.all(error <= bound * scale), (n, np.max(error / (bound * scale)))


def inputs(rng, dtype, *shape):
    return jnp.asarray(rng.normal(size=shape), dtype)


def exact(array):
    kind = np.complex128 if jnp.iscomplexobj(array) else np.float64
    return np.asarray(array).astype(kind)


def cut_short(monkeypatch, turn, segments):
    """Tiles with an end amid 7 steps."""
    choose = ring_gpu.choose_tiles
    monkeypatch.setattr(ring_gpu, "ROWS", turn)
    monkeypatch.setattr(
        ring_gpu,
        "choose_tiles",
        lambda *a: choose(*a)._replace(steps=4, stages=2, segments=segments),
    )


def with_slow(rows, slow):
    def named(row, marks=()):
        return pytest.param(row, id="-".join(map(str, row.values())), marks=marks)

    return [*map(named, rows), *(named(row, pytest.mark.slow) for row in slow)]


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("row", with_slow(RG_LRU, SLOW_RG_LRU))
def test_rg_lru_is_its_equations(row, monkeypatch):
    cut_short(monkeypatch, row["turn"], row["segments"])
    rng = np.random.default_rng(0)
    shape, state = (BATCH, TIME, row["width"]), (BATCH, row["width"])
    x, r, i, d_h = (inputs(rng, row["dtype"], *shape) for _ in range(4))
    h0, d_last = (inputs(rng, "float32", *state) for _ in range(2))
    h0 = h0 if row["h0"] else jnp.zeros_like(h0)
    a_param = inputs(rng, "float32", row["width"])
    reset = rng.random((BATCH, TIME)) < 0.2 if row["reset"] else None

    def run(x, r, i, a_param, h0):
        options = {"h0": h0, "reset": reset, "implementation": "mosaic_gpu"}
        return ops.rg_lru_scan(x, r, i, a_param, **options)

    # The chain from a_param to the rate is the op's, not the kernel's.
    rate = -8 * np.logaddexp(0, exact(a_param))
    slope = -8 * sigmoid(exact(a_param))
    truth = [exact(v) for v in (x, r, i)], [exact(v) for v in (h0, d_h, d_last)]
    want = list(rg_lru(*truth[0], rate, *truth[1], reset=reset, minus=-1))
    x_, r_, i_ = truth[0]
    sizes = abs(x_), r_, i_, abs(rate), *map(np.abs, truth[1])
    moduli = list(rg_lru(*sizes, reset=reset, minus=1))
    want[5], moduli[5] = want[5] * slope, moduli[5] * abs(slope)
    # A decay costs two functions, and its logarithm's rounding in units of itself; the
    # normaliser is right to 2e-6, and both are used twice.
    operations = 2 * (10 + np.max(np.abs(rate)) + 2e-6 / 1.2e-7)
    arguments, cotangents = (x, r, i, a_param, h0), (d_h, d_last)
    dtype = row["dtype"]
    check(run, arguments, cotangents, want, moduli, dtype, operations=operations)


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("row", with_slow(HGRN, SLOW_HGRN))
def test_hgrn_is_its_equations(row, monkeypatch):
    cut_short(monkeypatch, row["turn"], row["segments"])
    rng = np.random.default_rng(0)
    rotated = row["kind"] in ("rotated", "complex")
    dtype = "bfloat16" if row["kind"] == "bfloat16" else "float32"
    shape, state = (BATCH, TIME, row["width"]), (BATCH, row["width"])

    def number(dtype, *shape, is_complex):
        parts = [inputs(rng, dtype, *shape) for _ in range(1 + is_complex)]
        return jax.lax.complex(*parts) if is_complex else parts[0]

    x = number(dtype, *shape, is_complex=row["kind"] == "complex")
    d_h = number(dtype, *shape, is_complex=rotated)
    h0, d_last = (number("float32", *state, is_complex=rotated) for _ in range(2))
    h0 = h0 if row["h0"] else jnp.zeros_like(h0)
    f = inputs(rng, dtype, *shape)
    bound = jnp.asarray(rng.uniform(0, 0.9, row["width"]), jnp.float32)
    theta = jnp.asarray(rng.uniform(0, 6.28, row["width"]), jnp.float32)
    reset = rng.random((BATCH, TIME)) < 0.2 if row["reset"] else None
    options = {"reset": reset, "reverse": row["reverse"]}

    def run(x, f, bound, theta, h0):
        return ops.hgrn_scan(
            *(x, f, bound),
            theta=theta if rotated else None,
            h0=h0,
            **options,
            implementation="mosaic_gpu",
        )

    truth = [exact(v) for v in (x, f, bound)], [exact(v) for v in (h0, d_h, d_last)]
    x_, f_, bound_ = truth[0]
    theta_ = exact(theta) * rotated
    want = hgrn(x_, f_, bound_, theta_, *truth[1], **options, minus=-1)
    sizes = abs(x_), f_, bound_, theta_, *map(np.abs, truth[1])
    moduli = hgrn(*sizes, **options, minus=1)
    arguments = x, f, bound, theta, h0
    # Gate, rotation and product take seven roundings, and the angle's up to 2 pi.
    check(run, arguments, (d_h, d_last), want, moduli, dtype, operations=20)


def small(name, implementation):
    """A fused op on a few steps, and its arguments."""
    rng = np.random.default_rng(0)
    x, gate, other = (inputs(rng, "float32", 2, 5, 3) for _ in range(3))
    parameter, h0 = jnp.linspace(0.1, 0.9, 3), inputs(rng, "float32", 2, 3)
    if name == "rg_lru":
        run, arguments = ops.rg_lru_scan, (x, gate, other, parameter)
    else:
        run, arguments = ops.hgrn_scan, (x, gate, parameter)

    def loss(h0, *arguments):
        h, last = run(*arguments, h0=h0, implementation=implementation)
        return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)

    return loss, (h0, *arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("name", ["rg_lru", "hgrn"])
def test_second_derivative_is_that_of_the_loop(name, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 1)

    def second(implementation):
        loss, arguments = small(name, implementation)
        places = tuple(range(len(arguments)))

        def norm(arguments):
            gradients = jax.grad(loss, places)(*arguments)
            return sum(jnp.sum(g**2) for g in gradients)

        return jax.jit(jax.grad(norm))(arguments)

    for mine, true in zip(second("mosaic_gpu"), second("loop"), strict=True):
        # Four sweeps of 5 steps each, in float32, of products of up to six factors.
        scale = np.max(np.abs(true))
        np.testing.assert_allclose(mine, true, rtol=0, atol=200 * 1.2e-7 * scale)


@pytest.mark.slow
@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("name", ["rg_lru", "hgrn"])
def test_vmap_is_one_by_one(name, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 1)
    loss, (h0, x, *others) = small(name, "mosaic_gpu")
    gradients = jax.grad(loss, (0, 1, len(others) + 1))
    h0, x = jnp.stack([h0, 2 * h0]), jnp.stack([x, 2 * x])
    got = jax.vmap(lambda h0, x: gradients(h0, x, *others))(h0, x)
    for n in range(2):
        jax.tree.map(
            lambda g, w, n=n: np.testing.assert_allclose(g[n], w, rtol=1e-6, atol=1e-6),
            got,
            gradients(h0[n], x[n], *others),
        )
