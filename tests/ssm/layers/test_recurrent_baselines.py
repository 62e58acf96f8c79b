"""LSTM, GRU and dense linear RNN against loops written from their equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm import GRU, LSTM, Bidirectional, LinearRNN, initializers
from ssm.blocks import ResidualBlock, S4Block
from ssm.layers import GatedMLP
from ssm.models import Stack
from tests.ssm.filling import wave, with_params

WIDTH, STATE = 5, 3


def lstm(d_model=WIDTH, **options):
    return LSTM(d_model, rngs=nnx.Rngs(0), **options)


def gru(d_model=WIDTH, **options):
    return GRU(d_model, rngs=nnx.Rngs(0), **options)


def linear_rnn(d_model=WIDTH, d_state=STATE, **options):
    return LinearRNN(d_model, d_state, rngs=nnx.Rngs(0), **options)


def sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2 if isinstance(x, np.ndarray) else jax.nn.sigmoid(x)


def of_gate(kernels, gate, width):
    return kernels[..., gate * width : (gate + 1) * width]


# The loops are in NumPy, or for gradients in jax.numpy: `xp`. A step sees all rows.
def lstm_loop(xp, params, x, carry, reset, zoneout_h=0.0, zoneout_c=0.0):
    w, (u, b) = params["cell"]["dense_i"]["kernel"], params["cell"]["dense_h"].values()
    if u.ndim == 1:
        u, b = b, u
    (c, h), width, out = carry, x.shape[-1], []
    for t in range(x.shape[1]):
        keep = 1.0 - reset[:, t, None]
        c, h = c * keep, h * keep

        def gate(place, t=t, h=h):
            w_, u_, b_ = (of_gate(v, place, width) for v in (w, u, b))
            return x[:, t] @ w_ + h @ u_ + b_[None]

        i, f, o = sigmoid(gate(0)), sigmoid(gate(1)), sigmoid(gate(3))
        new_c = f * c + i * xp.tanh(gate(2))
        new_h = o * xp.tanh(new_c)
        c = zoneout_c * c + (1 - zoneout_c) * new_c
        h = zoneout_h * h + (1 - zoneout_h) * new_h
        out.append(h)
    return xp.stack(out, axis=1), (c, h)


def gru_loop(xp, params, x, h, reset, zoneout_h=0.0):
    w, b = (params["cell"]["dense_i"][name] for name in ("kernel", "bias"))
    u, width, out = params["cell"]["dense_h"]["kernel"], x.shape[-1], []
    for t in range(x.shape[1]):
        h = h * (1.0 - reset[:, t, None])
        from_x = [
            x[:, t] @ of_gate(w, g, width) + of_gate(b, g, width)[None]
            for g in range(3)
        ]
        from_h = [h @ of_gate(u, g, width) for g in range(3)]
        r, z = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
        new = z * h + (1 - z) * xp.tanh(from_x[2] + r * from_h[2])
        h = zoneout_h * h + (1 - zoneout_h) * new
        out.append(h)
    return xp.stack(out, axis=1), h


def linear_rnn_loop(xp, params, x, h, reset):
    out = []
    for t in range(x.shape[1]):
        h = h * (1.0 - reset[:, t, None])
        h = h @ params["a"].T + x[:, t] @ params["b"].T
        out.append(h @ params["c"].T + params["d"][None] * x[:, t])
    return xp.stack(out, axis=1), h


LOOPS = {
    "lstm": (lstm, lstm_loop, {}),
    "lstm, zoneout": (lstm, lstm_loop, {"zoneout_h": 0.1, "zoneout_c": 0.4}),
    "gru": (gru, gru_loop, {}),
    "gru, zoneout": (gru, gru_loop, {"zoneout_h": 0.3}),
    "linear_rnn": (linear_rnn, linear_rnn_loop, {}),
}


def close(got, want):
    """Equal to a hundred roundings of float64, relative to the largest entry."""

    def leaf(path, g, w):
        scale = max(float(np.max(np.abs(w), initial=0.0)), 1.0)
        np.testing.assert_allclose(
            g,
            w,
            rtol=0,
            atol=100 * 2**-52 * scale,
            err_msg=jax.tree_util.keystr(path),
        )

    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree_util.tree_map_with_path(leaf, got, want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(("batch", "time", "width"), [(1, 1, 1), (3, 7, 5)])
def test_values_and_gradients_are_those_of_the_loop(name, batch, time, width):
    make, loop, rates = LOOPS[name]
    layer = make(width, param_dtype=jnp.float64, **rates)
    graphdef, state = nnx.split(layer)
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    params = treedef.unflatten([wave(k, *shape) for k, shape in enumerate(leaves)])
    x = wave(7, batch, time, width, size=2.0)
    carry = jax.tree.map(lambda c: wave(8, *c.shape), layer.init_carry(batch))
    reset = np.zeros((batch, time), bool)
    reset[0, time // 2] = reset[-1, -1] = True
    cotangents = jax.tree.map(lambda y: wave(9, *y.shape), (x, carry))

    def of_layer(params, x, carry):
        return nnx.merge(graphdef, params)(x, carry, reset=jnp.asarray(reset))

    def of_loop(params, x, carry):
        return loop(jnp, params, x, carry, reset, **rates)

    def gradients(run):
        def total(*arguments):
            out = run(*arguments)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, out, cotangents))), out

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(params, x, carry)

    got, out = gradients(of_layer)
    close(out, loop(np, params, x, carry, reset, **rates))
    close(got, gradients(of_loop)[0])


@pytest.mark.parametrize("make", [lstm, gru, linear_rnn])
def test_the_program_does_not_grow_with_time(make):
    layer = make()

    def lines(time):
        x = jax.ShapeDtypeStruct((2, time, WIDTH), jnp.float32)
        return str(jax.make_jaxpr(lambda x: layer(x))(x)).count("\n")

    assert lines(8) == lines(800)


@pytest.mark.parametrize("make", [lstm, gru, linear_rnn])
def test_types(make):
    """Products, outputs and parameters in bfloat16, states in float32."""
    layer = make(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    params = nnx.to_pure_dict(nnx.state(layer))
    for name, param in params.items():
        wide = name in layer.recurrence_parameters
        for leaf in jax.tree.leaves(param):
            assert leaf.dtype == (jnp.float32 if wide else jnp.bfloat16), name
    exact = nnx.merge(*with_params(make(), params))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(x):
        y, carry = layer(x)
        return jnp.sum(y.astype(jnp.float32)), (y, carry, exact(x)[0])

    x = jax.random.normal(jax.random.key(0), (2, 9, WIDTH))
    gradient, (y, carry, y32) = run(x)
    assert y.dtype == jnp.bfloat16
    assert all(state.dtype == jnp.float32 for state in jax.tree.leaves(carry))
    # Nine steps of products in bfloat16, each of about 2^-8 of its largest term.
    error = np.max(np.abs(y.astype(jnp.float32) - y32))
    assert error < 9 * 2**-8 * np.max(np.abs(y32))
    assert np.isfinite(gradient).all() and np.any(gradient)


def test_holds_parameters_and_nothing_else():
    for layer in (lstm(zoneout_h=0.1), gru(zoneout_h=0.1), linear_rnn()):
        _, _, rest = nnx.split(layer, nnx.Param, ...)
        assert not jax.tree.leaves(rest)


def test_in_a_shard_map_the_rows_go_apart():
    """The zeros that a carry starts from vary over the devices as the inputs do."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (4, 3, WIDTH))
    rows = jax.P("data")
    layer = gru()
    run = jax.shard_map(lambda x: layer(x)[0], mesh=mesh, in_specs=rows, out_specs=rows)
    np.testing.assert_allclose(jax.jit(run)(x), layer(x)[0], atol=1e-6)


