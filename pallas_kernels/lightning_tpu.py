"""Linear attention with decay on TPU: one kernel forward, one backward.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

The heads lie side by side in lanes, as a projection leaves them, (B, T, H K): as many
as 128 lanes hold make a group, and their states the diagonal blocks of one matrix. A
block is a piece of time of some groups. It goes through chunks of C steps,

    A_ts = (q_t . k_s) exp(D_ts) for s <= t,    o = A v + exp(D_t0) q S,
    S <- exp(D_C0) S + (exp(D_Cs) k_s)^T v_s,

on the matrix unit, several groups in one loop so that they can overlap. D_ts is the sum
of the log decays after s up to t; all exponents are of such sums. Where the decay does
not change with time they are multiples, computed once. Otherwise they are differences
of cumulative sums that are as good as sums: the log decays are split into multiples of
2^-6, whose cumulative sums are exact, and rests below that, whose are small. A reset is
a log decay of which every exponential is 0.

The forward kernel writes the state down at the start of each block. The backward kernel
goes through the blocks in reverse: it computes the states of the chunks again, and then
sweeps over them,

    A' = (dO v^T) * exp(D),   dq = A' k + exp(D_t0) dO S^T,   dk = A'^T q + ...
    dS <- exp(D_C0) dS + (exp(D_t0) q)^T dO.

The gradient of D_ts is that of A_ts times A_ts; what belongs to a step is summed over
its row and, negative, over its column, and the log decays get the sums of that from
their step to the end of the chunk.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import target
from pallas_kernels.vmap import fold_vmap

LANES = 128
CHUNK = 128
CHUNKS = 4  # of a block
GROUP_BYTES = 8  # of an element of all groups in one block
ZERO = -1024.0  # the logarithm of a decay that is zero


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
    if target.platform() != "tpu":
        return "it is a kernel for TPU"
    if not q.dtype == k.dtype == v.dtype or v.dtype not in (jnp.float32, jnp.bfloat16):
        return (
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, wanted all float32 or "
            "all bfloat16"
        )
    if log_decay.ndim == 4:
        return "log_decay is one for each key channel, wanted one for each head"
    heads, width = q.shape[2:]
    if v.shape[3] != width or width not in (32, 64, 128) or heads * width % LANES:
        return (
            f"it has {heads} heads of K = {width} and V = {v.shape[3]}, wanted K = V "
            f"of 32, 64 or {LANES}, and H K a multiple of {LANES}"
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
    """Runs linear attention with decay over time, on the TPU.

    Args:
      q: (B, T, H, K), K 32, 64 or 128 and H K a multiple of 128; float32, or bfloat16,
        which then is the precision of the factors of all products; T >= 1.
      k: as q.
      v: as q.
      log_decay: (H,) or (B, T, H), any real dtype.
      s0: (B, H, K, K) float32.
      reset: (B, T) bool; True clears the state before the step.
      composed: the same function of these six arguments in jax operations, of which
        second derivatives are taken.

    Inside a `shard_map` that checks it, all arrays must vary over the same mesh axes.

    Returns:
      o (B, T, H, K) in the dtype of v, and the last state (B, H, K, K) float32.
      Differentiable in q, k, v, log_decay and s0, in reverse mode, any number of times.
    """
    batch, time, heads, _ = q.shape
    missing = max(CHUNK - time, 0)
    if missing:  # steps that leave the state as it is
        log_decay = jnp.broadcast_to(log_decay, (batch, time, heads))
        log_decay = jnp.pad(log_decay, ((0, 0), (0, missing), (0, 0)))
        reset = reset if reset is None else jnp.pad(reset, ((0, 0), (0, missing)))

    def flat(array):  # as the kernels take it, and as the backward pass keeps it
        array = array.reshape(batch, time, -1)
        return jnp.pad(array, ((0, 0), (0, missing), (0, 0))) if missing else array

    flat_qkv = map(flat, (q, k, v))
    o, last = _attention(*flat_qkv, log_decay, s0, reset, composed, False)
    return o[:, :time].reshape(v.shape), last


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attention(q, k, v, log_decay, s0, reset, composed, keep):
    """Returns o, the last state and, where `keep`, those at the starts of blocks."""
    cut = _Cut.of(q, s0)
    decay = _decay_input(cut, log_decay, reset)
    call = fold_vmap(functools.partial(_forward, cut, keep=keep), _shared(decay))
    o, last, *starts = call(decay, q, k, v, cut.diagonal(s0))
    return o, cut.off_diagonal(last), *starts


def _attention_forward(q, k, v, log_decay, s0, reset, composed, keep):
    arguments = q, k, v, log_decay, s0, reset
    # This function itself, so that what it does here can be differentiated again.
    *out, starts = _attention(*arguments, composed, True)
    return (*out, starts) if keep else tuple(out), (*arguments, starts)


def _attention_backward(composed, keep, residuals, cotangents):
    d_o, d_last = cotangents[:2]  # nothing depends on the starts but the rule above
    return *_adjoint(*residuals, d_o, d_last, composed), None


_attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(9,))
def _adjoint(q, k, v, log_decay, s0, reset, starts, d_o, d_last, composed):
    cut = _Cut.of(q, s0)
    decay = _decay_input(cut, log_decay, reset)
    call = fold_vmap(functools.partial(_backward, cut), _shared(decay))
    d_q, d_k, d_v, d_decay, d_s0 = call(
        decay, q, k, v, starts, d_o, cut.diagonal(d_last)
    )
    d_log_decay = _decay_gradient(cut, d_decay, log_decay, reset)
    return d_q, d_k, d_v, d_log_decay, cut.off_diagonal(d_s0)


def _adjoint_forward(*arguments):
    return _adjoint(*arguments), arguments[:9]


def _adjoint_backward(composed, arguments, cotangents):
    *inputs, s0, reset, starts, d_o, d_last = arguments
    heads = s0.shape[1]

    def on_flat(q, k, v, log_decay, s0):
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        o, last = composed(q, k, v, log_decay, s0, reset)
        return o.reshape(d_o.shape), last

    def adjoint(inputs, s0, d_o, d_last):
        return jax.vjp(on_flat, *inputs, s0)[1]((d_o, d_last))

    _, vjp = jax.vjp(adjoint, inputs, s0, d_o, d_last)
    d_inputs, d_s0, d_d_o, d_d_last = vjp(cotangents)
    return *d_inputs, d_s0, None, jnp.zeros_like(starts), d_d_o, d_d_last


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


class _Cut(NamedTuple):
    """How the arrays (B, T, H K) are cut: a block is (1, `steps`, `groups` * 128)."""

    batch: int
    time: int
    heads: int
    width: int
    groups: int
    steps: int

    @classmethod
    def of(cls, q, s0):
        batch, time, _ = q.shape
        heads, width = s0.shape[1:3]
        all_groups = heads * width // LANES
        most = GROUP_BYTES // q.dtype.itemsize
        groups = max(n for n in range(1, most + 1) if all_groups % n == 0)
        steps = CHUNK * min(CHUNKS, pl.cdiv(time, CHUNK))
        return cls(batch, time, heads, width, groups, steps)

    @property
    def blocks(self):
        return pl.cdiv(self.time, self.steps)

    @property
    def padded(self):
        """The time steps that all blocks together have."""
        return self.blocks * self.steps

    @property
    def per_group(self):
        """The heads of a group."""
        return LANES // self.width

    @property
    def in_block(self):
        """The heads of a block."""
        return self.groups * self.per_group

    @property
    def lanes(self):
        return self.groups * LANES

    def block(self, t, backwards):
        return self.blocks - 1 - t if backwards else t

    def diagonal(self, states):
        """(B, H, K, K) as (B, H K / 128, 128, 128), the heads on the diagonal."""
        n, width = self.per_group, self.width
        states = states.reshape(self.batch, -1, n, width, width)
        rows = [
            jnp.pad(
                states[:, :, i], ((0, 0),) * 3 + ((i * width, (n - 1 - i) * width),)
            )
            for i in range(n)
        ]
        return jnp.concatenate(rows, axis=2)

    def off_diagonal(self, states):
        """The inverse of `diagonal`."""
        pieces = []
        for i in range(self.per_group):
            lanes = slice(i * self.width, (i + 1) * self.width)
            pieces.append(states[:, :, lanes, lanes])
        shape = states.shape[0], self.heads, self.width, self.width
        return jnp.stack(pieces, axis=2).reshape(shape)

    def plane(self, backwards):
        shape = 1, self.steps, self.lanes
        return pl.BlockSpec(shape, lambda b, g, t: (b, self.block(t, backwards), g))

    def state(self):
        """Of states (B, groups, 128, 128)."""
        shape = 1, self.groups, LANES, LANES
        return pl.BlockSpec(shape, lambda b, g, t: (b, g, 0, 0))

    def starts(self, backwards):
        """Of the states at the starts of the blocks, (B, blocks, groups, 128, 128)."""
        shape = 1, 1, self.groups, LANES, LANES
        return pl.BlockSpec(
            shape, lambda b, g, t: (b, self.block(t, backwards), g, 0, 0)
        )

    def rows(self, count, backwards):
        """Of (B, H, count, steps of all blocks)."""
        shape = 1, self.in_block, count, self.steps
        return pl.BlockSpec(shape, lambda b, g, t: (b, g, 0, self.block(t, backwards)))

    def decay(self, decay, backwards):
        if decay.ndim == 1:
            return pl.BlockSpec(memory_space=pltpu.SMEM)
        return self.rows(2, backwards)

    def tables(self, decay):
        """Scratch for the exponentials of a constant decay: see `_Decays`."""
        if decay.ndim > 1:
            return ()
        return (
            pltpu.VMEM((self.in_block, CHUNK, CHUNK), jnp.float32),
            pltpu.VMEM((self.groups, CHUNK, LANES), jnp.float32),
            pltpu.VMEM((self.groups, CHUNK, LANES), jnp.float32),
            pltpu.VMEM((self.groups, 8, LANES), jnp.float32),
        )


def _decay_input(cut, log_decay, reset):
    """What the kernels take: (H,), or cumulative sums (B, H, 2, T) within chunks."""
    log_decay = jnp.maximum(log_decay.astype(jnp.float32), ZERO)
    if log_decay.ndim == 1 and reset is None and cut.time % CHUNK == 0:
        return log_decay
    log_decay = jnp.broadcast_to(log_decay, (cut.batch, cut.time, cut.heads))
    if reset is not None:
        zero = jnp.full_like(log_decay, ZERO, shape=())
        log_decay = jnp.where(reset[..., None], zero, log_decay)
    log_decay = jnp.swapaxes(log_decay, 1, 2)
    log_decay = jnp.pad(log_decay, ((0, 0), (0, 0), (0, cut.padded - cut.time)))
    coarse = jnp.round(log_decay * 64) / 64
    parts = jnp.stack([coarse, log_decay - coarse], axis=2)
    chunks = parts.reshape(cut.batch, cut.heads, 2, -1, CHUNK)
    return jnp.cumsum(chunks, axis=-1).reshape(parts.shape)


def _shared(decay):
    """The arguments of a kernel that have no batch."""
    return (0,) if decay.ndim == 1 else ()


def _decay_gradient(cut, d_decay, log_decay, reset):
    """From those of the sums (B, H, 1, T) to that of `log_decay`."""
    chunks = d_decay.reshape(cut.batch, cut.heads, -1, CHUNK)
    gradient = lax.cumsum(chunks, axis=3, reverse=True)
    gradient = gradient.reshape(cut.batch, cut.heads, -1)[..., : cut.time]
    gradient = jnp.swapaxes(gradient, 1, 2)
    if reset is not None:
        zero = jnp.zeros_like(gradient, shape=())
        gradient = jnp.where(reset[..., None], zero, gradient)
    if log_decay.ndim == 1:
        gradient = gradient.sum((0, 1))
    zeroed = log_decay < ZERO
    gradient = jnp.where(zeroed, jnp.zeros_like(gradient, shape=()), gradient)
    return gradient.astype(log_decay.dtype)


def _like(array, shape, dtype):
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(array).manual_axis_type
    )


def _call(kernel, cut, name, inputs, outputs, scratch, products):
    """`pl.pallas_call` on pairs (array, spec), for outputs (shape, spec)."""
    arrays = [array for array, _ in inputs] + [shape for shape, _ in outputs]
    groups = cut.heads * cut.width // LANES
    elements = cut.batch * cut.padded * groups * LANES
    return pl.pallas_call(
        functools.partial(kernel, cut),
        grid=(cut.batch, groups // cut.groups, cut.blocks),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * elements * LANES * products,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in arrays),
            transcendentals=0,
        ),
        name=name,
    )(*(array for array, _ in inputs))


def _forward(cut, decay, q, k, v, s0, *, keep):
    cut = cut._replace(batch=q.shape[0])
    plane = cut.plane(False)
    starts = cut.batch, cut.blocks, *s0.shape[1:]
    return _call(
        _forward_kernel,
        cut,
        "lightning_forward",
        [
            (decay, cut.decay(decay, False)),
            (q, plane),
            (k, plane),
            (v, plane),
            (s0, cut.state()),
        ],
        [
            (_like(v, v.shape, v.dtype), plane),
            (_like(s0, s0.shape, s0.dtype), cut.state()),
            *([(_like(s0, starts, s0.dtype), cut.starts(False))] if keep else []),
        ],
        [pltpu.VMEM((cut.groups, LANES, LANES), jnp.float32), cut.tables(decay)],
        4,
    )


def _backward(cut, decay, q, k, v, starts, d_o, d_last):
    cut = cut._replace(batch=q.shape[0])
    plane, state = cut.plane(True), (cut.groups, LANES, LANES)
    d_decay = cut.batch, cut.heads, 1, cut.padded
    return _call(
        _backward_kernel,
        cut,
        "lightning_backward",
        [
            (decay, cut.decay(decay, True)),
            (q, plane),
            (k, plane),
            (v, plane),
            (d_o, plane),
            (starts, cut.starts(True)),
            (d_last, cut.state()),
        ],
        [
            (_like(q, q.shape, q.dtype), plane),
            (_like(k, k.shape, k.dtype), plane),
            (_like(v, v.shape, v.dtype), plane),
            (_like(d_last, d_decay, jnp.float32), cut.rows(1, True)),
            (_like(d_last, d_last.shape, d_last.dtype), cut.state()),
        ],
        [
            pltpu.VMEM(state, jnp.float32),
            pltpu.VMEM((cut.steps // CHUNK, *state), v.dtype),
            cut.tables(decay),
        ],
        10,
    )


class _Decays(NamedTuple):
    """The exponentials of one chunk and one group of heads."""

    pairs: list[jax.Array]  # of D_ts for each head, 0 for s > t: (C, C)
    start: jax.Array  # of D_t0, in the lanes of each head: (C, 128)
    end: jax.Array  # of D_Cs, the same
    whole: jax.Array  # of D_C0: (1, 128)


def _iota(axis, shape=(CHUNK, LANES)):
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _masked(pairs):
    """The exponentials of D_ts; `pairs` may be anything where s > t."""
    inside = _iota(0, pairs.shape) >= _iota(1, pairs.shape)
    return jnp.exp(jnp.where(inside, pairs, -jnp.inf))


def _in_lanes(cut, values):
    """From arrays for each head of a group one that has each in the head's lanes."""
    out = values[0]
    for i, value in enumerate(values[1:], 1):
        out = jnp.where(_iota(1, out.shape) >= i * cut.width, value, out)
    return out


