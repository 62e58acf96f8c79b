"""The TPU kernels of `rg_lru_scan` in interpret mode, against the float64 loop.

The cases, the bounds on the error and the tests of the op come from its own tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import target
from ssm import ops, reference
from tests.pairwise import affordable, crossed, mostly_slow, name_of, pairwise
from tests.ssm.ops import test_rg_lru_scan as of_the_op

# Blocks end amid the 20 steps and, of 128, amid the 130 channels.
QUICK = pairwise(
    {
        "dtype": ("float32", "bfloat16"),
        "by_rows": (True, False),
        "steps": (16, 512),
        "width": (5, 130),
        "h0": (True, False),
        "reset": (True, False),
    }
)
FULL = crossed(
    of_the_op.SIZES,
    of_the_op.OPTIONS
    | {"dtype": ("float32", "bfloat16")}
    | {"steps": (16, 512), "by_rows": (True, False)},
)


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("row", mostly_slow(QUICK, *QUICK[:5]), ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row, tpu_tiles):
    width = min(row["width"], 128)
    tpu_tiles(steps=row["steps"], by_rows=row["by_rows"], width=width)
    of_the_op.check({"implementation": "pallas_tpu", "time": 20} | row)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu_without_races")
@pytest.mark.parametrize("row", affordable(FULL), ids=name_of)
def test_equals_the_loop_on_the_full_grid(row, tpu_tiles):
    tpu_tiles(steps=row["steps"], by_rows=row["by_rows"])
    of_the_op.check({"implementation": "pallas_tpu"} | row)


@pytest.mark.usefixtures("as_tpu")
def test_less_than_one_tile():
    row = {"time": 7, "width": 3, "dtype": "float32", "h0": True, "reset": True}
    of_the_op.check({"implementation": "pallas_tpu"} | row)


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_gates_stay_finite(dtype):
    """Decays of 1 up to rounding, and far below underflow."""
    a_param = jnp.array([-20.0, -60.0, 20.0, 50.0])
    r = jnp.broadcast_to(jnp.array([-5.0, -30.0, 30.0, 90.0]), (1, 40, 4)).astype(dtype)
    x = jnp.ones_like(r)
    h, vjp = jax.vjp(lambda *v: ops.rg_lru_scan(*v)[0], x, r, x, a_param)
    want, _ = reference.rg_lru_scan(*(np.asarray(v, float) for v in (x, r, x)), a_param)
    # Rounding of h, 40 steps of it, and 1e-7 absolute in the sigmoid of a bfloat16:
    # that of -5 is 0.007.
    rtol = 2e-5 if dtype == jnp.float32 else 0.005
    np.testing.assert_allclose(h.astype(jnp.float32), want, rtol=rtol, atol=1e-7)
    for gradient in vjp(jnp.ones_like(h)):
        assert np.all(np.isfinite(gradient.astype(jnp.float32)))


def gradients(implementation, *arguments):
    def run(*arguments):
        return of_the_op.loss(implementation, *arguments)

    return jax.jit(jax.grad(run, range(5)))(*arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
def test_second_derivative_is_that_of_the_loop():
    arguments = of_the_op.inputs(time=5)

    def norm(implementation):
        def of(arguments):
            found = gradients(implementation, *arguments)
            return sum(jnp.sum(g**2) for g in found)

        return jax.jit(jax.grad(of))(arguments)

    for mine, true in zip(norm("pallas_tpu"), norm("loop"), strict=True):
        # Four sweeps of 5 steps each, in float32, of products of up to eight factors.
        scale = np.max(np.abs(true))
        np.testing.assert_allclose(mine, true, rtol=0, atol=200 * 1.2e-7 * scale)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("mapped", [(0, 0, 0, None, 0), (0, None, None, None, None)])
def test_vmap_is_one_by_one(mapped):
    """Gradients of the parameters that all have in common come apart."""
    arguments = of_the_op.inputs()
    stacked = tuple(
        v if axis is None else jnp.stack([v, v / 2])
        for v, axis in zip(arguments, mapped, strict=True)
    )

    def run(*arguments):
        return gradients("pallas_tpu", *arguments)

    got = jax.vmap(run, mapped)(*stacked)
    for k in range(2):
        one = (
            v if axis is None else v[k] for v, axis in zip(stacked, mapped, strict=True)
        )
        of_the_op.same(jax.tree.map(lambda g, k=k: g[k], got), run(*one))


@pytest.mark.usefixtures("as_tpu")
def test_inside_a_shard_map():
    """A parameter that all shards share receives the sum of their gradients."""
    arguments = of_the_op.inputs()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def of(implementation):
        def run(x, r, i, a_param, h0):
            return ops.rg_lru_scan(
                x, r, i, a_param, h0=h0, implementation=implementation
            )

        sharded = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(split, split, split, whole, split),
            out_specs=(split, split),
        )

        def loss(*arguments):
            h, last = sharded(*arguments)
            return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)

        return jax.jit(jax.grad(loss, range(5)))(*arguments)

    of_the_op.same(of("pallas_tpu"), of("scan"))


def test_a_tpu_takes_the_kernel_unasked(monkeypatch):
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    *arguments, _ = of_the_op.inputs()
    program = jax.make_jaxpr(lambda *v: ops.rg_lru_scan(*v))(*arguments)
    assert "rg_lru_forward" in str(program)


@pytest.mark.usefixtures("x64")
def test_float64_is_refused_or_left_to_others(monkeypatch):
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    *arguments, _ = of_the_op.inputs(dtype=jnp.float64)
    with pytest.raises(NotImplementedError, match="x is float64, wanted float32"):
        ops.rg_lru_scan(*arguments, implementation="pallas_tpu")
    program = jax.make_jaxpr(lambda *v: ops.rg_lru_scan(*v))(*arguments)
    assert "pallas" not in str(program)
