"""Liquid-S4 against numbers worked out elsewhere, its own expansion, and S4D."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm.layers import S4D, LiquidS4
from tests.ssm import law
from tests.ssm.filling import of_two, with_params
from tests.ssm.published import close

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)

U4 = np.array([1, -0.5, 2, 0.25])
U8 = np.array([1, -0.5, 2, 0.25, -1, 0.75, -0.25, 1.5])
example = functools.partial(of_two, LiquidS4)


def outputs(layer, u):
    y, _ = layer(jnp.asarray(u, jnp.float64)[None, :, None])
    return np.asarray(y[0, :, 0])


FIRST = [0.1314754989, 0.0536614916, 0.3176007408, 0.3297894168]
SECOND = [0, -0.0062411714, 0.0049662196, 0.0131710603]
THIRD = [0, 0, -0.0011998724, -0.0010177866]
EXACT = [0.1314754989, 0.0474203203, 0.3213670880, 0.3419134725]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"liquid": "none"}, FIRST),
        ({"liquid": "exact"}, EXACT),
        ({"liquid": "order", "order": 2}, np.add(FIRST, SECOND)),
        ({"liquid": "order", "order": 3}, np.add(np.add(FIRST, SECOND), THIRD)),
        ({"liquid": "order", "order": 4}, EXACT),
        (
            {"liquid": "exact", "discretization": "bilinear"},
            [0.1320853590, 0.0475435380, 0.3225825865, 0.3428650952],
        ),
    ],
)
def test_worked_numbers(options, want):
    with jax.enable_x64(True):
        got = outputs(example(bound="none", **options), U4)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-10)  # ten digits, twice


KB = {
    2: "0 -0.0062992712 -0.0184602806 -0.0111689782 -0.0146664518 -0.0246310171 "
    "-0.0272210994 -0.0326511931",
    3: "0 0 -0.0012161009 -0.0014646764 -0.0020615914 -0.0023098896 -0.0021604564 "
    "-0.0026433150",
}
PB = {
    2: "0 -0.0062992712 -0.0125985424 0.0062992712 -0.0031496356 -0.0094489068 "
    "-0.0023622267 -0.0047244534",
    3: "0 0 -0.0012161009 -0.0003040252 -0.0006080505 -0.0002280189 0.0002280189 "
    "-0.0003420284",
}


@pytest.mark.parametrize("mode", ["convolution", "recurrent"])
@pytest.mark.parametrize(("liquid", "terms"), [("kb", KB), ("pb", PB)])
def test_worked_terms_of_both_kernels(liquid, terms, mode):
    options = {"discretization": "bilinear", "mode": mode}
    with jax.enable_x64(True):
        plain = outputs(example(liquid="none", **options), U8)
        for order in (2, 3):
            got = outputs(example(liquid=liquid, order=order, **options), U8) - plain
            wanted = (np.array(terms[p].split(), float) for p in range(2, order + 1))
            np.testing.assert_allclose(got, sum(wanted), rtol=0, atol=2e-10)


def scalars(liquid, u, a, b, **options):
    """y / 2 of one real state with a, b and c = 1."""
    layer = nnx.eval_shape(
        lambda: LiquidS4(
            1, 2, liquid=liquid, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options
        )
    )
    eigenvalue = np.log(a)
    params = {
        "log_dt": [0.0],
        "log_a_re": [[np.log(-eigenvalue)]],
        "a_im": [[0.0]],
        "b_re": [[b * eigenvalue / (a - 1)]],
        "b_im": [[0.0]],
        "c_re": [[1.0]],
        "c_im": [[0.0]],
        "d": [0.0],
    }
    params = {name: np.asarray(value) for name, value in params.items()}
    return outputs(nnx.merge(*with_params(layer, params)), u) / 2


def test_worked_scalars():
    with jax.enable_x64(True):
        run = functools.partial(scalars, u=U4, a=0.8, b=0.3, bound="none")
        exact, first = run("exact"), run("none")
        second = run("order", order=2) - first
        third = run("order", order=3) - first - second
    np.testing.assert_allclose(exact, [0.3, 0.045, 0.663, 0.655125], atol=1e-15)
    np.testing.assert_allclose(first, [0.3, 0.09, 0.672, 0.6126], atol=1e-15)
    np.testing.assert_allclose(second, [0, -0.045, 0.018, 0.0648], atol=1e-15)
    np.testing.assert_allclose(third, [0, 0, -0.027, -0.02025], atol=1e-15)


def tuples(u, a, b, order, *, consecutive):
    """The expansion, by all tuples of distinct inputs."""
    h = np.zeros(len(u))
    for t in range(len(u)):
        for p in range(1, order + 1):
            for places in itertools.combinations(range(t + 1), p):
                if consecutive and places[-1] - places[0] != p - 1:
                    continue
                h[t] += b**p * a ** (t - places[0] + 1 - p) * np.prod(u[list(places)])
    return h


@pytest.mark.parametrize("order", [2, 3, 8])
def test_orders_are_sums_over_tuples(order):
    """And KB is that over consecutive ones, two models of all orders the exact one."""
    a, b = 0.8, 0.3
    with jax.enable_x64(True):
        run = functools.partial(scalars, u=U8, a=a, b=b, bound="none")
        close(
            run("order", order=order), tuples(U8, a, b, order, consecutive=False), 1e-14
        )
        close(run("kb", order=order), tuples(U8, a, b, order, consecutive=True), 1e-14)
        if order == len(U8):
            close(run("order", order=order), run("exact"), 1e-14)


def test_pb_without_a_window_sums_all_products():
    with jax.enable_x64(True):
        run = functools.partial(scalars, u=U8, a=0.8, b=0.3, order=2)
        plain, local = run("none"), run("pb")
        box, all_of_them = run("pb", window=3), run("pb", window=None)
    local = local - plain
    close(all_of_them - plain, np.cumsum(local), 1e-14)
    close(box - plain, np.convolve(local, np.ones(3))[: len(U8)], 1e-14)


def make(liquid, **options):
    options = {"dt_max": 0.5, "rngs": nnx.Rngs(0)} | options
    return LiquidS4(3, 6, liquid=liquid, **options)


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def test_without_the_liquid_term_it_is_s4d_to_the_bit():
    x = normal(2, 9, 3)
    plain = S4D(3, 6, dt_max=0.5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(make("none")(x)[0], plain(x)[0])
    zeros = jnp.zeros_like(x)
    for liquid in ("exact", "order", "kb", "pb"):
        np.testing.assert_array_equal(make(liquid)(zeros)[0], zeros)


@pytest.mark.parametrize("liquid", ["order", "kb"])
def test_signs_and_powers_of_the_input(liquid):
    """The term of order p grows as its p-th power: even ones keep their sign."""
    x = normal(2, 9, 3)
    run = {p: make(liquid, order=p, bound="none") for p in (2, 3)}

    def terms(x):
        plain, two, three = make("none")(x)[0], run[2](x)[0], run[3](x)[0]
        return two - plain, three - two

    second, third = terms(x)
    for scale in (-1.0, 2.0):
        got = terms(scale * x)
        # Differences of outputs of about one, each with a rounding or two.
        np.testing.assert_allclose(got[0], scale**2 * second, atol=2e-5)
        np.testing.assert_allclose(got[1], scale**3 * third, atol=2e-5)


def test_shifted_by_one_the_decay_drives_alone():
    """g = h + 1 has g_t = (a + b u_t) g_{t-1} + (1 - a), from g = 1."""
    a, b = 0.8, 0.3
    with jax.enable_x64(True):
        h = scalars("exact", U8, a, b, bound="none")
    g, want = 1.0, []
    for u in U8:
        g = (a + b * u) * g + 1 - a
        want.append(g - 1)
    np.testing.assert_allclose(h, want, atol=1e-14)


@pytest.mark.parametrize("liquid", ["exact", "order"])
def test_safe_states_stay_bounded(liquid):
    """At 16,384 inputs of any size, such as constant ones that explode the plain form.

    |h_t| <= |a + b v_t| |h_{t-1}| + |b u_t| with the first factor below one.
    """
    layer = make(liquid, order=3)
    for size in (1.0, -1.0, 1e4):
        x = jnp.full((1, 16_384, 3), size)
        y = jit(lambda layer, x: layer(x)[0])(layer, x)
        assert np.isfinite(y).all()
    added = layer._added(1e4 * normal(1, 99, 3))
    a = jnp.exp(layer.system()[0])
    assert jnp.max(jnp.abs(a[None, None] + added)) <= 1 + 2**-22


def test_overflow_without_a_bound_is_told():
    layer = make("exact", bound="none")
    x = jnp.ones((1, 16_384, 3))
    with pytest.raises(FloatingPointError, match="bound='safe' keeps it"):
        layer(x)
    layer(x[:, :9])


def test_long_and_exact_in_float32():
    """At 16,384 steps, against float64: each step rounds a state of about its size.

    A state forgets within 1 / (1 - |a|) <= 2 / dt_min steps, so about 2000 roundings of
    2^-24 add up, at random or at worst all in one direction.
    """
    x = np.asarray(normal(1, 16_384, 3))
    narrow = make("exact")
    params = nnx.to_pure_dict(nnx.state(narrow))
    got = jit(lambda layer, x: layer(x)[0])(narrow, x)
    with jax.enable_x64(True):
        wide = nnx.eval_shape(lambda: make("exact", param_dtype=jnp.float64))
        wide = nnx.merge(*with_params(wide, params))
        want = jit(lambda layer, x: layer(x)[0])(wide, jnp.asarray(x, jnp.float64))
    close(got, want, 2000 * 2.0**-24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"liquid": "exakt"}, "liquid='exakt' is unknown.*did you mean 'exact'"),
        ({"liquid": "kb", "bound": "save"}, "did you mean 'safe'"),
        ({"liquid": "kb", "order": 1}, "order=1, wanted at least 2"),
        ({"liquid": "pb", "window": 0}, "window=0"),
        ({"liquid": "exact", "mode": "convolution"}, "is no convolution"),
        ({"liquid": "kb", "mode": "recurent"}, "did you mean 'recurrent'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_times_are_refused_where_they_have_no_meaning():
    x = normal(2, 9, 3)
    with pytest.raises(ValueError, match="dt is for liquid='exact' or 'none'"):
        make("kb")(x, dt=x[..., 0])


def polynomials(u, most):
    """e_q and c_q of u_0 ... u_t for q < most, elementary and complete: (most, T)."""
    e, c = np.zeros((2, most, len(u)))
    e_now, c_now = np.eye(most)[0], np.eye(most)[0]
    for t, u_t in enumerate(u):
        e_now = e_now + u_t * np.concatenate([[0], e_now[:-1]])
        for q in range(1, most):  # of the same t
            c_now[q] += u_t * c_now[q - 1]
        e[:, t], c[:, t] = e_now, c_now
    return e, c


@pytest.mark.parametrize("p", [2, 3, 4])
def test_an_order_is_that_many_convolutions(p):
    """y^(p)_t = sum_q (-1)^q e_{p-1-q}(t) (kappa_p * (u c_q))(t - p + 1)."""
    a, b, u = 0.8, 0.3, np.asarray(normal(24), float)
    with jax.enable_x64(True):
        run = functools.partial(scalars, "order", u, a, b, bound="none")
        lower = scalars("none", u, a, b) if p == 2 else run(order=p - 1)
        term = run(order=p) - lower
    kernel = b**p * a ** np.arange(len(u))
    e, c = polynomials(u, p)
    want = np.zeros(len(u))
    for q in range(p):
        convolved = np.convolve(kernel, u * c[q])[: len(u)]
        late = np.concatenate([np.zeros(p - 1), convolved[: len(u) - p + 1]])
        want += (-1) ** q * e[p - 1 - q] * late
    np.testing.assert_allclose(term, want, rtol=0, atol=1e-12)


def test_without_inputs_to_states_it_is_linear():
    """Products have b at least squared: scaled by 1e-3, they are 1e-3 of the rest."""
    with jax.enable_x64(True):
        for b in (1e-3, 1e-6):
            exact, plain = (
                scalars(kind, U8, 0.8, b, bound="none") for kind in ("exact", "none")
            )
            assert np.abs(exact - plain).max() < 10 * b * np.abs(plain).max()


def test_exact_over_steps_of_any_length():
    """Against a loop in which each step has a decay and an input map of its own."""
    with jax.enable_x64(True):
        layer = of_two(LiquidS4, bound="none")
        u, dt = normal(1, 9), jnp.exp(normal(1, 9, seed=2))
        u, dt = u.astype(jnp.float64), dt.astype(jnp.float64)
        log_a, b = (np.asarray(v)[0, :, 0] for v in layer.system(dt))
        c = np.asarray(layer.output_map())[0]
        got = layer(u[..., None], dt=dt)[0]
        one = jnp.ones_like(dt)
        usual = layer(u[..., None], dt=one)[0], layer(u[..., None])[0]
    h, want = np.zeros(2, complex), []
    for t, u_t in enumerate(np.asarray(u)[0]):
        h = (np.exp(log_a[t]) + b[t] * u_t) * h + b[t] * u_t
        want.append(2 * np.sum((c * h).real))
    np.testing.assert_allclose(got[0, :, 0], want, rtol=0, atol=1e-13)
    np.testing.assert_allclose(*usual, rtol=0, atol=1e-14)
