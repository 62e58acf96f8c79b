"""Linear attention with decay on GPU, on the matrix units of Hopper.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

This kernel is compiled for its target in the tests, and has never run on a device.

A thread block of 128 threads owns one head and half of its values. It holds the state
in registers, as two accumulators (64, 64), and goes through chunks of 64 steps, whose
q, k and v are copied into a ring of slots ahead of it:

    A_ts = (q_t . k_s) exp(D_ts) for s <= t,    o = A v + exp(D_t0) q S,
    S <- exp(D_C0) S + k^T (exp(D_Cs) v_s),

where D_ts is the sum of the log decays after s up to t. Factors of products are
bfloat16, sums float32. The other way, chunks and sums run from the end,

    A_ts = (q_t . k_s) exp(D_st) for s >= t,    o = A v + exp(D_Ct) q S,
    S <- exp(D_C0) S + k^T (exp(D_s0) v_s),

so that the gradients are three such passes:

    dq, _ = forward(dO, v, k, S_0^T),   dk, _ = backward(v, dO, q, dS_T^T),
    dv, dS_0 = backward(k, q, dO, dS_T).

That of the decay is left to jax operations: a decay that is no parameter has none.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mg

from pallas_kernels import target
from pallas_kernels.decay_sums import decay_sums
from pallas_kernels.varying import vary_as

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
    del s0, reset
    if target.platform() != "gpu":
        return "it is a kernel for GPU"
    if not re.search(r"\bG?H[12]00\b|\bH20\b|\bH800\b", target.device_kind()):
        return f"it is a kernel for Hopper, this is {target.device_kind()}"
    if not q.dtype == k.dtype == v.dtype == jnp.bfloat16:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, wanted bfloat16"
    if log_decay.ndim == 4:
        return "log_decay is one for each key channel, wanted one for each head"
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
      log_decay: (H,) or (B, T, H), any real dtype.
      s0: (B, H, 128, 128) float32.
      reset: (B, T) bool; True clears the state before the step.
      composed: the same function of these six arguments in jax operations, of which
        the gradient of log_decay and second derivatives are taken.

    Returns:
      o (B, T, H, 128) bfloat16 and the last state (B, H, 128, 128) float32.
      Differentiable in q, k, v, log_decay and s0, in reverse mode, any number of times.
    """
    return _attention(q, k, v, log_decay, s0, reset, composed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(q, k, v, log_decay, s0, reset, composed):
    del composed
    return _run(_decay_input(log_decay, reset, q), q, k, v, s0)


def _attention_forward(*arguments):
    return _attention(*arguments), arguments[:6]


def _attention_backward(composed, inputs, cotangents):
    return *_adjoint(*inputs, *cotangents, composed), None


_attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _adjoint(q, k, v, log_decay, s0, reset, d_o, d_last, composed):
    decay = _decay_input(log_decay, reset, q)
    run = functools.partial(_run, decay)
    d_q, _ = run(d_o, v, k, s0.mT)
    d_k, _ = run(v, d_o, q, d_last.mT, reverse=True)
    d_v, d_s0 = run(k, q, d_o, d_last, reverse=True)

    def of_decay(log_decay):
        return composed(q, k, v, log_decay, s0, reset)

    (d_log_decay,) = jax.vjp(of_decay, log_decay)[1]((d_o, d_last))
    return d_q, d_k, d_v, d_log_decay, d_s0


def _adjoint_forward(*arguments):
    return _adjoint(*arguments), arguments[:8]


def _adjoint_backward(composed, arguments, cotangents):
    *inputs, reset, d_o, d_last = arguments

    def adjoint(inputs, d_o, d_last):
        return jax.vjp(lambda *v: composed(*v, reset), *inputs)[1]((d_o, d_last))

    d_inputs, d_d_o, d_d_last = jax.vjp(adjoint, inputs, d_o, d_last)[1](cotangents)
    return *d_inputs, None, d_d_o, d_d_last


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _run(decay, q, k, v, s0, *, reverse=False):
    """The kernel on (B, T, H, 128), from the state before the first chunk it sees."""
    q, k, flat_v = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    o, last = _call(decay, q, k, flat_v, s0, reverse)
    return o.reshape(v.shape), last


def _decay_input(log_decay, reset, q):
    """What the kernel takes: (H,), or cumulative sums (B, H, 2, T) within chunks."""
    return decay_sums(log_decay, reset, q.shape[:3], CHUNK, padded=q.shape[1])


def _call(decay, q, k, v, s0, reverse):
    batch, time, lanes = q.shape
    slots = min(SLOTS, time // CHUNK)

    def tile(*shape):
        """Shared memory as the matrix units read it."""
        layout = mg.TilingTransform((8, 64)), mg.SwizzleTransform(128)
        return mg.SMEM(shape, jnp.bfloat16, transforms=layout)

    o, last = mg.kernel(
        functools.partial(_kernel, time // CHUNK, slots, reverse),
        out_type=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (v, s0)],
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
        kernel_name=f"lightning_{'reverse' if reverse else 'forward'}",
    )(decay, q, k, v, s0)
    return vary_as(o, v), vary_as(last, s0)


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


class _Decays(NamedTuple):
    """The exponentials of a chunk."""

    pairs: jax.Array  # between two steps, 0 where one does not see the other
    before: jax.Array  # from the chunk before to each step, in rows of (C, 64)
    after: jax.Array  # from each step to the chunk after, in rows of (C, 64)
    whole: jax.Array  # from the chunk before to the one after


def _steps():
    return [
        mg.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis, layout=_ROWS)
        for axis in range(2)
    ]


def _constant_decays(log, reverse):
    """The exponentials of a decay that all steps have in common."""
    step, other = (axis.astype(jnp.float32) for axis in _steps())
    apart = other - step if reverse else step - other
    # Of the other direction the exponents are positive: cut off, then not looked at.
    pairs = jnp.where(apart >= 0, jnp.exp(log * jnp.maximum(apart, 0.0)), 0.0)
    from_start, to_end = jnp.exp(log * (step + 1)), jnp.exp(log * (CHUNK - 1 - step))
    ends = (to_end, from_start) if reverse else (from_start, to_end)
    return _Decays(pairs, *ends, jnp.exp(log * CHUNK))


def _changing_decays(sums, start, reverse):
    """The exponentials of the chunk at `start`, of cumulative sums (2, T) within it."""

    def load(row, start, axis):
        steps, layout = pl.ds(start, CHUNK), _ROWS.reduce(1 - axis)
        values = mg.load(sums.at[row, steps], *_INDEX, layout=layout, optimized=False)
        return lax.broadcast_in_dim(values * 1.0, (CHUNK, CHUNK), (axis,))

    # The compiler of JAX 0.12 would make one load of the same two, which cannot have
    # both layouts. That `start` is never more than this it does not know.
    also_start = jnp.minimum(start, sums.shape[1] - CHUNK)
    by_row = [load(row, start, 0) for row in range(2)]
    by_column = [load(row, also_start, 1) for row in range(2)]
    totals = [sums[row, start + CHUNK - 1] * 1.0 for row in range(2)]
    coarse, fine = (r - c for r, c in zip(by_row, by_column, strict=True))
    step, other = _steps()
    later = other >= step if reverse else step >= other
    apart = -(coarse + fine) if reverse else coarse + fine
    pairs = jnp.where(later, jnp.exp(jnp.minimum(apart, 0.0)), 0.0)
    from_start = jnp.exp(by_row[0] + by_row[1])
    to_end = jnp.exp((totals[0] - by_row[0]) + (totals[1] - by_row[1]))
    ends = (to_end, from_start) if reverse else (from_start, to_end)
    return _Decays(pairs, *ends, jnp.exp(totals[0] + totals[1]))


def _kernel(
    chunks,
    slots,
    reverse,
    decay,
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
    # The products with one forget over which axes of a mesh an array varies: within the
    # kernel nothing else knows.
    constant = None
    if decay.ndim == 1:
        constant = _constant_decays(decay[head] * 1.0, reverse)
    keys = pl.ds(head * WIDTH, WIDTH)
    values = pl.ds(head * WIDTH + part * PART, PART)

    def start_of(turn):
        return (chunks - 1 - turn if reverse else turn) * CHUNK

    def fetch(turn, slot):
        steps = pl.ds(start_of(turn), CHUNK)
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

    halves = [pl.ds(i * PART, PART) for i in range(WIDTH // PART)]

    def one_chunk(turn, state):
        slot = lax.rem(turn, slots)
        start = start_of(turn)
        decays = constant or _changing_decays(decay.at[batch, head], start, reverse)
        mg.barrier_wait(arrived.at[slot])
        for rows, half in zip(halves, state, strict=True):
            narrow_state[rows] = half.astype(jnp.bfloat16)
        v_here = _load(v_ring.at[slot]).astype(jnp.float32)
        decayed_v[...] = (v_here * decays.after).astype(jnp.bfloat16)
        mg.commit_smem()
        by_key = k_ring.at[slot].transpose((1, 0))
        weights = (_product(q_ring.at[slot], by_key) * decays.pairs).astype(
            jnp.bfloat16
        )
        from_state = _product(q_ring.at[slot], narrow_state) * decays.before
        total = _plus_product(from_state, weights, v_ring.at[slot])
        after = []
        for rows, half in zip(halves, state, strict=True):
            by_step = k_ring.at[slot, :, rows].transpose((1, 0))
            after.append(_plus_product(half * decays.whole, by_step, decayed_v))
        mg.wait_smem_to_gmem(0, wait_read_only=True)
        out[...] = total.astype(jnp.bfloat16)
        mg.commit_smem()
        steps = pl.ds(start, CHUNK)
        mg.copy_smem_to_gmem(out, o.at[batch, steps, values])

        @pl.when(turn + slots < chunks)
        def _():
            fetch(turn + slots, slot)

        return tuple(after)

    columns = pl.ds(part * PART, PART)
    state = tuple(_load(s0.at[batch, head, rows, columns]) * 1.0 for rows in halves)
    state = lax.fori_loop(0, chunks, one_chunk, state)
    for rows, half in zip(halves, state, strict=True):
        last[batch, head, rows, columns] = half
    mg.wait_smem_to_gmem(0)
