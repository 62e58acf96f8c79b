"""`fft_conv` against the sum over its taps, in value and in every gradient."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from ssm import ops, reference
from tests.pairwise import mostly_slow, pairwise

GRID = {
    "time": (1, 2, 7, 64, 65, 257),
    "width": (1, 5, 19),  # the last one in parts that overlap
    "taps": ("one", "some", "all"),
    "bidirectional": (False, True),
    "dtype": ("float32", "bfloat16", "complex64", "float64"),
}
BATCH = 3


def draw(row):
    """u, a kernel, and a cotangent of y."""
    rng = np.random.default_rng(0)
    time, width, dtype = row["time"], row["width"], row["dtype"]
    taps = {"one": 1, "some": (time + 2) // 3, "all": time}[row["taps"]]

    def normal(*shape):
        value = rng.normal(size=shape)
        if dtype == "complex64":
            value = value + 1j * rng.normal(size=shape)
        return value.astype(jnp.dtype(dtype))

    directions = (2,) if row["bidirectional"] else ()
    shape = BATCH, time, width
    return normal(*shape), normal(*directions, width, taps), normal(*shape)


def tap_by_tap(u, kernel, bidirectional):
    """The same sum in jax, to be differentiated."""
    time = u.shape[1]
    after, before = kernel if bidirectional else (kernel, jnp.zeros_like(kernel))
    y = jnp.zeros_like(u)
    for j in range(kernel.shape[-1]):
        y = y.at[:, j:].add(after[None, None, :, j] * u[:, : time - j])
        y = y.at[:, : time - j - 1].add(before[None, None, :, j] * u[:, j + 1 :])
    return y


def loop_vjp(u, kernel, d_y, bidirectional):
    """The cotangents of u and kernel, tap by tap, in jax's convention."""
    u, kernel, d_y = (np.asarray(v, complex) for v in (u, kernel, d_y))
    time = u.shape[1]
    d_u, d_kernel = np.zeros_like(u), np.zeros_like(kernel)
    after, before = kernel if bidirectional else (kernel, np.zeros_like(kernel))
    d_after, d_before = d_kernel if bidirectional else (d_kernel, np.zeros_like(kernel))
    for j in range(kernel.shape[-1]):
        d_u[:, : time - j] += after[:, j] * d_y[:, j:]
        d_after[:, j] = np.sum(d_y[:, j:] * u[:, : time - j], axis=(0, 1))
        d_u[:, j + 1 :] += before[:, j] * d_y[:, : time - j - 1]
        d_before[:, j] = np.sum(d_y[:, : time - j - 1] * u[:, j + 1 :], axis=(0, 1))
    return d_u, d_kernel


def norm(array, *axes):
    return np.sqrt(np.sum(np.abs(array) ** 2, axis=axes, keepdims=True))


def check(row):
    u, kernel, d_y = draw(row)
    both, dtype = row["bidirectional"], jnp.dtype(row["dtype"])
    want = reference.fft_conv(u, kernel, bidirectional=both)
    wanted = want, *loop_vjp(u, kernel, d_y, both)
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        arguments = [jnp.asarray(v) for v in (u, kernel)]

        @jax.jit
        def run(u, kernel, d_y):
            y, pull = jax.vjp(
                lambda u, k: ops.fft_conv(u, k, bidirectional=both), u, kernel
            )
            return y, *pull(d_y)

        got = run(*arguments, jnp.asarray(d_y))
    # Three transforms of at most 600 steps, whose error is a few log2(600) roundings of
    # the root mean square: a product of the norms of what is convolved. What is stored
    # in bfloat16 is off by one rounding more.
    eps = np.finfo(np.float32 if dtype == jnp.bfloat16 else dtype).eps
    rounding = float(jnp.finfo(jnp.bfloat16).eps) if dtype == jnp.bfloat16 else 0.0
    u, kernel, d_y = (np.abs(np.asarray(v, complex)) for v in (u, kernel, d_y))
    taps = np.sqrt(np.sum(kernel**2, axis=(0, 2) if both else 1))
    scales = norm(u, 1) * taps, norm(d_y, 1) * taps
    sums = np.sum(norm(u, 1) * norm(d_y, 1), axis=(0, 1))[:, None]
    for name, value, target, scale in zip(
        ("y", "u", "kernel"), got, wanted, (*scales, sums), strict=True
    ):
        assert value.dtype == dtype, name
        error = np.abs(np.asarray(value, complex) - target)
        limit = 4 * np.log2(600) * eps * scale + rounding * np.abs(target)
        assert np.all(error <= limit), (row, name, np.max(error / limit))


