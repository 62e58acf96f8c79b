"""The TPU kernels of `lightning_attention` with a decay for each key channel.

In interpret mode, against the float64 loop. Memory starts as NaN and accesses are
checked for races. The cases and the bounds on the error come from the tests of
`ssm.ops.lightning_attention`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import target
from ssm import ops
from tests.pairwise import mostly_slow, name_of, pairwise
from tests.ssm.ops import test_lightning_attention as of_the_op

GRID = {
    "time": (7, 128, 300),
    "sizes": ((1, 128, 128), (2, 64, 64), (4, 32, 32)),
    "dtype": ("float32", "bfloat16"),
    "decay": ("channel", "bfloat16 channel"),
    "s0": (True, False),
    "reset": (True, False),
}
ROWS = pairwise(GRID)
LARGE = pairwise(GRID | {"time": (1, 129, 1100), "sizes": ((3, 128, 128), (4, 64, 64))})


def row_of(**fields):
    usual = {"implementation": "pallas_tpu", "decay": "channel", "sizes": (2, 64, 64)}
    return of_the_op.row_of(**usual | {"time": 256} | fields)


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("row", mostly_slow(ROWS, *ROWS[:2]), ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row):
    of_the_op.check({"implementation": "pallas_tpu"} | row, batch=1)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("row", LARGE, ids=name_of)
def test_equals_the_loop_on_the_full_grid(row):
    of_the_op.check({"implementation": "pallas_tpu"} | row)


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("dtype", mostly_slow(["float32", "bfloat16"], "float32"))
def test_strong_decays_beside_weak_ones_and_resets_at_the_edges_of_chunks(dtype):
    """From 1 to e^-20 a step and channel, two of three of them within e^-0.01."""
    row = row_of(dtype=dtype)
    case = of_the_op.draw(row, strongest=20.0)
    weak = np.random.default_rng(1).random(case["log_decay"].shape) < 2 / 3
    case["log_decay"] = np.where(weak, case["log_decay"] / 2000, case["log_decay"])
    case["reset"] = np.zeros((2, 256), bool)
    case["reset"][0, [0, 128]] = case["reset"][1, [127, 255]] = True
    of_the_op.check_case(row, case)


def arguments(dtype="float32", **fields):
    case = of_the_op.draw(row_of(dtype=dtype, time=128, **fields))
    return [jnp.asarray(case[n]) for n in ("q", "k", "v", "log_decay", "s0")]


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_decay_of_zero_is_a_reset(dtype):
    q, k, v, log_decay, s0 = arguments(dtype)
    reset = jnp.zeros((2, 128), bool).at[0, 3].set(True).at[1, 90].set(True)
    cut = jnp.where(reset[..., None, None], -jnp.inf, log_decay)

    @jax.jit
    def results(log_decay, reset):
        def run(*arguments):
            return ops.lightning_attention(
                *arguments, s0=s0, reset=reset, implementation="pallas_tpu"
            )

        out, vjp = jax.vjp(run, q, k, v, log_decay)
        return out, vjp(jax.tree.map(jnp.cos, out))

    nowhere = jnp.zeros_like(reset)
    of_cut, of_reset = results(cut, nowhere), results(log_decay, reset)
    jax.tree.map(np.testing.assert_array_equal, of_cut, of_reset)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
def test_second_derivative_is_that_of_the_chunked_form():
    inputs = arguments()

    def norm(inputs, implementation):
        gradients = jax.grad(of_the_op.loss)(inputs, implementation)
        return sum(jnp.sum(g**2) for g in gradients)

    got, want = (
        jax.jit(jax.grad(functools.partial(norm, implementation=name)))(inputs)
        for name in ("pallas_tpu", "chunked")
    )
    for mine, true in zip(got, want, strict=True):
        # Gradients that differ by the round-off of sums of 128 terms, then the same.
        scale = np.max(np.abs(true))
        np.testing.assert_allclose(mine, true, rtol=0, atol=2 * 128 * 1.2e-7 * scale)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
def test_vmap_is_one_by_one():
    stacked = [jnp.stack([x, x[::-1]]) for x in arguments()]
    gradient = jax.grad(functools.partial(of_the_op.loss, implementation="pallas_tpu"))
    got = jax.jit(jax.vmap(gradient))(stacked)
    for i in range(2):
        jax.tree.map(
            lambda g, w, i=i: np.testing.assert_allclose(g[i], w, rtol=1e-6, atol=1e-5),
            got,
            jax.jit(gradient)([x[i] for x in stacked]),
        )


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("check_vma", [False, True])
def test_inside_a_shard_map(check_vma):
    inputs = arguments()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    gradient = jax.grad(functools.partial(of_the_op.loss, implementation="pallas_tpu"))
    rows = jax.P("data")
    sharded = jax.shard_map(
        gradient, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check_vma
    )
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-5),
        jax.jit(sharded)(inputs),
        jax.jit(gradient)(inputs),
    )


def unasked(monkeypatch, sizes, dtype):
    """The program that a TPU takes where nothing is named."""
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    q = jnp.ones((1, 128, *sizes), dtype)
    return str(jax.make_jaxpr(ops.lightning_attention)(q, q, q, q))


def test_a_tpu_takes_the_kernel_unasked(monkeypatch):
    assert "lightning_channel_forward" in unasked(monkeypatch, (2, 64), "bfloat16")


@pytest.mark.parametrize(
    ("sizes", "dtype", "message"),
    [
        ((3, 64), "float32", "it has 3 heads of K = 64 and V = 64"),
        ((1, 256), "float32", "it has 1 heads of K = 256"),
        ((2, 64), "float16", "q, k and v are float16, float16 and float16"),
    ],
)
def test_others_are_refused_or_left_to_the_chunked_form(
    monkeypatch, sizes, dtype, message
):
    assert "pallas" not in unasked(monkeypatch, sizes, dtype)
    q = jnp.ones((1, 128, *sizes), dtype)
    with pytest.raises(NotImplementedError, match=message):
        ops.lightning_attention(q, q, q, q, implementation="pallas_tpu")