def _of_head(cut, array, i):
    """What is in the lanes of head i of a group, and 0 elsewhere."""
    if cut.per_group == 1:
        return array
    head = _iota(1, array.shape) // cut.width
    return jnp.where(head == i, array, jnp.zeros_like(array))


def _diagonal(cut, state):
    """The blocks of the heads in a product of 128 by 128 lanes."""
    if cut.per_group == 1:
        return state
    same = _iota(0, state.shape) // cut.width == _iota(1, state.shape) // cut.width
    return jnp.where(same, state, 0.0)


def _write_tables(cut, decay, tables):
    """The exponentials of a constant decay (H,)."""
    pairs, start, end, whole = tables
    first = pl.program_id(1) * cut.in_block
    for g in range(cut.groups):
        of_heads = [decay[first + g * cut.per_group + i] for i in range(cut.per_group)]
        step = _iota(0).astype(jnp.float32)
        apart = (_iota(0) - _iota(1)).astype(jnp.float32)
        for i, log in enumerate(of_heads):
            pairs[g * cut.per_group + i] = _masked(log * apart)
        log = _in_lanes(cut, [jnp.full((CHUNK, LANES), log) for log in of_heads])
        start[g] = jnp.exp(log * (step + 1))
        end[g] = jnp.exp(log * (CHUNK - 1 - step))
        whole[g] = jnp.exp(log[:8] * CHUNK)