@pytest.mark.parametrize("row", pairwise(GRID), ids=str)
def test_equals_the_sum_over_taps(row):
    check(row)


def test_worked_example():
    u = jnp.array([1, -0.5, 2, 0.25])[None, :, None]
    forward, backward = jnp.array([[[1, 0.5, 0.25]], [[2, -1, 4.0]]])
    run = jax.jit(ops.fft_conv, static_argnames="bidirectional")
    # y_2 = 1 * 2 + 0.5 * -0.5 + 0.25 * 1
    np.testing.assert_allclose(
        run(u, forward)[0, :, 0], [1, 0, 2, 1.125], rtol=0, atol=1e-6
    )
    y = run(u, jnp.stack([forward, backward]), bidirectional=True)
    # What comes after u_0: 2 * -0.5 - 1 * 2 + 4 * 0.25
    np.testing.assert_allclose(
        y[0, :, 0], [1 - 2, 0 + 3.75, 2 + 0.5, 1.125], rtol=0, atol=1e-6
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("bidirectional", mostly_slow([False, True], True))
def test_gradients_are_those_of_the_sum_once_and_twice(dtype, bidirectional):
    row = {"time": 6, "width": 9, "taps": "some", "bidirectional": bidirectional}
    drawn = "complex64" if dtype == "complex128" else "float64"
    u, kernel, d_y = (jnp.asarray(v, dtype) for v in draw(row | {"dtype": drawn}))

    @jax.jit
    def gradients(u, kernel, d_y):
        def once_and_twice(convolve):
            def loss(u, kernel):
                y = convolve(u, kernel, bidirectional=bidirectional)
                return jnp.sum(jnp.real(jnp.sin(y) * d_y))

            def squares(u, kernel):
                leaves = jax.grad(loss, (0, 1))(u, kernel)
                return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in leaves)

            return jax.grad(loss, (0, 1))(u, kernel), jax.grad(squares, (0, 1))(
                u, kernel
            )

        def direct(u, kernel, bidirectional):
            return tap_by_tap(u, kernel, bidirectional)

        return once_and_twice(ops.fft_conv), once_and_twice(direct)

    got, want = gradients(u, kernel, d_y)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = float(np.max(np.abs(theirs)))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-13 * scale)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_twice_differentiable_by_differences():
    u, kernel, _ = draw(dict(zip(GRID, (5, 2, "all", True, "float64"), strict=True)))
    run = jax.jit(lambda u, k: jnp.sin(ops.fft_conv(u, k, bidirectional=True)))
    check_grads(run, (jnp.asarray(u), jnp.asarray(kernel)), order=2, modes=("rev",))


def test_a_complex_u_takes_a_real_kernel():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2, 9, 3)) + 1j * rng.normal(size=(2, 9, 3))
    kernel = rng.normal(size=(3, 4))
    u, kernel = jnp.asarray(u, jnp.complex64), jnp.asarray(kernel, jnp.float32)
    y, pull = jax.vjp(ops.fft_conv, u, kernel)
    want = reference.fft_conv(u, kernel)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert [leaf.dtype for leaf in pull(y)] == [jnp.complex64, jnp.float32]


def test_under_vmap():
    u = jax.random.normal(jax.random.key(0), (4, 2, 9, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 3, 9))
    got = jax.jit(jax.vmap(ops.fft_conv))(u, kernel)
    want = [reference.fft_conv(*pair) for pair in zip(u, kernel, strict=True)]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_empty_sequence_and_empty_kernel():
    assert ops.fft_conv(jnp.ones((2, 0, 5)), jnp.ones((5, 0))).shape == (2, 0, 5)
    np.testing.assert_array_equal(
        ops.fft_conv(jnp.ones((2, 3, 5)), jnp.ones((5, 0))), jnp.zeros((2, 3, 5))
    )


