"""Linear attention with decay on GPU: the forward pass on the matrix units of Hopper.

    S_t = exp(log_decay) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

This kernel is compiled for its target in the tests, and has never run on a device.

A thread block of 128 threads owns one head and half of its values. It holds the state
in registers, as two accumulators (64, 64), and goes through chunks of 64 steps, whose
q, k and v are copied into a ring of slots ahead of it:

    A_ts = (q_t . k_s) exp(D_ts) for s <= t,    o = A v + exp(D_t0) q S,
    S <- exp(D_C0) S + k^T (exp(D_Cs) v_s),

where D_ts = (t - s) log_decay. Factors of products are bfloat16, sums float32.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mg

from pallas_kernels import target

CHUNK = 64
WIDTH = 128  # of the keys, and of the values
PART = 64  # values of a thread block, and rows of an accumulator
SLOTS = 2
_Accumulator: Any = vars(mg)["ACC"]  # whose name it does not export to type checkers
_ROWS = mg.Layout.WGMMA  # how the threads share an accumulator
# JAX 0.10 wants an index beside the array.
_INDEX = ((),) if "idx" in inspect.signature(mg.load).parameters else ()


def refuse(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
) -> str | None:
    """Returns why `lightning_attention` cannot run here on these arguments, or None."""
    del s0
    if target.platform() != "gpu":
        return "it is a kernel for GPU"
    if not re.search(r"\bG?H[12]00\b|\bH20\b|\bH800\b", target.device_kind()):
        return f"it is a kernel for Hopper, this is {target.device_kind()}"
    if not q.dtype == k.dtype == v.dtype == jnp.bfloat16:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, wanted bfloat16"
    if log_decay.ndim != 1 or reset is not None:
        return "the decay changes with time, wanted log_decay (H,) and no reset"
    time, _, width = q.shape[1:]
    if width != WIDTH or v.shape[3] != WIDTH or time % CHUNK:
        return (
            f"it has T = {time}, K = {width} and V = {v.shape[3]}, wanted T a multiple "
            f"of {CHUNK} and K = V = {WIDTH}"
        )
    return None


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None,
    *,
    composed: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """Runs linear attention with decay over time, on a Hopper GPU. Unproven: never run.

    Args:
      q: (B, T, H, 128) bfloat16, T a multiple of 64.
      k: as q.
      v: as q.
      log_decay: (H,), any real dtype.
      s0: (B, H, 128, 128) float32.
      reset: None.
      composed: the same function of these six arguments in jax operations, of which
        all derivatives are taken.

    Returns:
      o (B, T, H, 128) bfloat16 and the last state (B, H, 128, 128) float32.
      Differentiable in q, k, v, log_decay and s0, in reverse mode, any number of times.
    """
    assert reset is None
    return _attention(q, k, v, log_decay, s0, composed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, log_decay, s0, composed):
    q, k, flat_v = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    o, last = _forward(log_decay.astype(jnp.float32), q, k, flat_v, s0)
    return o.reshape(v.shape), last


def _attention_forward(*arguments):
    return _attention(*arguments), arguments[:5]


def _attention_backward(composed, inputs, cotangents):
    return jax.vjp(lambda *inputs: composed(*inputs, None), *inputs)[1](cotangents)


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(log_decay, q, k, v, s0):
    batch, time, lanes = q.shape
    slots = min(SLOTS, time // CHUNK)

    def tile(*shape):
        """Shared memory as the matrix units read it."""
        layout = mg.TilingTransform((8, 64)), mg.SwizzleTransform(128)
        return mg.SMEM(shape, jnp.bfloat16, transforms=layout)

    def like(array):
        kind = jax.typeof(array).manual_axis_type
        return jax.ShapeDtypeStruct(array.shape, array.dtype, manual_axis_type=kind)

    return mg.kernel(
        functools.partial(_kernel, time // CHUNK, slots),
        out_type=(like(v), like(s0)),
        grid=(batch, lanes // WIDTH, WIDTH // PART),
        grid_names=("batch", "head", "part"),
        scratch_types=[
            tile(slots, CHUNK, WIDTH),
            tile(slots, CHUNK, WIDTH),
            tile(slots, CHUNK, PART),
            tile(CHUNK, PART),
            tile(WIDTH, PART),
            tile(CHUNK, PART),
            mg.Barrier(num_arrivals=3, num_barriers=slots),
        ],
    )(log_decay, q, k, v, s0)


def _load(ref):
    """An array in the layout of an accumulator."""
    return mg.load(ref, *_INDEX, layout=_ROWS, optimized=False)


def _product(a, b):
    """A product of tiles in shared memory."""

    def run(total):
        mg.wgmma(total, a, b)
        return total[...]

    shape = a.shape[0], b.shape[1]
    return pl.run_scoped(run, _Accumulator(shape, jnp.float32))


def _plus_product(start, a, b):
    """`start` plus a product, in the accumulator; `a` may be in registers."""
    return pl.run_state(lambda total: mg.wgmma(total, a, b))(_Accumulator.init(start))


def _kernel(
    chunks,
    slots,
    log_decay,
    q,
    k,
    v,
    s0,
    o,
    last,
    q_ring,
    k_ring,
    v_ring,
    decayed_v,
    narrow_state,
    out,
    arrived,
):
    batch, head, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    log = log_decay[head]
    keys = pl.ds(head * WIDTH, WIDTH)
    values = pl.ds(head * WIDTH + part * PART, PART)

    def fetch(chunk, slot):
        steps = pl.ds(chunk * CHUNK, CHUNK)
        for array, ring, lanes in (
            (q, q_ring, keys),
            (k, k_ring, keys),
            (v, v_ring, values),
        ):
            mg.copy_gmem_to_smem(
                array.at[batch, steps, lanes], ring.at[slot], arrived.at[slot]
            )

    for slot in range(slots):
        fetch(slot, slot)

    step, other = (
        mg.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis, layout=_ROWS)
        for axis in range(2)
    )
    apart = (step - other).astype(jnp.float32)
    pairs = jnp.where(step >= other, jnp.exp(log * apart), 0.0)
    step = step.astype(jnp.float32)
    from_start, to_end = jnp.exp(log * (step + 1)), jnp.exp(log * (CHUNK - 1 - step))
    over_chunk = jnp.exp(log * CHUNK)
    halves = [pl.ds(i * PART, PART) for i in range(WIDTH // PART)]

    def one_chunk(chunk, state):
        slot = lax.rem(chunk, slots)
        mg.barrier_wait(arrived.at[slot])
        for rows, half in zip(halves, state, strict=True):
            narrow_state[rows] = half.astype(jnp.bfloat16)
        v_here = _load(v_ring.at[slot]).astype(jnp.float32)
        decayed_v[...] = (v_here * to_end).astype(jnp.bfloat16)
        mg.commit_smem()
        by_key = mg.transpose_ref(k_ring.at[slot], (1, 0))
        weights = (_product(q_ring.at[slot], by_key) * pairs).astype(jnp.bfloat16)
        from_state = _product(q_ring.at[slot], narrow_state) * from_start
        total = _plus_product(from_state, weights, v_ring.at[slot])
        after = []
        for rows, half in zip(halves, state, strict=True):
            by_step = mg.transpose_ref(k_ring.at[slot, :, rows], (1, 0))
            after.append(_plus_product(half * over_chunk, by_step, decayed_v))
        mg.wait_smem_to_gmem(0, wait_read_only=True)
        out[...] = total.astype(jnp.bfloat16)
        mg.commit_smem()
        steps = pl.ds(chunk * CHUNK, CHUNK)
        mg.copy_smem_to_gmem(out, o.at[batch, steps, values])

        @pl.when(chunk + slots < chunks)
        def _():
            fetch(chunk + slots, slot)

        return tuple(after)

    columns = pl.ds(part * PART, PART)
    state = tuple(_load(s0.at[batch, head, rows, columns]) for rows in halves)
    state = lax.fori_loop(0, chunks, one_chunk, state)
    for rows, half in zip(halves, state, strict=True):
        last[batch, head, rows, columns] = half
    mg.wait_smem_to_gmem(0)
