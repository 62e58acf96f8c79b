"""The fused GPU kernels in interpret mode, against the float64 loops.

Memory starts as NaN and accesses are checked for races. The cases and the bounds on the
error come from the tests of the ops.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from pallas_kernels import ring_gpu
from ssm import ops
from tests.pairwise import affordable, crossed, mostly_slow, name_of, pairwise
from tests.ssm.ops import test_hgrn_scan, test_rg_lru_scan

# Blocks of 4 end amid the 7 steps, and blocks of 128 amid the 132 channels.
OPTIONS = {
    "segments": (1, 2),
    "width": (5, 132),
    "h0": (True, False),
    "reset": (True, False),
    "turn": (1, 2),  # rows at a time
}
RG_LRU = pairwise({"dtype": ("float32", "bfloat16")} | OPTIONS)
HGRN = pairwise(
    {
        "kind": (  # of x, and whether the state turns
            ("float32", False),
            ("bfloat16", False),
            ("float32", True),
            ("complex64", True),
        ),
        "reverse": (False, True),
    }
    | OPTIONS
)
TILES = {"block": (128, 256), "segments": (1, 3), "turn": (1, 8)}
FULL_RG_LRU = crossed(
    test_rg_lru_scan.SIZES,
    test_rg_lru_scan.OPTIONS | TILES | {"dtype": ("float32", "bfloat16")},
)
FULL_HGRN = crossed(
    test_hgrn_scan.SIZES,
    test_hgrn_scan.OPTIONS | TILES | {"dtype": ("float32", "bfloat16", "complex64")},
)


def cheapest(rows):
    """Two rows that the interpreter has soon run."""
    narrow = [row for row in rows if row["width"] == 5 and row["turn"] == 1]
    return narrow[:2]


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("row", mostly_slow(RG_LRU, *cheapest(RG_LRU)), ids=name_of)
def test_rg_lru_equals_the_loop(row, gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", row["turn"])
    gpu_tiles(steps=4, stages=2, segments=row["segments"])
    test_rg_lru_scan.check({"implementation": "mosaic_gpu", "time": 7} | row)


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("row", mostly_slow(HGRN, *cheapest(HGRN)), ids=name_of)
def test_hgrn_equals_the_loop(row, gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", row["turn"])
    gpu_tiles(steps=4, stages=2, segments=row["segments"])
    dtype, theta = row["kind"]
    case = {"implementation": "mosaic_gpu", "time": 7, "dtype": dtype, "theta": theta}
    test_hgrn_scan.check(case | row)


@pytest.mark.slow
@pytest.mark.usefixtures("as_gpu_without_races")
@pytest.mark.parametrize("row", affordable(FULL_RG_LRU), ids=name_of)
def test_rg_lru_equals_the_loop_on_the_full_grid(row, gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", row["turn"])
    gpu_tiles(width=row["block"], segments=row["segments"], steps=16)
    test_rg_lru_scan.check({"implementation": "mosaic_gpu"} | row, batch=1)


@pytest.mark.slow
@pytest.mark.usefixtures("as_gpu_without_races")
@pytest.mark.parametrize("row", affordable(FULL_HGRN), ids=name_of)
def test_hgrn_equals_the_loop_on_the_full_grid(row, gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", row["turn"])
    gpu_tiles(width=row["block"], segments=row["segments"], steps=16)
    test_hgrn_scan.check({"implementation": "mosaic_gpu"} | row, batch=1)


def inputs(rng, dtype, *shape):
    return jnp.asarray(rng.normal(size=shape), dtype)


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


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("name", ["rg_lru", "hgrn"])
def test_under_a_mesh_the_gradient_is_traced(name):
    """Only that: the interpreter fails at random where two devices run at a time."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    loss, arguments = small(name, "mosaic_gpu")
    with jax.set_mesh(mesh):
        got = jax.eval_shape(jax.grad(loss, range(len(arguments))), *arguments)
    assert [g.shape for g in got] == [v.shape for v in arguments]