def test_keeps_its_arguments_for_the_gradient_and_nothing_more():
    u, kernel = jnp.ones((2, 50, 16)), jnp.ones((16, 50))
    _, pull = jax.vjp(ops.fft_conv, u, kernel)
    kept = [leaf.shape for leaf in jax.tree.leaves(pull) if leaf.size > 16]
    assert sorted(kept) == [(1, 16, 50), (2, 50, 16)]


@pytest.mark.parametrize("shape", [(8, 256, 64), (1, 2048, 64)])
def test_memory_beyond_the_arguments(shape):
    """Without parts, spectra of all channels would be eight times u."""
    batch, time, width = shape
    u = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct((width, time), jnp.float32)

    def run(u, kernel, d_y):
        y, pull = jax.vjp(ops.fft_conv, u, kernel)
        return y, pull(d_y)

    compiled = jax.jit(run).lower(u, kernel, u).compile()
    arguments = 4 * width * time * (batch + 1)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * arguments


def mesh_of(sizes, kind):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (kind,) * len(sizes))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "sizes", [{"data": 2, "tensor": 2, "time": 2}, {"time": 8}, {"data": 4, "fsdp": 2}]
)
def test_ambient_mesh(sizes, kind):
    """Of the second one 8 devices and 4 channels: they all do the same work."""
    rng = np.random.default_rng(0)
    u, kernel = rng.normal(size=(8, 16, 4)), rng.normal(size=(4, 16))

    def run(u, kernel):
        y, pull = jax.vjp(ops.fft_conv, u, kernel)
        return y, pull(jnp.cos(y))

    want = jax.jit(run)(u, kernel)
    mesh = mesh_of(sizes, kind)
    with jax.set_mesh(mesh):
        names = (name if name in sizes else None for name in ("data", "time", "tensor"))
        got = jax.jit(run)(jax.device_put(u, NamedSharding(mesh, P(*names))), kernel)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


def test_a_mesh_exchanges_time_for_channels_and_gathers_nothing():
    mesh = mesh_of({"data": 2, "time": 4}, AxisType.Auto)
    with jax.set_mesh(mesh):
        u = jax.ShapeDtypeStruct(
            (4, 32, 16), jnp.float32, sharding=NamedSharding(mesh, P("data", "time"))
        )
        kernel = jax.ShapeDtypeStruct((16, 32), jnp.float32)
        program = jax.jit(ops.fft_conv).lower(u, kernel).compile().as_text()
    assert "all-to-all" in program and "all-gather" not in program


@pytest.mark.parametrize(
    ("u", "kernel", "both", "message"),
    [
        ((3, 4), (4, 3), False, r"u has shape \(3, 4\), wanted three axes = \(B, T, D"),
        ((2, 3, 4), (5, 3), False, r"kernel .* wanted \(4, 3\) = \(D, L\)"),
        ((2, 3, 4), (3,), False, r"kernel has shape \(3,\)"),
        ((2, 3, 4), (4, 3), True, r"kernel .* wanted \(2, 4, 3\) = \(2, D, L\) when"),
        ((2, 3, 4), (2, 4, 3), False, r"kernel has shape \(2, 4, 3\), wanted \(4, 3\)"),
        ((2, 3, 4), (4, 5), False, r"kernel has 5 taps, wanted L <= T = 3: cut it"),
    ],
)
def test_wrong_shapes_are_named(u, kernel, both, message):
    with pytest.raises(ValueError, match=message):
        ops.fft_conv(jnp.ones(u), jnp.ones(kernel), bidirectional=both)


def test_wrong_types_are_named():
    u, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 3))
    with pytest.raises(ValueError, match="u has dtype int32"):
        ops.fft_conv(u.astype(int), kernel)
    with pytest.raises(ValueError, match="kernel has dtype int32"):
        ops.fft_conv(u, kernel.astype(int))
    with pytest.raises(ValueError, match="complex64 while u is float32.* made complex"):
        ops.fft_conv(u, kernel.astype(jnp.complex64))
