"""Attention: against a direct formula, in blocks, at the end of its carry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssm
from ssm.layers import attention as attention_module
from ssm.layers.rope import rotate
from tests.pairwise import mostly_slow
from tests.ssm import law

jit = functools.partial(jax.jit, compiler_options=law.QUICK_COMPILE)
WIDTH, HEADS, HEAD = 8, 4, 4


def make(window=None, **options):
    options = {"head_dim": HEAD, "rngs": nnx.Rngs(0)} | options
    if window is None:
        return ssm.Attention(WIDTH, HEADS, **options)
    return ssm.LocalAttention(WIDTH, HEADS, window=window, **options)


def inputs(time, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, time, WIDTH))


def turned(z, places, fraction, theta):
    """Pairs of channels (S, N, H) as complex numbers, turned."""
    half = int(fraction * HEAD) // 2
    angles = places[:, None, None] * theta ** (-np.arange(half) / half)
    pairs = (z[..., :half] + 1j * z[..., half : 2 * half]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag, z[..., 2 * half :]], axis=-1)


def formula(layer, x, reset, window=None):
    """Query by query, in float64."""
    kernels = {
        name: np.asarray(getattr(layer, name).kernel[...], np.float64)
        for name in ("query", "key", "value", "out")
    }
    x = np.asarray(x, np.float64)
    reset = np.asarray(reset) if reset is not None else np.zeros(x.shape[:2], bool)
    y = np.zeros_like(x)
    for row in range(len(x)):
        documents = np.cumsum(reset[row])
        for t in range(x.shape[1]):
            sees = np.flatnonzero(documents == documents[t])
            first = sees[0]
            if layer.causal:
                sees = sees[sees <= t]
            if window is not None:
                sees = sees[sees > t - window]

            def heads(name, at, first=first, row=row):
                z = (x[row, at] @ kernels[name]).reshape(len(at), -1, HEAD)
                if name != "value" and layer.positional == "rope":
                    z = turned(z, at - first, layer.rope_fraction, layer.rope_theta)
                return np.repeat(z, HEADS // z.shape[1], axis=1)

            scores = np.einsum(
                "nh,snh->ns", heads("query", np.array([t]))[0], heads("key", sees)
            )
            weights = np.exp(scores / HEAD**0.5)
            weights /= weights.sum(1, keepdims=True)
            out = np.einsum("ns,snh->nh", weights, heads("value", sees))
            y[row, t] = out.reshape(-1) @ kernels["out"]
    return y


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"n_kv_heads": 2, "positional": "none"},
        {"window": 3},
        {"window": 5, "n_kv_heads": 2, "rope_fraction": 1.0},
        {"window": 20, "n_kv_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("smallest_block", [1, 128])
def test_formula(options, packed, smallest_block, monkeypatch):
    monkeypatch.setattr(attention_module, "_SMALLEST_BLOCK", smallest_block)
    layer, x = make(**options), inputs(11)
    reset = np.zeros((2, 11), bool)
    reset[0, [2, 7, 8]] = reset[1, 0] = True
    reset = jnp.asarray(reset) if packed else None
    y, _ = jit(lambda x: layer(x, reset=reset))(x)
    want = formula(layer, x, reset, options.get("window"))
    # Some tens of float32 roundings of numbers of order one.
    np.testing.assert_allclose(y, want, atol=50 * 2**-23 * np.abs(want).max())


@pytest.mark.parametrize("window", mostly_slow([1, 3, 4], 3))
def test_law_in_blocks(window, monkeypatch):
    """Chunks of many windows, of less than one, and of one step."""
    monkeypatch.setattr(attention_module, "_SMALLEST_BLOCK", 1)
    law.check_chunks_and_steps(make(window), inputs(12), 100 * 2**-23)
    law.check_packing(make(window), inputs(12), 100 * 2**-23)


@pytest.mark.parametrize("window", [3, 200])
def test_memory_is_linear_in_time(window):
    layer = make(window, n_kv_heads=1)

    def largest(time):
        jaxpr = jax.make_jaxpr(lambda x: layer(x)[0])(jnp.ones((1, time, WIDTH)))
        return max(sizes(jaxpr.jaxpr))

    assert largest(4096) <= 2 * largest(2048)  # of all, (T, T) would have 4 times


def sizes(jaxpr):
    """The sizes of all arrays in a program, those of its functions included."""
    for equation in jaxpr.eqns:
        yield from (out.aval.size for out in equation.outvars)
        for sub in jax.tree.leaves(list(equation.params.values())):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                yield from sizes(sub)


def test_left_padding_leaves_no_trace():
    """Neither in the outputs after the first real step, nor in the carry."""
    x = inputs(9)
    reset = jnp.zeros((2, 9), bool).at[0, 4].set(True).at[1, 0].set(True)
    for layer in (make(3), make()):
        carry = layer.init_carry(2, max_length=12)
        run = jit(lambda x, carry, reset, layer=layer: layer(x, carry, reset=reset))
        y, carry = run(x, carry, reset)
        alone = layer.init_carry(1, max_length=12)
        want, after = jit(layer)(x[:1, 4:], alone)
        np.testing.assert_allclose(y[:1, 4:], want, atol=1e-6)
        for name, value in after.items():
            np.testing.assert_allclose(carry[name][:1], value, atol=1e-6)


def test_a_full_carry_is_an_error_or_nan():
    layer, x = make(), inputs(6)
    _, carry = jit(layer)(x[:, :4], layer.init_carry(2, max_length=5))
    _, full = jit(layer.step)(x[:, 4], carry)
    for call in (
        lambda: layer.step(x[:, 5], full),
        lambda: layer(x[:, 4:], carry),
        lambda: layer(x[:, 4:], jit(layer)(x[:, :4])[1]),
    ):
        with pytest.raises(ValueError, match=r"steps, and its carry room for \d: give"):
            call()
    y, _ = jit(layer)(x[:, 4:], carry)
    assert np.isfinite(y[:, 0]).all() and np.isnan(y[:, 1]).all()
    y, _ = jit(layer.step)(x[:, 5], full)
    assert np.isnan(y).all()
    # A new document has all the room again.
    starts = jnp.zeros((2, 2), bool).at[:, 0].set(True)
    y, _ = jit(lambda x, carry: layer(x, carry, reset=starts))(x[:, 4:], full)
    assert np.isfinite(y).all()


def test_worked_rotation():
    x = jnp.arange(1.0, 9)[None, None, None]
    for position, want in (
        (1, [-1.9841106, 1.9599006, 2.4623778, 4.0197997, 5, 6, 7, 8]),
        (3, [-1.4133525, 1.8791181, -2.8288574, 4.0581913, 5, 6, 7, 8]),
    ):
        got = rotate(x, jnp.array([[position]]), fraction=0.5, theta=10_000.0)
        np.testing.assert_allclose(got[0, 0, 0], want, atol=1e-6)


def test_types():
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    for layer in (make(3, **types), make(**types)):
        y, carry = jit(layer)(inputs(5))
        assert y.dtype == carry["keys"].dtype == carry["values"].dtype == jnp.bfloat16
        exact = type(layer)(
            WIDTH,
            HEADS,
            head_dim=HEAD,
            rngs=nnx.Rngs(0),
            **({"window": 3} if layer.window else {}),
        )
        nnx.update(exact, jax.tree.map(lambda p: p.astype("f4"), nnx.state(layer)))
        want, _ = jit(exact)(inputs(5))
        # Inputs, projections, probabilities and outputs are rounded once each.
        error = np.abs(y.astype(jnp.float32) - want)
        assert error.max() < 8 * 2**-8 * np.abs(want).max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make()(jnp.ones((2, 3, 5))), r"x has shape .* wanted \(B, T, 8\)"),
        (lambda: make(head_dim=None, n_kv_heads=3), "n_kv_heads=3, wanted a divisor"),
        (
            lambda: ssm.Attention(9, 4, rngs=nnx.Rngs(0)),
            "n_heads=4 does not divide d_model=9",
        ),
        (lambda: make(positional="alibi"), "'alibi' is unknown, wanted 'rope' or"),
        (lambda: make(0), "window=0, wanted at least 1"),
        (lambda: make(3, head_dim=6)(inputs(2)), "is 3, wanted an even number"),
        (lambda: make().init_carry(2), r"max_length=\.\.\.\), the most steps"),
        (lambda: make(causal=False)(inputs(2), {}), "no carry"),
        (lambda: make(causal=False).init_carry(2, max_length=3), "no carry"),
        (
            lambda: make()(inputs(2), reset=jnp.zeros((2, 3), bool)),
            r"reset has shape \(2, 3\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