def _decays(cut, decay, tables, g, begin):
    """The exponentials of group g and the chunk that begins at `begin`."""
    heads = range(g * cut.per_group, (g + 1) * cut.per_group)
    if tables:
        pairs, start, end, whole = tables
        return _Decays([pairs[h] for h in heads], start[g], end[g], whole[g, :1])
    pairs, columns, totals = [], [], []
    for h in heads:
        rows = [decay[0, h, i : i + 1, pl.ds(begin, CHUNK)] for i in range(2)]
        rows = [jnp.broadcast_to(row, (LANES, CHUNK)) for row in rows]
        column = [jnp.transpose(row) for row in rows]
        coarse, fine = (c - r for c, r in zip(column, rows, strict=True))
        pairs.append(_masked(coarse + fine))
        columns.append(column)
        totals.append([c[-1:] for c in column])
    coarse, fine = (_in_lanes(cut, part) for part in zip(*columns, strict=True))
    whole, rest = (_in_lanes(cut, part) for part in zip(*totals, strict=True))
    return _Decays(
        pairs,
        jnp.exp(coarse + fine),
        jnp.exp((whole - coarse) + (rest - fine)),
        jnp.exp(whole + rest),
    )


_NN, _NT, _TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


def _dot(a, b, contract):
    """A product on the matrix unit; factors in float32 are taken as they are."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (contract, ((), ())), precision=exact, preferred_element_type=jnp.float32
    )


def _wide(array):
    return array.astype(jnp.float32)


def _chunk(cut, ref, block, g, begin):
    """A chunk of one group, (C, 128); zeros beyond the end of time."""
    rows = pl.ds(begin, CHUNK)
    array = ref[0, rows, g * LANES : (g + 1) * LANES]
    if ref.shape[1] * cut.blocks == cut.time:
        return array
    step = block * cut.steps + begin + _iota(0)
    return jnp.where(step < cut.time, array, jnp.zeros_like(array))


def _written(cut, k, v, decays, state):
    """The state after a chunk."""
    keys = (_wide(k) * decays.end).astype(v.dtype)
    return decays.whole * state + _diagonal(cut, _dot(keys, v, _TN))


def _forward_kernel(cut, decay, q, k, v, s0, o, last, *starts_and_scratch):
    *starts, state, tables = starts_and_scratch
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        state[...] = s0[0]
        if tables:
            _write_tables(cut, decay, tables)

    for ref in starts:
        ref[0, 0] = state[...]

    def chunk(begin, states):
        after = []
        for g in range(cut.groups):
            decays = _decays(cut, decay, tables, g, begin)
            q_, k_, v_ = (_chunk(cut, ref, block, g, begin) for ref in (q, k, v))
            out = _dot(q_, states[g].astype(v_.dtype), _NN) * decays.start
            for i, pairs in enumerate(decays.pairs):
                weights = _dot(_of_head(cut, q_, i), k_, _NT) * pairs
                out += _dot(weights.astype(v_.dtype), _of_head(cut, v_, i), _NN)
            lanes = slice(g * LANES, (g + 1) * LANES)
            o[0, pl.ds(begin, CHUNK), lanes] = out.astype(o.dtype)
            after.append(_written(cut, k_, v_, decays, states[g]))
        return after

    # All chunks of a block in one piece: the more of them, the more can overlap.
    states = [state[g] for g in range(cut.groups)]
    for begin in range(0, cut.steps, CHUNK):
        states = chunk(begin, states)
    for g in range(cut.groups):
        state[g] = states[g]

    @pl.when(block == cut.blocks - 1)
    def _():
        last[0] = state[...]


def _backward_kernel(
    cut,
    decay,
    q,
    k,
    v,
    d_o,
    starts,
    d_last,
    d_q,
    d_k,
    d_v,
    d_decay,
    d_s0,
    d_state,
    states,
    tables,
):
    step = pl.program_id(2)
    block = cut.blocks - 1 - step

    @pl.when(step == 0)
    def _():
        d_state[...] = d_last[0]
        if tables:
            _write_tables(cut, decay, tables)

    def again(begin, before):
        """Writes down the states before a chunk and returns those after it."""
        after = []
        for g in range(cut.groups):
            states[begin // CHUNK, g] = before[g].astype(states.dtype)
            k_, v_ = (_chunk(cut, ref, block, g, begin) for ref in (k, v))
            decays = _decays(cut, decay, tables, g, begin)
            after.append(_written(cut, k_, v_, decays, before[g]))
        return after

    def sweep(begin, d_after):
        d_before = []
        for g in range(cut.groups):
            decays = _decays(cut, decay, tables, g, begin)
            q_, k_, v_, d_o_ = (
                _chunk(cut, ref, block, g, begin) for ref in (q, k, v, d_o)
            )
            dtype, before = v_.dtype, states[begin // CHUNK, g]
            narrow = d_after[g].astype(dtype)
            dq = _dot(d_o_, before, _NT) * decays.start
            dk = _dot(v_, narrow, _NT) * decays.end
            dv = _dot(k_, narrow, _NN) * decays.end
            of_start, of_end = _wide(q_) * dq, _wide(k_) * dk
            to_last = of_end + decays.whole * d_after[g] * _wide(before)
            for h, pairs in enumerate(decays.pairs):
                q_h, k_h, d_o_h = (_of_head(cut, x, h) for x in (q_, k_, d_o_))
                products = _dot(q_h, k_, _NT)
                d_weights = _dot(d_o_h, v_, _NT) * pairs
                weights = (products * pairs).astype(dtype)
                narrow_d = d_weights.astype(dtype)
                dq += _dot(narrow_d, k_h, _NN)
                dk += _dot(narrow_d, q_h, _TN)
                dv += _dot(weights, d_o_h, _TN)
                by_pair = jnp.where(_iota(0) > _iota(1), products * d_weights, 0.0)
                by_step = _of_head(cut, of_start - of_end, h) + by_pair
                row = jnp.sum(jnp.transpose(by_step), axis=0, keepdims=True)
                row -= jnp.sum(by_pair, axis=0, keepdims=True)
                total = jnp.sum(_of_head(cut, to_last, h), axis=0, keepdims=True).sum(
                    axis=1, keepdims=True
                )
                row += jnp.where(_iota(1, row.shape) == CHUNK - 1, total, 0.0)
                d_decay[0, g * cut.per_group + h, :, pl.ds(begin, CHUNK)] = row
            lanes = slice(g * LANES, (g + 1) * LANES)
            for ref, gradient in ((d_q, dq), (d_k, dk), (d_v, dv)):
                ref[0, pl.ds(begin, CHUNK), lanes] = gradient.astype(ref.dtype)
            queries = (_wide(q_) * decays.start).astype(dtype)
            d_before.append(
                decays.whole * d_after[g] + _diagonal(cut, _dot(queries, d_o_, _TN))
            )
        return d_before

    begins = range(0, cut.steps, CHUNK)
    before = [starts[0, 0, g] for g in range(cut.groups)]
    for begin in begins:
        before = again(begin, before)
    d_states = [d_state[g] for g in range(cut.groups)]
    for begin in reversed(begins):
        d_states = sweep(begin, d_states)
    for g in range(cut.groups):
        d_state[g] = d_states[g]

    @pl.when(step == cut.blocks - 1)
    def _():
        d_s0[0] = d_state[...]
