"""The TPU kernels of `linear_scan` in interpret mode, against the float64 loop.

Memory starts as NaN and accesses are checked for races. The cases, the bounds on the
error and the tests of the op come from the tests of `ssm.ops.linear_scan`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import linear_scan_tpu, scan_tiles_tpu, target
from ssm import ops, reference
from tests.pairwise import affordable, mostly_slow, name_of, pairwise
from tests.ssm.ops import test_linear_scan as of_the_op

KINDS = (  # of x, and of the decay
    ("float32", "a"),
    ("bfloat16", "log_a"),
    ("complex64", "a"),
    ("complex64", "constant a"),
    ("complex64", "real a"),
    ("float32", "constant log_a"),
)
# Blocks end amid the 20 steps and, of 128, amid the 130 channels.
QUICK = pairwise(
    {
        "kind": KINDS,
        "by_rows": (True, False),
        "steps": (16, 512),
        "width": (5, 130),
        "h0": (True, False),
        "reset": (True, False),
        "reverse": (True, False),
    }
)
FULL = of_the_op.full_grid(
    of_the_op.KINDS, steps=(16, 512), by_rows=(True, False), batch=(1, 2)
)


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("row", mostly_slow(QUICK, *QUICK[:8]), ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row, tpu_tiles):
    width = min(row["width"], 128)
    tpu_tiles(steps=row["steps"], by_rows=row["by_rows"], width=width)
    dtype, decay = row["kind"]
    case = {"implementation": "pallas_tpu", "time": 20, "dtype": dtype, "decay": decay}
    of_the_op.check(case | row)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu_without_races")
@pytest.mark.parametrize("row", affordable(FULL), ids=name_of)
def test_equals_the_loop_on_the_full_grid(row, tpu_tiles):
    tpu_tiles(steps=row["steps"], by_rows=row["by_rows"])
    of_the_op.check({"implementation": "pallas_tpu"} | row, batch=row["batch"])


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("time", [1, 7])
def test_less_than_one_tile(time):
    x, a, h0 = of_the_op.inputs(time=time)

    def run(x, a, h0):
        (h,), (last,) = linear_scan_tpu.linear_scan((x,), (a,), (h0,))
        return h, last

    out, vjp = jax.vjp(run, x, a, h0)
    d_h, d_last = (jnp.cos(v) for v in out)
    want = reference.linear_scan(x, a, h0=h0)
    want += reference.linear_scan_vjp(d_h, d_last, x, a, h0=h0)
    for mine, true in zip((*out, *vjp((d_h, d_last))), want, strict=True):
        # A product and a sum for each step there and back, magnitudes below 10.
        np.testing.assert_allclose(mine, true, rtol=0, atol=2 * (time + 1) * 2e-6)


def second_derivative(implementation, x, decay, h0, *, log):
    """The gradient of a function of the gradient of the op."""
    reset = jnp.zeros(x.shape[:2], bool).at[0, 2].set(True)

    def loss(x, decay, h0):
        name = "log_a" if log else "a"
        h, last = ops.linear_scan(
            x, **{name: decay}, h0=h0, reset=reset, implementation=implementation
        )
        return jnp.sum(jnp.abs(h) ** 2 * jnp.real(h)) + jnp.sum(jnp.abs(last) ** 4)

    def norm(arguments):
        gradients = jax.grad(loss, (0, 1, 2))(*arguments)
        return sum(jnp.sum(jnp.abs(g) ** 2) for g in gradients)

    return jax.jit(jax.grad(norm))((x, decay, h0))


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize(
    ("is_complex", "constant", "log"),
    [
        (False, False, True),
        pytest.param(True, False, False, marks=pytest.mark.slow),
        pytest.param(True, True, False, marks=pytest.mark.slow),
        pytest.param(False, True, True, marks=pytest.mark.slow),
    ],
)
def test_second_derivative_is_that_of_the_loop(is_complex, constant, log):
    x, decay, h0 = of_the_op.inputs(time=5)
    if is_complex:
        x, decay, h0 = (jax.lax.complex(v, v[::-1] / 2) for v in (x, decay, h0))
    decay = decay[0, 0] if constant else decay
    decay = jnp.log(decay) if log else decay
    got, want = (
        second_derivative(name, x, decay, h0, log=log)
        for name in ("pallas_tpu", "loop")
    )
    for mine, true in zip(got, want, strict=True):
        # Four sweeps of 5 steps each, in float32, of products of up to six factors.
        scale = np.max(np.abs(true))
        np.testing.assert_allclose(mine, true, rtol=0, atol=100 * 1.2e-7 * scale)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("constant", [False, True])
def test_vmap_is_one_by_one(constant):
    x, a, h0 = of_the_op.inputs(batch=6)
    x, h0 = x.reshape(3, 2, *x.shape[1:]), h0.reshape(3, 2, -1)
    a = a[0, 0] if constant else a[:2]

    def gradients(x, h0):
        def loss(x, a, h0):
            h, last = ops.linear_scan(x, a, h0=h0, implementation="pallas_tpu")
            return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)

        return jax.grad(loss, (0, 1, 2))(x, a, h0)

    got = jax.vmap(gradients)(x, h0)
    for i in range(3):
        jax.tree.map(
            lambda g, w, i=i: np.testing.assert_allclose(g[i], w, rtol=1e-6, atol=1e-6),
            got,
            gradients(x[i], h0[i]),
        )


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("check_vma", [False, True])
def test_inside_a_shard_map(check_vma):
    """A decay that all shards have in common receives the sum of their gradients."""
    x, a, h0 = of_the_op.inputs()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def gradients(implementation):
        def run(x, a, h0):
            return ops.linear_scan(x, a, h0=h0, implementation=implementation)

        sharded = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(split, whole, split),
            out_specs=(split, split),
            check_vma=check_vma,
        )

        def loss(x, a, h0):
            h, last = sharded(x, a, h0)
            return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)

        return jax.jit(jax.grad(loss, (0, 1, 2)))(x, a[0, 0], h0)

    jax.tree.map(
        # The order of the sum over batch and time, 18 terms below 10.
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=18 * 2e-6),
        gradients("pallas_tpu"),
        gradients("scan"),
    )


@pytest.mark.usefixtures("as_tpu")
def test_extreme_decays_stay_finite():
    x = jnp.ones((1, 40, 4))
    log_a = jnp.broadcast_to(jnp.array([0.0, -80.0, -1e30, -jnp.inf]), x.shape)
    h, vjp = jax.vjp(lambda x, log_a: ops.linear_scan(x, log_a=log_a)[0], x, log_a)
    np.testing.assert_allclose(h[0, -1], [40.0, 1.0, 1.0, 1.0])
    for gradient in vjp(jnp.ones_like(h)):
        assert np.all(np.isfinite(gradient))


def test_a_tpu_takes_the_kernel_unasked(monkeypatch):
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    x, a, _ = of_the_op.inputs()
    assert "linear_scan_forward" in str(
        jax.make_jaxpr(lambda x, a: ops.linear_scan(x, a))(x, a)
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float16", "float64", "complex128"])
def test_other_dtypes_are_refused_or_left_to_others(monkeypatch, dtype):
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    x = jnp.ones((1, 4, 2), dtype)
    log_a = jnp.zeros_like(x)
    with pytest.raises(NotImplementedError, match=f"x is float{dtype[-2:]}|x is float"):
        ops.linear_scan(x, log_a=log_a, implementation="pallas_tpu")
    assert "pallas" not in str(jax.make_jaxpr(lambda x: ops.linear_scan(x, log_a=x))(x))


def test_refuses_where_there_is_no_tpu():
    x = jnp.ones((1, 4, 2))
    with pytest.raises(NotImplementedError, match="it is a kernel for TPU"):
        ops.linear_scan(x, x, implementation="pallas_tpu")


@pytest.mark.parametrize("device_kind", ["", *scan_tiles_tpu.LIMITS])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 100, 130), (8, 4096, 1500), (64, 65536, 8192)]
)
@pytest.mark.parametrize("size", [6, 40])
def test_tiles_fit(device_kind, shape, size):
    limits = scan_tiles_tpu.LIMITS.get(device_kind, scan_tiles_tpu.Limits())
    tiles = linear_scan_tpu.choose_tiles(shape, size, device_kind)
    assert shape[0] % tiles.chains == 0
    assert tiles.width == shape[2] or tiles.width % 128 == 0
    lanes = -(-tiles.width // 128) * 128
    assert 2 * tiles.chains * tiles.steps * lanes * size <= limits.buffers
    assert tiles.steps % 16 == 0