def memories(bias):
    """The steps over which a gate forgets, if it sees its bias alone."""
    return 1 / (1 - np.asarray(jax.nn.sigmoid(bias.astype(jnp.float32)), np.float64))


def test_chrono_biases():
    u = jnp.linspace(0, 1, 1001)
    np.testing.assert_allclose(
        memories(initializers.chrono(u, t_max=300.0)), 2 + 298 * u, rtol=1e-4
    )


def test_chrono_lstm_forgets_over_up_to_so_many_steps():
    n = 4_000
    i, f, g, o = jnp.split(lstm_bias(n, chrono=300.0), 4)
    np.testing.assert_array_equal(i, -f)
    assert not np.any(g) and not np.any(o)
    got = memories(f)
    assert got.min() >= 2 and got.max() <= 300.1
    # Uniform: 5 standard errors of the mean.
    assert abs(got.mean() - 151) < 5 * 298 / np.sqrt(12 * n)
    i, f, g, o = jnp.split(lstm_bias(8), 4)
    assert np.all(f == 1) and not np.any(i) and not np.any(g) and not np.any(o)


def lstm_bias(d_model, **options):
    layer = nnx.eval_shape(lambda: lstm(d_model, **options))
    assert layer.cell.dense_h.bias.shape == (4 * d_model,)
    return jax.jit(lambda: lstm(d_model, **options).cell.dense_h.bias[...])()


