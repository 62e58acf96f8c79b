"""The TPU kernels of `lightning_attention` in interpret mode, against the float64 loop.

Memory starts as NaN and accesses are checked for races. The cases and the bounds on the
error come from the tests of `ssm.ops.lightning_attention`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import lightning_tiles_tpu, target
from ssm import ops
from tests.pairwise import mostly_slow, name_of, pairwise
from tests.ssm.ops import test_lightning_attention as of_the_op

GRID = {
    "time": (7, 128, 300, 640),
    "sizes": ((1, 128, 128), (2, 64, 64), (4, 32, 32), (3, 128, 128)),
    "dtype": ("float32", "bfloat16"),
    "decay": ("head", "step"),
    "s0": (True, False),
    "reset": (True, False),
}
QUICK = [
    row
    for row in pairwise(GRID | {"time": (7, 256, 300), "sizes": GRID["sizes"][:2]})
    if row["time"] < 300 or row["sizes"][0] == 2
]
FULL = pairwise(GRID | {"time": (1, 129, 300, 1100)})


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("row", mostly_slow(QUICK, *QUICK[:6]), ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row):
    of_the_op.check({"implementation": "pallas_tpu"} | row)


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("row", FULL, ids=name_of)
def test_equals_the_loop_on_the_full_grid(row):
    of_the_op.check({"implementation": "pallas_tpu"} | row, batch=1)


@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strong_decays_beside_weak_ones(dtype):
    row = {"implementation": "pallas_tpu", "time": 256, "sizes": (2, 64, 64)}
    row |= {"dtype": dtype, "decay": "step", "s0": True, "reset": False}
    of_the_op.check(row, strongest=20.0)


def arguments(heads=2, rank=3, batch=2, time=128):
    row = of_the_op.row_of(time=time, sizes=(heads, 64, 64))
    case = of_the_op.draw(row | {"decay": of_the_op.DECAYS[rank]}, batch=batch)
    return [jnp.asarray(case[n]) for n in ("q", "k", "v", "log_decay", "s0")]


@pytest.mark.usefixtures("as_tpu")
def test_a_decay_of_zero_is_a_reset():
    q, k, v, log_decay, s0 = arguments()
    reset = jnp.zeros((2, 128), bool).at[0, 3].set(True).at[1, 90].set(True)
    cut = jnp.where(reset[..., None], -jnp.inf, log_decay)

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
@pytest.mark.parametrize("rank", [1, 3])
def test_second_derivative_is_that_of_the_chunked_form(rank):
    inputs = arguments(rank=rank)

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
@pytest.mark.parametrize("rank", [1, 3])
def test_vmap_is_one_by_one(rank):
    inputs = arguments(rank=rank, batch=4)
    axes = [None if rank == 1 and i == 3 else 0 for i in range(5)]
    stacked = [
        x if axis is None else x.reshape(2, 2, *x.shape[1:])
        for x, axis in zip(inputs, axes, strict=True)
    ]
    gradient = jax.grad(functools.partial(of_the_op.loss, implementation="pallas_tpu"))
    got = jax.vmap(gradient, (axes,))(stacked)
    for i in range(2):
        one = [
            x if axis is None else x[i] for x, axis in zip(stacked, axes, strict=True)
        ]
        jax.tree.map(
            lambda g, w, i=i: np.testing.assert_allclose(g[i], w, rtol=1e-6, atol=1e-5),
            got,
            gradient(one),
        )


@pytest.mark.slow
@pytest.mark.usefixtures("as_tpu")
@pytest.mark.parametrize("check_vma", [False, True])
def test_inside_a_shard_map(check_vma):
    """A decay that all shards have in common receives the sum of their gradients."""
    q, k, v, log_decay, _ = arguments(rank=1)
    rows, whole = jax.P("data"), jax.P()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))

    def gradients(implementation):
        def run(*arguments):
            return ops.lightning_attention(*arguments, implementation=implementation)

        sharded = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(rows, rows, rows, whole),
            out_specs=rows,
            check_vma=check_vma,
        )

        def loss(*arguments):
            o, last = sharded(*arguments)
            return jnp.sum(jnp.sin(o)) + jnp.sum(last**2)

        return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, v, log_decay)

    for mine, true in zip(gradients("pallas_tpu"), gradients("scan"), strict=True):
        # Sums of 128 terms in another order, over two sequences in the last.
        scale = np.max(np.abs(true))
        np.testing.assert_allclose(mine, true, rtol=0, atol=4 * 128 * 1.2e-7 * scale)


def unasked(monkeypatch, q, log_decay):
    """The program that a TPU takes where nothing is named."""
    monkeypatch.setattr(target, "platform", lambda: "tpu")
    return str(jax.make_jaxpr(lambda q: ops.lightning_attention(q, q, q, log_decay))(q))


def test_a_tpu_takes_the_kernel_unasked(monkeypatch):
    q = jnp.ones((1, 128, 2, 64))
    assert "lightning_forward" in unasked(monkeypatch, q, jnp.zeros(2))


@pytest.mark.parametrize(
    ("sizes", "dtype", "message"),
    [
        ((3, 64), "float32", "it has 3 heads of K = 64 and V = 64"),
        ((2, 48), "float32", "it has 2 heads of K = 48"),
        ((2, 64), "float16", "q, k and v are float16, float16 and float16"),
    ],
)
def test_others_are_refused_or_left_to_the_chunked_form(
    monkeypatch, sizes, dtype, message
):
    q = jnp.ones((1, 128, *sizes), dtype)
    log_decay = jnp.zeros(sizes[0])
    assert "pallas" not in unasked(monkeypatch, q, log_decay)
    with pytest.raises(NotImplementedError, match=message):
        ops.lightning_attention(q, q, q, log_decay, implementation="pallas_tpu")


@pytest.mark.parametrize("time", [1, 127, 128, 129, 512, 5000])
@pytest.mark.parametrize("heads", [2, 6, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_cover_the_arrays_and_fit(time, heads, dtype):
    q = jax.ShapeDtypeStruct((3, time, heads * 64), dtype)
    s0 = jax.ShapeDtypeStruct((3, heads, 64, 64), "float32")
    cut = lightning_tiles_tpu.Cut.of(q, s0)
    assert cut.padded >= time > cut.padded - cut.steps
    assert heads % cut.in_block == 0
    of_planes = 2 * 7 * cut.steps * cut.lanes * jnp.dtype(dtype).itemsize
    of_states = (4 * 4 + 2 + 4 * 4) * 128 * cut.lanes + cut.in_block * 4 * 128**2
    assert of_planes + of_states <= 12 << 20
