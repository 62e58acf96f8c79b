"""The diagonal linear recurrence on TPU: one kernel forward, one backward.

    h_t = a_t * h_{t-1} + x_t            (elementwise)

A block is a piece (chains, steps, width) of the arrays (B, T, D) as they are: no
transpose, no padding. Blocks follow one another along time, the state waits in VMEM. A
loop reads one time step of one sequence as a row, which fills a register when it is
1024 channels wide, and keeps several sequences in flight, for one alone waits on its
own additions. Below 512 channels a row would leave most of the register empty: there
the time steps of a tile are scanned in log2 of their number ("log-steps").

The backward pass is one sweep against the direction of the scan,

    g_t = dh_t + c_t,    dx_t = g_t,    c_{t-1} = conj(a_t) g_t,

where c ends as dh0. The gradient of the decay is written one step late, when h_{t-1} is
loaded anyway: d log a_t = c_{t-1} h_{t-1} and da_t = g_t conj(h_{t-1}).

Complex numbers are planes (re, im): every "planes" below is a tuple of one or of two
arrays of one shape, and gradients are those of the planes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Planes = tuple[jax.Array, ...]


class Tiles(NamedTuple):
    """How the arrays are cut: a block is (chains, steps, width) of (B, T, D)."""

    chains: int  # sequences in flight, a divisor of B
    steps: int  # time steps of a block
    width: int  # channels of a block
    by_rows: bool  # one time step at a time; False: log-steps within a tile


class Limits(NamedTuple):
    """What the choice of tiles may use on one kind of device."""

    width: int = 1024  # channels of a block: a register as one row
    row_channels: int = 2048  # in flight by rows, over all chains
    tile_channels: int = 1024  # in flight by log-steps
    rows_from: int = 512  # channels from which rows are faster than log-steps
    steps: int = 512
    buffers: int = 12 << 20  # bytes of all blocks, twice each, of 16 MiB of VMEM
    cores: int = 1  # that share the blocks of one call


# Found by counting the instructions of the compiled kernels: tests/aot/tpu.py.
LIMITS = {
    "TPU v5 lite": Limits(),
    "TPU v5p": Limits(cores=2),
    "TPU v5": Limits(cores=2),
    "TPU v6 lite": Limits(),
    "TPU7x": Limits(),
}


def device_kind() -> str:
    """The kind of device that is compiled for, a key of LIMITS."""
    return jax.devices()[0].device_kind


def choose_tiles(
    shape: tuple[int, int, int], bytes_per_element: int, device_kind: str
) -> Tiles:
    """Returns the tiles for arrays of `shape` (B, T, D).

    `bytes_per_element` sums over all arrays of that shape that a kernel touches.
    """
    batch, time, width = shape
    limits = LIMITS.get(device_kind, Limits())
    if width > limits.width:
        blocks = pl.cdiv(width, limits.width)
        width = pl.cdiv(pl.cdiv(width, blocks), 128) * 128
    by_rows = width >= limits.rows_from or time < 16
    lanes = pl.cdiv(width, 128) * 128
    channels = limits.row_channels if by_rows else limits.tile_channels
    most = max(channels // lanes, 1)
    chains = max(n for n in range(1, most + 1) if batch % n == 0)
    if batch // chains * pl.cdiv(shape[2], width) % limits.cores:
        if chains % 2 == 0:
            chains //= 2
        elif width % 256 == 0:
            width, lanes = width // 2, lanes // 2
    steps = limits.steps
    block = 2 * chains * lanes * bytes_per_element
    while steps > 16 and block * steps > limits.buffers:
        steps //= 2
    return Tiles(chains, steps, width, by_rows)


def refuse(
    x: Planes,
    decay: Planes,
    h0: Planes,
    reset: jax.Array | None,
    *,
    log: bool,
    reverse: bool,
) -> str | None:
    """Returns why `linear_scan` cannot run here on these arguments, or None."""
    del h0, reset, log, reverse
    if jax.default_backend() != "tpu":
        return "it is a kernel for TPU"
    for name, planes in (("x", x), ("the decay", decay)):
        for plane in planes:
            if plane.dtype not in (jnp.float32, jnp.bfloat16):
                return f"{name} is {plane.dtype}, wanted float32, complex64 or bfloat16"
    return None


def linear_scan(
    x: Planes,
    decay: Planes,
    h0: Planes,
    reset: jax.Array | None = None,
    *,
    log: bool = False,
    reverse: bool = False,
    tiles: Tiles | None = None,
) -> tuple[Planes, Planes]:
    """Runs h_t = a_t h_{t-1} + x_t over time, on the TPU.

    Args:
      x: planes (B, T, D), float32 or bfloat16, T >= 1. Of a program's own arguments
        XLA changes the layout first where T is no multiple of 8.
      decay: planes of a, or of log a where `log`: (B, T, D) or (D,), float32 or
        bfloat16. One plane may go with two of x.
      h0: planes (B, D) float32, as many as x has.
      reset: (B, T) bool; True clears the state before x_t is added.
      log: whether `decay` is the logarithm.
      reverse: scan from the last step to the first.
      tiles: how to cut the arrays, instead of the choice for this device.

    Inside a `shard_map` that checks it, all arrays must vary over the same mesh axes.

    Returns:
      h, planes (B, T, D) in the dtype of x, and the last state, planes (B, D) float32.
      Differentiable in x, decay and h0, in reverse mode, any number of times.
    """
    constant = decay[0].ndim == 1
    if log and (constant or len(decay) == 2):
        decay, log = _exponential(decay), False
    if constant:
        decay = tuple(plane.astype(jnp.float32) for plane in decay)
    return _scan(x, decay, h0, reset, log, reverse, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _scan(x, decay, h0, reset, log, reverse, tiles):
    call = functools.partial(_forward, log=log, reverse=reverse, tiles=tiles)
    return _fold_vmap(call, decay)(x, decay, h0, reset)


def _scan_forward(x, decay, h0, reset, log, reverse, tiles):
    h, last = _scan(x, decay, h0, reset, log, reverse, tiles)
    return (h, last), (decay, h, h0, reset)


def _scan_backward(log, reverse, tiles, residuals, cotangents):
    decay, h, h0, reset = residuals
    dx, d_decay, dh0 = _adjoint(*cotangents, decay, h, h0, reset, log, reverse, tiles)
    return dx, d_decay, dh0, None


_scan.defvjp(_scan_forward, _scan_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _adjoint(d_h, d_last, decay, h, h0, reset, log, reverse, tiles):
    call = functools.partial(_backward, log=log, reverse=reverse, tiles=tiles)
    return _fold_vmap(call, decay)(d_h, d_last, decay, h, h0, reset)


def _fold_vmap(call, decay):
    """Lets `vmap` of a kernel be the kernel on a larger batch.

    That cannot be where the decay is constant in time: it has no batch, and its
    gradient is a sum over the batch. There the mapped axis is taken one by one.
    """
    mappable = jax.custom_batching.custom_vmap(call)

    @mappable.def_vmap
    def _(size, is_mapped, *arrays):
        leaves, tree = jax.tree.flatten(arrays)
        flags = jax.tree.leaves(is_mapped)

        def fold(leaf, flag):
            leaf = leaf if flag else jnp.broadcast_to(leaf, (size, *leaf.shape))
            return leaf.reshape(-1, *leaf.shape[2:])

        def one_of(mapped):
            mapped = iter(mapped)
            chosen = [
                next(mapped) if flag else leaf
                for leaf, flag in zip(leaves, flags, strict=True)
            ]
            return mappable(*jax.tree.unflatten(tree, chosen))

        if decay[0].ndim == 1:
            mapped = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
            out = lax.map(one_of, mapped)
        else:
            out = mappable(*jax.tree.unflatten(tree, map(fold, leaves, flags)))
            out = jax.tree.map(
                lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), out
            )
        return out, jax.tree.map(lambda _: True, out)

    return mappable


def _adjoint_forward(d_h, d_last, decay, h, h0, reset, log, reverse, tiles):
    arguments = d_h, d_last, decay, h, h0, reset
    return _adjoint(*arguments, log, reverse, tiles), arguments


def _adjoint_backward(log, reverse, tiles, arguments, cotangents):
    *differentiable, reset = arguments

    def composed(d_h, d_last, decay, h, h0):
        return _adjoint_by_scan(d_h, d_last, decay, h, h0, reset, log, reverse, tiles)

    return *jax.vjp(composed, *differentiable)[1](cotangents), None


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _adjoint_by_scan(d_h, d_last, decay, h, h0, reset, log, reverse, tiles):
    """What `_adjoint` computes, from a scan and products: only to be differentiated.

    The sweep g_t = dh_t + conj(a_{t+1}) g_{t+1} is the scan whose decay comes one step
    late, started from d_last with a decay of one.
    """
    first, last = (-1, 0) if reverse else (0, -1)

    def wide(plane):
        return plane.astype(jnp.float32)

    a = tuple(map(wide, decay))
    a = tuple(jnp.broadcast_to(jnp.exp(p) if log else p, d_h[0].shape) for p in a)
    if reset is not None:
        a = tuple(jnp.where(reset[..., None], jnp.zeros_like(p), p) for p in a)

    def shift(rows, planes, by):
        """Moves the planes along time, in scan order, and lets `rows` come in."""
        forwards = (by == 1) != reverse
        return tuple(
            jnp.concatenate([row[:, None], p[:, :-1]], axis=1)
            if forwards
            else jnp.concatenate([p[:, 1:], row[:, None]], axis=1)
            for row, p in zip(rows, planes, strict=True)
        )

    conjugate = (a[0], -a[1]) if len(a) == 2 else a
    one = tuple(jnp.full_like(p[:, 0], 1 - i) for i, p in enumerate(a))
    g, _ = _scan(
        tuple(map(wide, d_h)),
        shift(one, conjugate, -1),
        d_last,
        None,
        False,
        not reverse,
        tiles,
    )
    dh0 = _multiply(
        tuple(p[:, first] for p in conjugate), tuple(p[:, first] for p in g)
    )
    previous = shift(h0, tuple(map(wide, h)), 1)
    d_decay = _decay_gradient(g, previous, len(decay))
    if log:
        d_decay = _multiply(a, d_decay)
    elif reset is not None:
        d_decay = tuple(
            jnp.where(reset[..., None], jnp.zeros_like(p), p) for p in d_decay
        )
    if decay[0].ndim == 1:
        d_decay = tuple(jnp.sum(p, axis=(0, 1)) for p in d_decay)
    dx = tuple(p.astype(d_h[0].dtype) for p in g)
    return dx, tuple(p.astype(decay[0].dtype) for p in d_decay), dh0


def _exponential(log_a):
    modulus, *phase = (plane.astype(jnp.float32) for plane in log_a)
    modulus = jnp.exp(modulus)
    if not phase:
        return (modulus,)
    return modulus * jnp.cos(*phase), modulus * jnp.sin(*phase)


def _multiply(a, h):
    """The product of two numbers as planes; `a` may be real."""
    if len(a) == 1:
        return tuple(a[0] * p for p in h)
    (a_re, a_im), (h_re, h_im) = a, h
    return a_re * h_re - a_im * h_im, a_re * h_im + a_im * h_re


def _multiply_conjugate(a, h):
    return _multiply(a if len(a) == 1 else (a[0], -a[1]), h)


def _decay_gradient(g, previous, planes):
    """`g conj(previous)`, or its real part where the decay has one plane only."""
    real = sum(
        (p * q for p, q in zip(g[1:], previous[1:], strict=True)), g[0] * previous[0]
    )
    if planes == 1:
        return (real,)
    return real, g[1] * previous[0] - g[0] * previous[1]


def _add(a, b):
    return tuple(p + q for p, q in zip(a, b, strict=True))


class _Cut(NamedTuple):
    """The grid of one call, and the blocks of its arrays."""

    batch: int
    time: int
    width: int
    tiles: Tiles
    rows: int  # time steps of a tile: what one turn of the loop takes
    steps: int  # of a block, `rows` or a multiple of it
    backwards: bool  # whether the sweep runs from the last time step to the first

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.time, self.steps)

    @property
    def grid(self) -> tuple[int, int, int]:
        batches = self.batch // self.tiles.chains
        return batches, pl.cdiv(self.width, self.tiles.width), self.blocks

    def block(self, step: Any) -> Any:
        """The block of time that the sweep has at a step of the grid."""
        return self.blocks - 1 - step if self.backwards else step

    def plane(self) -> pl.BlockSpec:
        shape = self.tiles.chains, self.steps, self.tiles.width
        return pl.BlockSpec(shape, lambda b, d, t: (b, self.block(t), d))

    def edge(self) -> pl.BlockSpec:
        """The tile that the sweep reaches after a block: of `h`, for its last row."""
        per_block = self.steps // self.rows
        end = pl.cdiv(self.time, self.rows) - 1

        def index(b, d, t):
            if self.backwards:
                return b, jnp.maximum(self.block(t) * per_block - 1, 0), d
            return b, jnp.minimum((self.block(t) + 1) * per_block, end), d

        return pl.BlockSpec((self.tiles.chains, self.rows, self.tiles.width), index)

    def state(self) -> pl.BlockSpec:
        """Of states, given as (B, 1, D)."""
        shape = self.tiles.chains, 1, self.tiles.width
        return pl.BlockSpec(shape, lambda b, d, t: (b, 0, d))

    def constant(self) -> pl.BlockSpec:
        """Of a decay (D,), given as (1, D)."""
        return pl.BlockSpec((1, self.tiles.width), lambda b, d, t: (0, d))

    def total(self) -> pl.BlockSpec:
        """Of the sum over the sequences of a block and time: (B / chains, 1, D)."""
        return pl.BlockSpec((None, 1, self.tiles.width), lambda b, d, t: (b, 0, d))

    def keep(self) -> pl.BlockSpec:
        """Of the factor that a reset puts on the state, one scalar for each step."""
        shape = self.tiles.chains, None, 1, self.steps
        return pl.BlockSpec(
            shape,
            lambda b, d, t: (b, self.block(t), 0, 0),
            memory_space=pltpu.SMEM,
        )

    def carried(self) -> Any:
        """Scratch for one row of each chain, kept from block to block."""
        return pltpu.VMEM((self.tiles.chains, 1, self.tiles.width), jnp.float32)

    def stages(self, planes: Planes) -> tuple[Any, ...]:
        """Scratch through which rows of narrow dtypes go; their refs have no rows.

        A packed row cannot be addressed alone, so a tile of it is widened here first.
        """
        shape = self.tiles.chains, self.rows, self.tiles.width
        if not self.tiles.by_rows or planes[0].dtype == jnp.float32:
            return (None,) * len(planes)
        return tuple(pltpu.VMEM(shape, jnp.float32) for _ in planes)

    def sweep(self, tile: Callable, carry: Any) -> Any:
        """Takes `carry` through `tile(start, rows, carry)` over one block, in order.

        The last block of time may be shorter: it has fewer tiles, and a last one of
        fewer rows. `start` is where a tile begins within the block.
        """
        per_block = self.steps // self.rows
        length = self.time - (self.blocks - 1) * self.steps
        tiles, rest = divmod(length, self.rows)
        is_last = self.block(pl.program_id(2)) == self.blocks - 1

        def full(carry):
            if self.blocks == 1 and tiles == 1:
                return tile(0, self.rows, carry)
            ragged = tiles != per_block
            count = jnp.where(is_last, tiles, per_block) if ragged else per_block
            pairs = not self.tiles.by_rows and not ragged and per_block % 2 == 0

            def body(i, carry):
                i = count - 1 - i if self.backwards else i
                return tile(pl.multiple_of(i * self.rows, self.rows), self.rows, carry)

            return lax.fori_loop(0, count, body, carry, unroll=2 if pairs else 1)

        def shorter(carry):
            if rest == 0:
                return carry
            short = functools.partial(tile, tiles * self.rows, rest)
            return lax.cond(is_last, short, lambda carry: carry, carry)

        return full(shorter(carry)) if self.backwards else shorter(full(carry))

    def length(self) -> Any:
        """How many time steps this block has."""
        length = self.time - (self.blocks - 1) * self.steps
        if self.blocks == 1:
            return length
        is_last = self.block(pl.program_id(2)) == self.blocks - 1
        return jnp.where(is_last, length, self.steps)

    def order(self, rows: int) -> Sequence[int]:
        return range(rows)[::-1] if self.backwards else range(rows)


def _cut(planes: Sequence[Planes], backwards: bool, tiles: Tiles | None) -> _Cut:
    """Cuts arrays of one shape."""
    batch, time, width = planes[0][0].shape
    dtypes = [plane.dtype for some in planes for plane in some]
    if tiles is None:
        tiles = choose_tiles(
            (batch, time, width),
            sum(dtype.itemsize for dtype in dtypes),
            device_kind(),
        )
    packed = any(dtype != jnp.float32 for dtype in dtypes)
    alone = tiles.by_rows and tiles.chains == 1  # a longer tile has more to overlap
    rows = min(time, 16 if packed or alone else 8)
    steps = max(min(tiles.steps, time) // rows, 1) * rows
    if rows % 8:  # fewer time steps than a tile has
        tiles = tiles._replace(by_rows=True)
    return _Cut(batch, time, width, tiles, rows, steps, backwards)


def _call(kernel, name, cut, inputs, outputs, scratch, transcendental):
    """`pl.pallas_call` on pairs (arrays, specs), for outputs (shapes, specs)."""
    arrays = jax.tree.leaves(([a for a, _ in inputs], [s for s, _ in outputs]))
    # What appears twice is read twice only at its edges.
    planes = list({id(array): array for array in arrays}.values())
    elements = cut.batch * cut.time * cut.width
    return pl.pallas_call(
        functools.partial(kernel, cut),
        grid=cut.grid,
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * elements * len(planes),
            bytes_accessed=sum(p.size * p.dtype.itemsize for p in planes),
            transcendentals=elements * transcendental,
        ),
        name=name,
    )(*(array for array, _ in inputs))


def _shaped(planes, shape=None, dtype=None):
    """The planes of an output like `planes`."""
    return tuple(
        jax.ShapeDtypeStruct(
            p.shape if shape is None else shape,
            p.dtype if dtype is None else dtype,
            manual_axis_type=jax.typeof(p).manual_axis_type,
        )
        for p in planes
    )


def _decay_input(decay, cut):
    if decay[0].ndim == 1:
        return tuple(p[None] for p in decay), (cut.constant(),) * len(decay)
    return decay, (cut.plane(),) * len(decay)


def _keep_input(reset, cut):
    """A block of the scalar memory has the length of a block: the mask is padded."""
    if reset is None:
        return (), ()
    missing = cut.blocks * cut.steps - cut.time
    keep = 1 - jnp.pad(reset, ((0, 0), (0, missing))).astype(jnp.float32)
    return (keep.reshape(cut.batch, cut.blocks, 1, cut.steps),), (cut.keep(),)


def _state_input(state, cut):
    return tuple(p[:, None] for p in state), (cut.state(),) * len(state)


def _forward(x, decay, h0, reset, *, log, reverse, tiles):
    planes = [x, x] if decay[0].ndim == 1 else [x, x, decay]
    cut = _cut(planes, backwards=reverse, tiles=tiles)
    plane, state = (cut.plane(),) * len(x), (cut.state(),) * len(x)
    shape = (cut.batch, 1, cut.width)
    kernel = _forward_by_rows if cut.tiles.by_rows else _forward_by_log_steps
    h, last = _call(
        functools.partial(kernel, log),
        "linear_scan_forward",
        cut,
        [
            _keep_input(reset, cut),
            _decay_input(decay, cut),
            (x, plane),
            _state_input(h0, cut),
        ],
        [(_shaped(x), plane), (_shaped(x, shape, jnp.float32), state)],
        [
            tuple(cut.carried() for _ in x),
            cut.stages(decay),
            cut.stages(x),
            cut.stages(x),
        ],
        log,
    )
    return h, tuple(p[:, 0] for p in last)


def _backward(d_h, d_last, decay, h, h0, reset, *, log, reverse, tiles):
    constant = decay[0].ndim == 1
    planes = [d_h, d_h, h] if constant else [d_h, d_h, h, decay, decay]
    cut = _cut(planes, backwards=not reverse, tiles=tiles)
    plane, state = (cut.plane(),) * len(h), (cut.state(),) * len(h)
    shape = (cut.batch, 1, cut.width)
    if constant:
        total = (cut.grid[0], 1, cut.width)
        d_decay_output = _shaped(decay, total), (cut.total(),) * len(decay)
    else:
        d_decay_output = _shaped(decay), (cut.plane(),) * len(decay)
    kernel = _backward_by_rows if cut.tiles.by_rows else _backward_by_log_steps
    edges = (h, (cut.edge(),) * len(h)) if cut.blocks > 1 else ((), ())
    dx, d_decay, dh0 = _call(
        functools.partial(kernel, log),
        "linear_scan_backward",
        cut,
        [
            _keep_input(reset, cut),
            _decay_input(decay, cut),
            (d_h, plane),
            (h, plane),
            edges,
            _state_input(h0, cut),
            _state_input(d_last, cut),
        ],
        [(_shaped(d_h), plane), d_decay_output, (_shaped(h0, shape), state)],
        [
            tuple(cut.carried() for _ in h),
            cut.stages(decay),
            cut.stages(d_h),
            cut.stages(h),
            cut.stages(d_h),
            cut.stages(decay),
        ],
        log,
    )
    if constant:
        d_decay = tuple(jnp.sum(p, axis=(0, 1)) for p in d_decay)
    return dx, d_decay, tuple(p[:, 0] for p in dh0)


def _rows(refs, stages, n, start, rows):
    """Returns a function from i to row i of a tile, as float32 planes (1, width)."""
    if refs[0].ndim == 2:  # constant in time
        row = tuple(ref[...] for ref in refs)
        return lambda i: row
    if stages[0] is None:
        return lambda i: tuple(ref[n, pl.ds(start + i, 1), :] for ref in refs)
    for ref, stage in zip(refs, stages, strict=True):
        stage[n, :rows] = ref[n, pl.ds(start, rows), :].astype(jnp.float32)
    return lambda i: tuple(stage[n, i : i + 1, :] for stage in stages)


def _write_row(refs, stages, n, start, i, row):
    for ref, stage, plane in zip(refs, stages, row, strict=True):
        if stage is None:
            ref[n, pl.ds(start + i, 1), :] = plane
        else:
            stage[n, i : i + 1, :] = plane


def _write_back(refs, stages, n, start, rows):
    """Narrows a tile that was written by rows."""
    for ref, stage in zip(refs, stages, strict=True):
        if stage is not None:
            ref[n, pl.ds(start, rows), :] = stage[n, :rows].astype(ref.dtype)


def _forward_by_rows(
    log,
    cut,
    keep,
    decay,
    x,
    h0,
    out,
    last,
    carried,
    decay_stages,
    x_stages,
    out_stages,
):
    chains = range(cut.tiles.chains)

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, state in zip(carried, h0, strict=True):
            ref[...] = state[...]

    def tile(start, rows, h):
        h = list(h)
        decay_at = [_rows(decay, decay_stages, n, start, rows) for n in chains]
        x_at = [_rows(x, x_stages, n, start, rows) for n in chains]
        for i in cut.order(rows):
            for n in chains:
                a = decay_at[n](i)
                if log:
                    a = tuple(map(jnp.exp, a))
                for mask in keep:
                    a = tuple(p * mask[n, 0, start + i] for p in a)
                h[n] = _add(_multiply(a, h[n]), x_at[n](i))
                _write_row(out, out_stages, n, start, i, h[n])
        for n in chains:
            _write_back(out, out_stages, n, start, rows)
        return tuple(h)

    h = cut.sweep(tile, tuple(tuple(ref[n] for ref in carried) for n in chains))
    for n in chains:
        for ref, plane in zip(carried, h[n], strict=True):
            ref[n] = plane

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, state in zip(last, carried, strict=True):
            ref[...] = state[...]


def _backward_by_rows(
    log,
    cut,
    keep,
    decay,
    d_h,
    h,
    edges,
    h0,
    d_last,
    dx,
    d_decay,
    dh0,
    carried,
    decay_stages,
    d_h_stages,
    h_stages,
    dx_stages,
    d_decay_stages,
):
    chains = range(cut.tiles.chains)
    constant = decay[0].ndim == 2
    ahead = -1 if cut.backwards else 1  # from a row to the next one of the sweep

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, state in zip(carried, d_last, strict=True):
            ref[...] = state[...]
        if constant:
            for ref in d_decay:
                ref[...] = jnp.zeros_like(ref)

    def write_late(n, start, i, gradient):
        """Writes the gradient of the row before row i of a tile, in sweep order.

        That of the first row belongs to the tile before. Where there is none it lands
        in a row of this block that is yet to be written.
        """
        before = i - ahead
        for ref, stage, plane in zip(d_decay, d_decay_stages, gradient, strict=True):
            if stage is not None:
                row = before % cut.rows
                stage[n, row : row + 1, :] = plane
            elif isinstance(start, int):
                row = min(max(start + before, 0), cut.steps - 1)
                ref[n, row : row + 1, :] = plane
            else:
                row = jnp.clip(start + before, 0, cut.steps - 1)
                ref[n, pl.ds(row, 1), :] = plane

    def write_back_late(n, start):
        start = start - ahead * cut.rows
        end = cut.steps - cut.rows
        if isinstance(start, int):
            start = min(max(start, 0), end)
        else:
            start = pl.multiple_of(jnp.clip(start, 0, end), cut.rows)
        _write_back(d_decay, d_decay_stages, n, start, cut.rows)

    def tile(start, rows, carry):
        c, late, total = map(list, carry)
        decay_at = [_rows(decay, decay_stages, n, start, rows) for n in chains]
        d_h_at = [_rows(d_h, d_h_stages, n, start, rows) for n in chains]
        h_at = [_rows(h, h_stages, n, start, rows) for n in chains]
        for step, i in enumerate(cut.order(rows)):
            for n in chains:
                gradient = _decay_gradient(late[n], h_at[n](i), len(decay))
                if constant:
                    total[n] = _add(total[n], gradient)
                else:
                    write_late(n, start, i, gradient)
                    if step == 0:
                        write_back_late(n, start)
                g = _add(d_h_at[n](i), c[n])
                _write_row(dx, dx_stages, n, start, i, g)
                a = decay_at[n](i)
                if log:
                    a = tuple(map(jnp.exp, a))
                kept = g
                for mask in keep:
                    a = tuple(p * mask[n, 0, start + i] for p in a)
                    kept = tuple(p * mask[n, 0, start + i] for p in g)
                c[n] = _multiply_conjugate(a, g)
                late[n] = c[n] if log else kept
        for n in chains:
            _write_back(dx, dx_stages, n, start, rows)
        return tuple(c), tuple(late), tuple(total)

    row = jnp.zeros((1, cut.tiles.width), jnp.float32)
    zero = (row,) * len(h)
    c = tuple(tuple(ref[n] for ref in carried) for n in chains)
    total = ((row,) * len(decay) if constant else (),) * len(chains)
    c, late, total = cut.sweep(tile, (c, (zero,) * len(chains), total))

    end = 0 if cut.backwards else cut.length() - 1
    for n in chains:
        for ref, plane in zip(carried, c[n], strict=True):
            ref[n] = plane
        gradient = _decay_gradient(late[n], _edge(cut, edges, h0, n), len(decay))
        if constant:
            for ref, sum_, plane in zip(d_decay, total[n], gradient, strict=True):
                ref[...] += sum_ + plane
        else:
            start = _start_of_tile(end, cut.rows)
            for ref, stage, plane in zip(
                d_decay, d_decay_stages, gradient, strict=True
            ):
                if stage is None:
                    ref[n, pl.ds(end, 1), :] = plane
                else:
                    stage[n, pl.ds(end - start, 1), :] = plane
            _write_back(d_decay, d_decay_stages, n, start, cut.rows)

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, state in zip(dh0, carried, strict=True):
            ref[...] = state[...]


def _start_of_tile(row, rows):
    if isinstance(row, int):
        return row // rows * rows
    return pl.multiple_of(row - lax.rem(row, rows), rows)


def _edge(cut, edges, h0, n):
    """The state (1, width) before the step at which the sweep leaves this block."""
    first = tuple(ref[n] for ref in h0)
    if not edges:
        return first
    row = cut.rows - 1 if cut.backwards else 0
    rows = tuple(ref[n].astype(jnp.float32)[row : row + 1] for ref in edges)
    at_end = pl.program_id(2) == cut.blocks - 1
    return tuple(jnp.where(at_end, p, q) for p, q in zip(first, rows, strict=True))


def _tile(refs, n, start, cut, rows, fill):
    """A tile as float32 planes; past the `rows` that it has, (`fill`, 0)."""
    size, width = cut.rows, cut.tiles.width
    if refs[0].ndim == 2:  # constant in time
        planes = tuple(jnp.broadcast_to(ref[...], (size, width)) for ref in refs)
    else:
        planes = tuple(
            ref[n, pl.ds(start, size), :].astype(jnp.float32) for ref in refs
        )
    if rows == size:
        return planes
    there = _row_of(planes[0]) < rows
    return tuple(jnp.where(there, p, fill * (1 - i)) for i, p in enumerate(planes))


def _row_of(tile):
    return lax.broadcasted_iota(jnp.int32, tile.shape, 0)


def _keep_tile(mask, n, start, tile):
    """The factors of a reset, from scalars to the rows of a tile."""
    factor, row = jnp.ones_like(tile), _row_of(tile)
    for i in range(tile.shape[0]):
        factor = jnp.where(row == i, mask[n, 0, start + i], factor)
    return factor


def _shift_rows(planes, ahead, first):
    """Moves rows one step along the sweep; `first` (planes of one row) comes in."""
    size = planes[0].shape[0]
    entry = 0 if ahead == 1 else size - 1
    return tuple(
        jnp.where(_row_of(p) == entry, row, pltpu.roll(p, ahead % size, 0))
        for p, row in zip(planes, first, strict=True)
    )


def _log_steps(a, x, ahead):
    """The scan of some rows from a zero state, and the products of their decays.

    After the step of length s a row holds what s rows up to it add up to.
    """
    size, row = x[0].shape[0], _row_of(x[0])
    reach = 1
    while reach < size:
        inside = row >= reach if ahead == 1 else row < size - reach
        roll = functools.partial(pltpu.roll, shift=ahead * reach % size, axis=0)
        before = _multiply(a, tuple(map(roll, x)))
        product = _multiply(a, tuple(map(roll, a)))
        x = tuple(jnp.where(inside, p + q, p) for p, q in zip(x, before, strict=True))
        a = tuple(jnp.where(inside, q, p) for p, q in zip(a, product, strict=True))
        reach *= 2
    return a, x


def _scan_tile(a, x, h, ahead):
    """The states of a tile after a state `h`: log-steps on 8 rows at a time.

    More of them at once would take another step, and rolls across registers.
    """
    starts = range(0, x[0].shape[0], 8)
    states = {}
    for start in starts if ahead == 1 else reversed(starts):
        product, state = _log_steps(
            tuple(p[start : start + 8] for p in a),
            tuple(p[start : start + 8] for p in x),
            ahead,
        )
        states[start] = _add(state, _multiply(product, h))
        h = _last(states[start], ahead)
    in_order = [states[start] for start in starts]
    return tuple(jnp.concatenate(pieces) for pieces in zip(*in_order, strict=True))


def _last(planes, ahead):
    """The last row of tiles in sweep order."""
    size = planes[0].shape[0]
    row = size - 1 if ahead == 1 else 0
    return tuple(p[row : row + 1] for p in planes)


def _forward_by_log_steps(
    log, cut, keep, decay, x, h0, out, last, carried, *unused_stages
):
    chains = range(cut.tiles.chains)
    ahead = -1 if cut.backwards else 1

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, state in zip(carried, h0, strict=True):
            ref[...] = state[...]

    def tile(start, rows, h):
        h = list(h)
        for n in chains:
            a = _tile(decay, n, start, cut, rows, 0.0 if log else 1.0)
            if log:
                a = tuple(map(jnp.exp, a))
            for mask in keep:
                factor = _keep_tile(mask, n, start, a[0])
                a = tuple(p * factor for p in a)
            state = _scan_tile(a, _tile(x, n, start, cut, rows, 0.0), h[n], ahead)
            for ref, plane in zip(out, state, strict=True):
                ref[n, pl.ds(start, cut.rows), :] = plane.astype(ref.dtype)
            h[n] = _last(state, ahead)
        return tuple(h)

    h = cut.sweep(tile, tuple(tuple(ref[n] for ref in carried) for n in chains))
    for n in chains:
        for ref, plane in zip(carried, h[n], strict=True):
            ref[n] = plane

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, state in zip(last, carried, strict=True):
            ref[...] = state[...]


def _backward_by_log_steps(
    log,
    cut,
    keep,
    decay,
    d_h,
    h,
    edges,
    h0,
    d_last,
    dx,
    d_decay,
    dh0,
    carried,
    *unused_stages,
):
    chains = range(cut.tiles.chains)
    constant = decay[0].ndim == 2
    ahead = -1 if cut.backwards else 1
    size = cut.rows

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, state in zip(carried, d_last, strict=True):
            ref[...] = state[...]
        if constant:
            for ref in d_decay:
                ref[...] = jnp.zeros_like(ref)

    edge = [_edge(cut, edges, h0, n) for n in chains]

    def previous(n, start, rows):
        """The states one step before those of a tile, in the order of the scan."""
        tile = _tile(h, n, start, cut, size, 0.0)
        if cut.backwards:
            at_edge, beside = start == 0, start - size
        else:
            at_edge, beside = start + rows == cut.length(), start + size
        beside = jnp.clip(beside, 0, cut.steps - size)
        if cut.steps > size:
            beside = pl.multiple_of(beside, size)
            row = _last(_tile(h, n, beside, cut, size, 0.0), -ahead)
            row = tuple(
                jnp.where(at_edge, p, q) for p, q in zip(edge[n], row, strict=True)
            )
        else:
            row = edge[n]
        if rows == size or cut.backwards:
            return _shift_rows(tile, -ahead, row)
        return tuple(
            jnp.where(_row_of(p) == rows - 1, q, p)
            for p, q in zip(_shift_rows(tile, -ahead, row), row, strict=True)
        )

    def tile(start, rows, carry):
        c, total = map(list, carry)
        for n in chains:
            a = _tile(decay, n, start, cut, rows, 0.0 if log else 1.0)
            if log:
                a = tuple(map(jnp.exp, a))
            factor = [_keep_tile(mask, n, start, a[0]) for mask in keep]
            for mask in factor:
                a = tuple(p * mask for p in a)
            one = tuple(jnp.full_like(p[:1], 1 - i) for i, p in enumerate(a))
            a = (a[0], -a[1]) if len(a) == 2 else a
            g = _tile(d_h, n, start, cut, rows, 0.0)
            g = _scan_tile(_shift_rows(a, ahead, one), g, c[n], ahead)
            for ref, plane in zip(dx, g, strict=True):
                ref[n, pl.ds(start, size), :] = plane.astype(ref.dtype)
            late = _multiply(a, g)
            c[n] = _last(late, ahead)
            if not log:
                late = g
                for mask in factor:
                    late = tuple(p * mask for p in late)
            gradient = _decay_gradient(late, previous(n, start, rows), len(decay))
            if constant:
                if rows < size:
                    there = _row_of(gradient[0]) < rows
                    gradient = tuple(jnp.where(there, p, 0.0) for p in gradient)
                total[n] = _add(total[n], gradient)
            else:
                for ref, plane in zip(d_decay, gradient, strict=True):
                    ref[n, pl.ds(start, size), :] = plane.astype(ref.dtype)
        return tuple(c), tuple(total)

    c = tuple(tuple(ref[n] for ref in carried) for n in chains)
    zero = jnp.zeros((size, cut.tiles.width), jnp.float32)
    total = ((zero,) * len(decay) if constant else (),) * len(chains)
    c, total = cut.sweep(tile, (c, total))
    for n in chains:
        for ref, plane in zip(carried, c[n], strict=True):
            ref[n] = plane
        if constant:
            for ref, sum_ in zip(d_decay, total[n], strict=True):
                ref[...] += jnp.sum(sum_, axis=0, keepdims=True)

    @pl.when(pl.program_id(2) == cut.blocks - 1)
    def _():
        for ref, state in zip(dh0, carried, strict=True):
            ref[...] = state[...]
