"""A linear scan whose decay and drive are made by gates, in plain XLA operations.

    (a_t, u_t) = gates(inputs_t, parameters),     h_t = a_t * h_{t-1} + u_t

Equal to `linear_scan(u, a)`, but neither a nor u is kept for the backward pass, which
makes them again. `gates(inputs, parameters, reset)` is an elementwise function on one
step (B, D) or on all of them (B, T, D), in the precision of the state; the parameters
broadcast against its inputs, and `reset`, where given, has a last axis of one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ssm.ops.checks import is_complex
from ssm.ops.scan_loop import multiply, scan_loop
from ssm.ops.scan_xla import scan_associative, scan_sequential
from ssm.ops.sharding import vary_alike

Gates = Callable[
    [tuple[jax.Array, ...], tuple[jax.Array, ...], jax.Array | None],
    tuple[jax.Array, jax.Array],
]


def make(
    gates: Gates,
    inputs: tuple[jax.Array, ...],
    parameters: tuple[jax.Array, ...],
    reset: jax.Array | None,
    dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """The decay and the drive, of one step or of all, in the precision of `dtype`."""
    real = jnp.finfo(dtype).dtype

    def wide(array):
        return array.astype(dtype if is_complex(array) else real)

    rank = inputs[0].ndim
    return gates(
        tuple(map(wide, inputs)),
        tuple(
            jnp.expand_dims(wide(p), tuple(range(rank - p.ndim))) for p in parameters
        ),
        None if reset is None else reset[..., None],
    )


def composed(
    scan: Callable[..., tuple[jax.Array, jax.Array]],
    gates: Gates,
    inputs: tuple[jax.Array, ...],
    parameters: tuple[jax.Array, ...],
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """Makes decay and drive of all steps, then scans; h in the dtype of inputs[-1]."""
    a, u = make(gates, inputs, parameters, reset, h0.dtype)
    h, last = scan(u, a, h0, None, log=False, reverse=reverse)
    return h.astype(inputs[-1].dtype), last


def gated_sequential(
    gates: Gates,
    inputs: tuple[jax.Array, ...],
    parameters: tuple[jax.Array, ...],
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """The scan by `lax.scan`."""
    run = functools.partial(composed, scan_sequential, gates, reverse=reverse)
    return jax.checkpoint(run)(inputs, parameters, h0, reset)


def gated_associative(
    gates: Gates,
    inputs: tuple[jax.Array, ...],
    parameters: tuple[jax.Array, ...],
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """The scan by `lax.associative_scan`."""
    run = functools.partial(composed, scan_associative, gates, reverse=reverse)
    return jax.checkpoint(run)(inputs, parameters, h0, reset)


def gated_loop(
    gates: Gates,
    inputs: tuple[jax.Array, ...],
    parameters: tuple[jax.Array, ...],
    h0: jax.Array,
    reset: jax.Array | None,
    *,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """The scan as a loop that overwrites inputs[-1]: the fastest form on CPU."""
    return _loop(gates, reverse, inputs, parameters, h0, reset)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(gates, reverse, inputs, parameters, h0, reset):
    time = inputs[0].shape[1]

    def body(step, loop):
        h, out = loop
        t = time - 1 - step if reverse else step
        rows = tuple(_at(v, t) for v in (*inputs[:-1], out))
        a, u = make(gates, rows, parameters, _at(reset, t), h.dtype)
        h = multiply(a, h) + u
        return h, _write(out, h, t)

    last, h = lax.fori_loop(0, time, body, (h0, inputs[-1]))
    return h, last


def _loop_forward(gates, reverse, inputs, parameters, h0, reset):
    h, last = _loop(gates, reverse, inputs, parameters, h0, reset)
    return (h, last), (inputs, parameters, h, h0, reset)


def _loop_backward(gates, reverse, residuals, cotangents):
    return *_adjoint(gates, reverse, *cotangents, *residuals), None


_loop.defvjp(_loop_forward, _loop_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _adjoint(gates, reverse, d_h, d_last, inputs, parameters, h, h0, reset):
    """The cotangents of inputs, parameters and h0, in one loop against the scan.

    Everything of a step stays in the cache: gates on all steps at once would write
    what the gradients share to memory, and XLA:CPU's sum over time is slow.
    """
    time, dtype = h.shape[1], h0.dtype
    wide = tuple(jnp.broadcast_to(p, h0.shape) for p in parameters)

    def step(t, previous, c):
        """The cotangents at one step; `c` is that of the state from later steps."""
        rows = tuple(_at(v, t) for v in inputs)
        g = c + _at(d_h, t).astype(dtype)

        def made(rows, wide):
            return make(gates, rows, wide, _at(reset, t), dtype)

        (a, _), pull = jax.vjp(made, rows, wide)
        d_a = g * previous.astype(dtype)
        d_rows, d_wide = pull((d_a if is_complex(a) else jnp.real(d_a), g))
        return d_rows, d_wide, multiply(a, g)

    def body(k, loop):
        outs, sums, c = loop
        t = k if reverse else time - 1 - k
        d_rows, d_wide, c = step(t, _at(h, t + 1 if reverse else t - 1), c)
        return _write_all(outs, d_rows, t), jax.tree.map(jnp.add, sums, d_wide), c

    # The step that starts from h0 is apart: no loop reads an array that it writes.
    zeros = jax.tree.map(jnp.zeros_like, (inputs, wide))
    (outs, sums), _ = vary_alike((zeros, inputs))
    outs, sums, c = lax.fori_loop(0, time - 1, body, (outs, sums, d_last))
    t = time - 1 if reverse else 0
    d_rows, d_wide, c = step(t, h0, c)
    totals = tuple(jnp.sum(s + d, axis=0) for s, d in zip(sums, d_wide, strict=True))
    return _write_all(outs, d_rows, t), totals, c


def _adjoint_forward(gates, reverse, *arguments):
    return _adjoint(gates, reverse, *arguments), arguments


def _adjoint_backward(gates, reverse, arguments, cotangents):
    """Differentiates the composition with a scan, of which `h` is a result."""
    d_h, d_last, inputs, parameters, h, h0, reset = arguments

    def adjoint(d_h, d_last, *arguments):
        def run(inputs, parameters, h0):
            return composed(
                scan_loop, gates, inputs, parameters, h0, reset, reverse=reverse
            )

        return jax.vjp(run, *arguments)[1]((d_h, d_last))

    pulled = jax.vjp(adjoint, d_h, d_last, inputs, parameters, h0)[1](cotangents)
    *first, dh0 = pulled
    return *first, jnp.zeros_like(h), dh0, None


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _at(array, t):
    if array is None:
        return None
    return lax.dynamic_index_in_dim(array, t, axis=1, keepdims=False)


def _write(out, row, t):
    return lax.dynamic_update_index_in_dim(out, row.astype(out.dtype), t, axis=1)


def _write_all(outs, rows, t):
    return tuple(_write(out, row, t) for out, row in zip(outs, rows, strict=True))
