"""The GPU kernels of `linear_scan` in interpret mode, against the float64 loop.

Memory starts as NaN and accesses are checked for races. The cases, the bounds on the
error and the tests of the op come from the tests of `ssm.ops.linear_scan`.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import linear_scan_gpu, ring_gpu, target
from pallas_kernels.ring_gpu import Tiles
from ssm import ops, reference
from tests.pairwise import affordable, mostly_slow, name_of, pairwise
from tests.pallas_kernels.test_linear_scan_tpu import second_derivative
from tests.ssm.ops import test_linear_scan as of_the_op

KINDS = (  # of x, and of the decay
    ("float32", "a"),
    ("bfloat16", "log_a"),
    ("complex64", "a"),
    ("complex64", "constant a"),
)
# Blocks of 4 end amid the 11 steps, turns of 2 amid the last block, and blocks of 128
# amid the 132 channels; rows of 5 are padded.
QUICK = pairwise(
    {
        "kind": KINDS,
        "segments": (1, 2),
        "width": (5, 132),
        "h0": (True, False),
        "reset": (True, False),
        "reverse": (True, False),
    }
)
FULL = of_the_op.full_grid(
    of_the_op.KINDS, block=(128, 256), segments=(1, 3), turn=(1, 8)
)


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("row", mostly_slow(QUICK, *QUICK[:6]), ids=name_of)
def test_equals_the_loop_in_value_and_gradient(row, gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 2)
    gpu_tiles(steps=4, stages=2, segments=row["segments"])
    dtype, decay = row["kind"]
    case = {"implementation": "mosaic_gpu", "time": 11, "dtype": dtype, "decay": decay}
    of_the_op.check(case | row)


@pytest.mark.slow
@pytest.mark.usefixtures("as_gpu_without_races")
@pytest.mark.parametrize("row", affordable(FULL), ids=name_of)
def test_equals_the_loop_on_the_full_grid(row, gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", row["turn"])
    gpu_tiles(width=row["block"], segments=row["segments"], steps=16)
    of_the_op.check({"implementation": "mosaic_gpu"} | row, batch=1)


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("segments", [1, 2])
def test_nan_stops_at_a_reset_and_growth_goes_on(segments, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 1)
    rng = np.random.default_rng(0)
    time = 9
    x, d_h = rng.normal(size=(2, 2, time, 3)).astype(np.float32)
    a = rng.uniform(0.5, 2.0, (2, time, 3)).astype(np.float32)
    h0, d_last = rng.normal(size=(2, 2, 3)).astype(np.float32)
    x[0, 3, 1] = np.nan
    reset = np.zeros((2, time), bool)
    reset[0, 6] = True

    def run(x, a, h0):
        (h,), (last,) = linear_scan_gpu.linear_scan(
            (x,), (a,), (h0,), reset, tiles=Tiles(128, 4, 2, segments)
        )
        return h, last

    out, vjp = jax.vjp(jax.jit(run), *map(jnp.asarray, (x, a, h0)))
    got = *out, *vjp((jnp.asarray(d_h), jnp.asarray(d_last)))
    want = (
        *reference.linear_scan(x, a, h0=h0, reset=reset),
        *reference.linear_scan_vjp(d_h, d_last, x, a, h0=h0, reset=reset),
    )
    assert np.isnan(want[0]).sum() == 3
    # The same recurrences of moduli bound the sums; two roundings for each step, and
    # the gradient of the decay takes both ways.
    bounds = (
        *reference.linear_scan(abs(x), a, h0=abs(h0), reset=reset),
        *(
            reference.linear_scan_vjp(
                *map(np.abs, (d_h, d_last, x)), a, h0=abs(h0), reset=reset
            )
        ),
    )
    for mine, true, bound in zip(got, want, bounds, strict=True):
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(true))
        error = np.nan_to_num(np.abs(mine - true))
        assert np.all(error <= 4 * (time + 1) * 1.2e-7 * np.nan_to_num(bound))


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize(
    ("is_complex", "constant", "log"),
    [
        (False, False, True),
        pytest.param(True, False, False, marks=pytest.mark.slow),
        pytest.param(True, True, False, marks=pytest.mark.slow),
        pytest.param(False, True, True, marks=pytest.mark.slow),
    ],
)
def test_second_derivative_is_that_of_the_loop(is_complex, constant, log, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 1)
    x, decay, h0 = of_the_op.inputs(time=5)
    if is_complex:
        x, decay, h0 = (jax.lax.complex(v, v[::-1] / 2) for v in (x, decay, h0))
    decay = decay[0, 0] if constant else decay
    decay = jnp.log(decay) if log else decay
    got, want = (
        second_derivative(name, x, decay, h0, log=log)
        for name in ("mosaic_gpu", "loop")
    )
    for mine, true in zip(got, want, strict=True):
        # Four sweeps of 5 steps each, in float32, of products of up to six factors.
        scale = np.max(np.abs(true))
        np.testing.assert_allclose(mine, true, rtol=0, atol=100 * 1.2e-7 * scale)


@pytest.mark.slow
@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("constant", [False, True])
def test_vmap_is_one_by_one(constant, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 1)
    x, a, h0 = of_the_op.inputs(batch=6)
    x, h0 = x.reshape(3, 2, *x.shape[1:]), h0.reshape(3, 2, -1)
    a = a[0, 0] if constant else a[:2]

    def gradients(x, h0):
        def loss(x, a, h0):
            h, last = ops.linear_scan(x, a, h0=h0, implementation="mosaic_gpu")
            return jnp.sum(jnp.sin(h)) + jnp.sum(last**2)

        return jax.grad(loss, (0, 1, 2))(x, a, h0)

    got = jax.vmap(gradients)(x, h0)
    for i in range(3):
        jax.tree.map(
            lambda g, w, i=i: np.testing.assert_allclose(g[i], w, rtol=1e-6, atol=1e-6),
            got,
            gradients(x[i], h0[i]),
        )


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize(
    ("check_vma", "segments"),
    [
        (True, 2),
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(False, 2, marks=pytest.mark.slow),
    ],
)
def test_inside_a_shard_map(check_vma, segments, gpu_tiles, monkeypatch):
    """On one device: the interpreter fails at random where two run at a time."""
    monkeypatch.setattr(ring_gpu, "ROWS", 1)
    gpu_tiles(steps=4, segments=segments)
    x, a, h0 = of_the_op.inputs()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
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
        gradients("mosaic_gpu"),
        gradients("scan"),
    )


@pytest.mark.usefixtures("as_gpu")
def test_extreme_decays_stay_finite(gpu_tiles, monkeypatch):
    monkeypatch.setattr(ring_gpu, "ROWS", 1)
    gpu_tiles(segments=2, steps=4)
    x = jnp.ones((1, 11, 4))
    log_a = jnp.broadcast_to(jnp.array([0.0, -80.0, -1e30, -jnp.inf]), x.shape)
    h, vjp = jax.vjp(
        lambda x, log_a: ops.linear_scan(x, log_a=log_a, implementation="mosaic_gpu")[
            0
        ],
        x,
        log_a,
    )
    np.testing.assert_allclose(h[0, -1], [11.0, 1.0, 1.0, 1.0])
    for gradient in vjp(jnp.ones_like(h)):
        assert np.all(np.isfinite(gradient))


@pytest.fixture
def on(monkeypatch):
    """Lets the op believe that it is on a GPU of some kind."""

    def set_kind(kind):
        monkeypatch.setattr(target, "platform", lambda: "gpu")
        monkeypatch.setattr(target, "device_kind", lambda: kind)

    return set_kind


HOPPER_OR_NEWER = (
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H100 PCIe",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA H200",
    "NVIDIA H800",
    "NVIDIA H20",
    "NVIDIA GH200 480GB",
    "NVIDIA B200",
    "NVIDIA GB200",
    "NVIDIA B300 SXM6 AC",
    "NVIDIA GB10",
    "NVIDIA GeForce RTX 5090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
)
OLDER_OR_OTHER = (
    "NVIDIA A100-SXM4-80GB",
    "Tesla V100-SXM2-16GB",
    "NVIDIA L40S",
    "NVIDIA A10G",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA RTX A6000",
    "Quadro RTX 5000",
    "NVIDIA RTX 5000 Ada Generation",
    "AMD Instinct MI300X",
    "gfx942",
)


@pytest.mark.parametrize("kind", HOPPER_OR_NEWER)
def test_a_new_gpu_takes_the_kernel_unasked(on, kind):
    on(kind)
    x, a, _ = of_the_op.inputs()
    jaxpr = jax.make_jaxpr(lambda x, a: ops.linear_scan(x, a))(x, a)
    assert "linear_scan_forward" in str(jaxpr)


@pytest.mark.parametrize("kind", OLDER_OR_OTHER)
def test_an_older_gpu_does_without(on, kind):
    on(kind)
    x, a, _ = of_the_op.inputs()
    with pytest.raises(NotImplementedError, match="compute capability 9.0"):
        ops.linear_scan(x, a, implementation="mosaic_gpu")
    jaxpr = jax.make_jaxpr(lambda x, a: ops.linear_scan(x, a))(x, a)
    assert "pallas" not in str(jaxpr) and "linear_scan_forward" not in str(jaxpr)


@pytest.mark.parametrize(
    ("capability", "capable"), [("8.9", False), ("9.0", True), ("12.1", True)]
)
def test_a_device_at_hand_is_asked(on, monkeypatch, capability, capable):
    device = types.SimpleNamespace(
        device_kind="NVIDIA A100", platform="gpu", compute_capability=capability
    )
    monkeypatch.setattr(jax, "devices", lambda: [device])
    on(device.device_kind)
    assert (ring_gpu.refuse({}) is None) == capable


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float16", "float64", "complex128"])
def test_other_dtypes_are_refused_or_left_to_others(on, dtype):
    on("NVIDIA H100 80GB HBM3")
    x = jnp.ones((1, 4, 2), dtype)
    log_a = jnp.zeros_like(x)
    with pytest.raises(NotImplementedError, match="x is float"):
        ops.linear_scan(x, log_a=log_a, implementation="mosaic_gpu")
    jaxpr = jax.make_jaxpr(lambda x: ops.linear_scan(x, log_a=x))(x)
    assert "linear_scan_forward" not in str(jaxpr)


def test_refuses_where_there_is_no_gpu():
    x = jnp.ones((1, 4, 2))
    with pytest.raises(NotImplementedError, match="it is a kernel for GPU"):
        ops.linear_scan(x, x, implementation="mosaic_gpu")


@pytest.mark.parametrize("kind", HOPPER_OR_NEWER)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 100, 130), (1, 16384, 512), (64, 65536, 8192)]
)
@pytest.mark.parametrize("sizes", [(4, 2), (8, 4), (16, 8), (24, 16)])
def test_tiles_fit(kind, shape, sizes):
    limits = ring_gpu.limits(kind)
    tiles = ring_gpu.choose_tiles(shape, *sizes, sizes[1] == 2, kind)
    rows = tiles.stages * (tiles.steps + 1) * sizes[0]
    rows += ring_gpu.OUT_SLOTS * tiles.steps * sizes[1]
    assert tiles.width * rows + tiles.stages * 128 <= limits.shared
    assert tiles.width in (128, 256)
    assert tiles.steps % ring_gpu.ROWS == 0
    assert tiles.stages >= 2
    blocks = shape[0] * -(-shape[2] // tiles.width)
    assert tiles.segments == 1 or tiles.segments * blocks <= limits.processors


def test_a_segment_moves_a_state_of_which_one_plane_is_zero():
    product, before, state = 0.5 + 0.25j, 2.0 + 0j, 1.0 - 1.0j
    summary = *_planes(product), *_planes(state)
    moved = ring_gpu.fold_segments(2, summary, _planes(before))
    np.testing.assert_allclose(moved, _planes(product * before + state))
    summary = *_planes(np.inf * 1j), *_planes(state)
    unmoved = ring_gpu.fold_segments(2, summary, _planes(0j))
    np.testing.assert_allclose(unmoved, _planes(state))


def _planes(z):
    return jnp.full(3, z.real), jnp.full(3, z.imag)