def test_chrono_gru_keeps_its_state_by_its_second_gate():
    """And in bfloat16 for as long: its gates are wider."""
    layer = gru(dtype=jnp.bfloat16, chrono=300.0)
    r, z, n = jnp.split(layer.cell.dense_i.bias[...], 3)
    assert not np.any(r) and not np.any(n)
    assert memories(z).min() >= 2 and memories(z).max() <= 300.1
    z = jnp.log(jnp.linspace(50, 900, WIDTH) - 1)
    layer.cell.dense_i.bias[...] = jnp.concatenate([r, z, n])
    for dense in (layer.cell.dense_i, layer.cell.dense_h):
        dense.kernel[...] = jnp.zeros_like(dense.kernel[...])
    _, h = layer(jnp.zeros((1, 100, WIDTH)), jnp.ones((1, WIDTH)))
    # Biases of 4 to 7 are rounded by up to 2^-7 in bfloat16, and 1 - z by that factor.
    np.testing.assert_allclose(
        np.log(h[0]), 100 * np.log1p(-1 / memories(z)), rtol=2**-6
    )


def test_the_dense_matrix_fills_a_disk():
    layer = linear_rnn(16, 200, radius=0.7)
    moduli = np.abs(np.linalg.eigvals(np.asarray(layer.a[...])))
    # Uniform on the disk: half of them within 0.7 / sqrt(2), and the edge at
    # 0.7 (1 + O(1 / sqrt(200))). Independent draws would give shares this close to 1/2
    # in three standard errors; eigenvalues repel each other and are closer.
    assert abs(moduli.max() / 0.7 - 1) < 0.15
    assert abs(np.mean(moduli < 0.7 / np.sqrt(2)) - 0.5) < 0.1
    for matrix in (layer.b[...], layer.c[...]):
        # 3200 entries: five standard errors of a variance are 5 sqrt(2 / 3200).
        assert abs(np.var(matrix) * (16 + 200) / 2 - 1) < 0.125


@pytest.mark.parametrize("place", ["c", "h"])
def test_zoneout_keeps_some_units_if_there_is_a_key(place):
    """Each unit of a state is the old one or the new, and which is drawn anew."""
    rate, batch, time = 0.25, 64, 5
    layer, plain = lstm(**{f"zoneout_{place}": rate}), lstm()
    x = jax.random.normal(jax.random.key(1), (batch, time, WIDTH))
    old = jax.tree.map(
        lambda c: jax.random.normal(jax.random.key(2), c.shape), plain.init_carry(batch)
    )
    new, kept = plain.step(x[:, 0], old)[1], []
    for seed in (0, 1):
        _, carry = layer(x[:, :1], old, key=jax.random.key(seed))
        c, h = (np.asarray(a) == b for a, b in zip(carry, new, strict=True))
        was_kept = ~(c if place == "c" else h)
        np.testing.assert_array_equal(
            np.asarray(carry["ch".index(place)])[was_kept],
            np.asarray(old["ch".index(place)])[was_kept],
        )
        assert (h if place == "c" else c).all()  # the other is not touched
        kept.append(was_kept)
    share = np.mean(kept)
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / (2 * batch * WIDTH))
    assert np.any(kept[0] != kept[1])


