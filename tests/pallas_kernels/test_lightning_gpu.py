"""Who reaches the GPU kernel of `lightning_attention`: those that name it, on Hopper.

No interpreter knows its instructions; tests/aot/test_gpu_lightning.py compiles it.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import target
from ssm import ops


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


@pytest.mark.parametrize("options", ["decay of each step", "reset"])
def test_it_refuses_decays_that_change_with_time(on, options):
    on("NVIDIA H100 80GB HBM3")
    q = jnp.ones((1, 128, 2, 128), jnp.bfloat16)
    decay = jnp.zeros(q.shape[:3]) if options != "reset" else None
    reset = jnp.zeros((1, 128), bool) if options == "reset" else None
    with pytest.raises(NotImplementedError, match="the decay changes with time"):
        run(q, decay, reset=reset)
