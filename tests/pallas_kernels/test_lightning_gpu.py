"""Who reaches the GPU kernel of `lightning_attention`, and what is made of it.

No interpreter knows its instructions; tests/aot/test_gpu_lightning.py compiles it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from pallas_kernels import lightning_gpu, target
from ssm import ops
from tests.ssm.ops import test_lightning_attention as of_the_op


@pytest.fixture
def on(monkeypatch):
    """Lets the op believe that it is on a GPU of some kind."""

    def pretend(kind):
        monkeypatch.setattr(target, "platform", lambda: "gpu")
        monkeypatch.setattr(target, "device_kind", lambda: kind)

    return pretend


def run(q, log_decay=None, implementation="mosaic_gpu", **options):
    log_decay = jnp.zeros(q.shape[2]) if log_decay is None else log_decay
    return ops.lightning_attention(
        q, q, q, log_decay, implementation=implementation, **options
    )


def program(*arguments, **options):
    q = jnp.ones((1, 128, 2, 128), jnp.bfloat16)
    return str(jax.make_jaxpr(lambda q: run(q, *arguments, **options))(q))


def test_hopper_takes_the_kernel_if_it_is_named_and_never_unasked(on):
    on("NVIDIA H100 80GB HBM3")
    assert "wgmma" in program()
    assert "wgmma" not in program(implementation=None)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "message"),
    [
        ("NVIDIA A100-SXM4-80GB", (1, 128, 2, 128), "bfloat16", "a kernel for Hopper"),
        ("NVIDIA B200", (1, 128, 2, 128), "bfloat16", "a kernel for Hopper"),
        ("NVIDIA H200", (1, 128, 2, 128), "float32", "q, k and v are float32"),
        ("NVIDIA H200", (1, 100, 2, 128), "bfloat16", "it has T = 100"),
        ("NVIDIA H200", (1, 128, 2, 64), "bfloat16", "T = 128, K = 64 and V = 64"),
    ],
)
def test_what_it_cannot_do_it_says(on, kind, shape, dtype, message):
    on(kind)
    with pytest.raises(NotImplementedError, match=message):
        run(jnp.ones(shape, dtype))


def test_it_refuses_decays_of_each_channel(on):
    on("NVIDIA H100 80GB HBM3")
    q = jnp.ones((1, 128, 2, 128), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="one for each key channel"):
        run(q, jnp.zeros(q.shape))


@pytest.mark.parametrize("rank", [1, 3])
def test_under_a_mesh_the_gradient_is_traced(on, rank):
    on("NVIDIA H100 80GB HBM3")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    q = jnp.ones((2, 128, 2, 128), jnp.bfloat16)
    decay = jnp.zeros(q.shape[2] if rank == 1 else q.shape[:3])

    def loss(q, decay):
        return jnp.sum(run(q, decay)[0].astype(jnp.float32))

    with jax.set_mesh(mesh):
        got = jax.eval_shape(jax.grad(loss, (0, 1)), q, decay)
    assert [g.shape for g in got] == [q.shape, decay.shape]


def by_the_equations(decay, q, k, v, s0, reverse):
    """What the kernel is to compute, from the same arguments."""
    batch, time, _ = q.shape
    heads = s0.shape[1]
    if decay.ndim == 1:
        log_decay = jnp.broadcast_to(decay[:, None], (batch, heads, time))
    else:
        chunks = decay.sum(2).reshape(batch, heads, -1, lightning_gpu.CHUNK)
        log_decay = jnp.diff(chunks, prepend=0.0).reshape(batch, heads, time)
    past = jnp.cumsum(log_decay, -1)
    rest = past[..., -1:] - past
    apart = past[..., :, None] - past[..., None, :]
    seen = jnp.tri(time, dtype=bool)
    apart, seen = (-apart, seen.T) if reverse else (apart, seen)
    pairs = jnp.exp(jnp.where(seen, apart, -jnp.inf))
    before, after = (rest, past) if reverse else (past, rest)
    q, k, v = (x.reshape(batch, time, heads, -1).astype(jnp.float32) for x in (q, k, v))
    weights = jnp.einsum("bthk,bshk->bhts", q, k) * pairs
    o = jnp.einsum("bhts,bshv->bthv", weights, v)
    o += jnp.einsum("bthk,bhkv,bht->bthv", q, s0, jnp.exp(before))
    last = jnp.einsum("bthk,bthv,bht->bhkv", k, v, jnp.exp(after))
    last += s0 * jnp.exp(past[..., -1])[..., None, None]
    return o.reshape(batch, time, -1).astype(jnp.bfloat16), last


@pytest.fixture
def computed(on, monkeypatch):
    """On a GPU, of which the kernel is replaced by its equations."""
    on("NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(lightning_gpu, "_call", by_the_equations)


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("decay", ["head", "step"])
@pytest.mark.parametrize("reset", [False, True])
def test_three_passes_of_the_kernel_are_the_gradient(decay, reset):
    row = {"implementation": "mosaic_gpu", "time": 128, "sizes": (2, 128, 128)}
    row |= {"dtype": "bfloat16", "decay": decay, "s0": True, "reset": reset}
    of_the_op.check(row)


@pytest.mark.usefixtures("computed")
def test_second_derivative_is_that_of_the_chunked_form():
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, w = (jax.random.normal(key, (1, 64, 1, 128), "bfloat16") for key in keys)

    def found(implementation):
        def loss(q, k):  # linear in the output, so that it has no say in its cotangent
            o, last = ops.lightning_attention(
                q, k, v, jnp.array([-0.1]), implementation=implementation
            )
            return jnp.sum((o * w).astype(jnp.float32)) + jnp.sum(last)

        def of_gradient(q, k):
            return jnp.sum((jax.grad(loss, 1)(q, k) * w).astype(jnp.float32))

        return jax.jit(jax.grad(of_gradient))(q, k).astype(jnp.float32)

    mine, true = found("mosaic_gpu"), found("chunked")
    # The same operations, compiled together with others: a rounding may differ.
    np.testing.assert_allclose(mine, true, rtol=0, atol=2**-7 * jnp.max(jnp.abs(true)))