def test_zoneout_draws_for_every_step():
    layer = gru(zoneout_h=0.5)
    x = jax.random.normal(jax.random.key(1), (16, 6, WIDTH))
    y, _ = layer(x, key=jax.random.key(0))
    np.testing.assert_array_equal(y, layer(x, key=jax.random.key(0))[0])
    same = np.asarray(y[:, 1:] == y[:, :-1])
    assert 0.3 < same.mean() < 0.7
    assert not (same == same[:, :1]).all()
    np.testing.assert_array_equal(gru()(x, key=jax.random.key(0))[0], gru()(x)[0])


def test_zoneout_begins_documents_from_nothing():
    """A unit that keeps its old value at a first step is zero, not another's."""
    layer = gru(zoneout_h=0.9)
    reset = jnp.zeros((64, 4), bool).at[:, 2].set(True)
    x = jax.random.normal(jax.random.key(1), (64, 4, WIDTH))
    carry = jnp.full((64, WIDTH), 3.0)
    y, _ = layer(x, carry, reset=reset, key=jax.random.key(0))
    assert np.any(y[:, 1] == 3) and not np.any(y[:, 2] == y[:, 1])
    assert 0.8 < np.mean(y[:, 2] == 0) < 1


def block(rngs, kind=S4Block):
    mixer = GRU(WIDTH, zoneout_h=0.5, rngs=rngs)
    if kind is ResidualBlock:
        mlp = GatedMLP(WIDTH, 7, rngs=rngs)
        return ResidualBlock(mixer, mlp, WIDTH, rngs=rngs)
    return S4Block(mixer, WIDTH, rngs=rngs)


@pytest.mark.parametrize("kind", [S4Block, ResidualBlock])
def test_blocks_hand_their_key_on(kind):
    module = block(nnx.Rngs(0), kind)
    x = jax.random.normal(jax.random.key(1), (2, 6, WIDTH))
    one, same, other = (module(x, key=jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other) and np.any(one != module(x)[0])


def test_scanned_layers_draw_as_single_ones():
    x = jax.random.normal(jax.random.key(1), (2, 6, WIDTH))

    def run(**options):
        stack = Stack(block, 3, rngs=nnx.Rngs(0), **options)
        return jax.jit(lambda x: stack(x, key=jax.random.key(4))[0])(x)

    np.testing.assert_allclose(run(), run(scan_layers=True, remat=True), atol=1e-5)


def test_directions_draw_apart():
    layer = gru(zoneout_h=0.5)
    both = Bidirectional(layer, layer)
    one = jax.random.normal(jax.random.key(1), (2, 1, WIDTH))
    y, _ = both(one, key=jax.random.key(0))
    new = layer.step(one[:, 0], layer.init_carry(2), reset=None)[0] * 2  # of the mean
    times = np.asarray(y[:, 0] / new)  # 0, 1 or 2: how many directions are not zero
    assert {0, 1, 2} >= set(np.round(times).ravel()) and np.any(np.round(times) == 1)
    x = jnp.concatenate([one, one], axis=1)
    np.testing.assert_allclose(both(x)[0], both(x[:, ::-1])[0][:, ::-1], atol=1e-6)


X = jnp.ones((2, 3, WIDTH))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lstm(4)(X), r"LSTM: x has shape .* wanted \(B, T, 4\)"),
        (lambda: gru()(X[0]), r"GRU: x has shape \(3, 5\)"),
        (lambda: linear_rnn()(X.astype(int)), "LinearRNN: x has dtype int32"),
        (lambda: lstm()(X, jnp.ones((2, WIDTH))), "LSTM: the carry is real"),
        (lambda: gru()(X, jnp.ones((3, WIDTH))), "GRU: the carry is real"),
        (lambda: linear_rnn()(X, X[:, 0]), r"real\[2, 5\], wanted real\[2, 3\]"),
        (lambda: lstm(chrono=2.0), "chrono=2.0, wanted above 2"),
        (lambda: gru(chrono=-1.0), "chrono=-1.0, wanted above 2"),
        (lambda: lstm(zoneout_c=1.0), "LSTM: zoneout_c=1.0, wanted 0 <= it < 1"),
        (lambda: gru(zoneout_h=-0.1), "GRU: zoneout_h=-0.1, wanted 0 <= it < 1"),
        (lambda: linear_rnn(radius=0), "LinearRNN: radius=0, wanted a positive"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
