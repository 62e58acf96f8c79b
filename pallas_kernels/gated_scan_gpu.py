"""Gates and a linear scan in one GPU kernel, and their backward pass in another.

    (a_t, u_t) = gates(inputs_t, parameters)        (elementwise)
    h_t = a_t * h_{t-1} + u_t

`gates` is a plain function on rows of float32 planes. The kernels read its inputs, make
decay and drive row by row, and write the states alone; the backward kernel makes them
again and pulls the cotangents back through `gates` by `jax.vjp`:

    g_t = dh_t + conj(a_{t+1}) g_{t+1},     du_t = g_t,     da_t = g_t conj(h_{t-1}).

So nothing of the size of a plane passes through memory but the inputs, the states and
their cotangents.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import linear_scan_gpu, ring_gpu
from pallas_kernels.planes import (
    Planes,
    add,
    decay_gradient,
    multiply,
    multiply_conjugate,
)
from pallas_kernels.ring_gpu import cut_arrays, fold_segments, identity, sweep
from pallas_kernels.vmap import fold_vmap


def refuse(inputs: dict[str, Planes]) -> str | None:
    """Returns why the kernels cannot run here on these inputs, or None."""
    return ring_gpu.refuse(list(inputs.items()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def gated_scan(
    gates: Any,
    reverse: bool,
    dtype: Any,
    inputs: Planes,
    parameters: Planes,
    h0: Planes,
    reset: jax.Array | None,
) -> tuple[Planes, Planes]:
    """Scans h_t = a_t h_{t-1} + u_t where `gates` makes a and u.

    Args:
      gates: a hashable function (inputs, parameters, restart) -> (decay, drive) on
        float32 planes of one shape, with `restart` True where the state is cleared,
        and the attributes `name`, `states` and `decays`: numbers of planes.
      reverse: scan from the last step to the first.
      dtype: of the states that are written.
      inputs: planes (B, T, D), float32 or bfloat16, T >= 1.
      parameters: planes (D,), float32.
      h0: planes (B, D), float32.
      reset: (B, T) bool or None.

    Returns:
      h, planes (B, T, D) of `dtype`, and the last state, planes (B, D) float32.
      Differentiable in inputs, parameters and h0, in reverse mode, any number of times.
    """
    run = functools.partial(_forward, gates, reverse, dtype)
    return fold_vmap(run, shared=(1,))(inputs, parameters, h0, reset)


def _gated_forward(gates, reverse, dtype, inputs, parameters, h0, reset):
    h, last = gated_scan(gates, reverse, dtype, inputs, parameters, h0, reset)
    return (h, last), (inputs, parameters, h, h0, reset)


def _gated_backward(gates, reverse, dtype, residuals, cotangents):
    gradients = _adjoint(gates, reverse, dtype, *cotangents, *residuals)
    return *gradients, None


gated_scan.defvjp(_gated_forward, _gated_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _adjoint(gates, reverse, dtype, d_h, d_last, inputs, parameters, h, h0, reset):
    run = functools.partial(_backward, gates, reverse)
    d_inputs, per_sequence, dh0 = fold_vmap(run, shared=(3,))(
        d_h, d_last, inputs, parameters, h, h0, reset
    )
    return d_inputs, tuple(jnp.sum(p, axis=0) for p in per_sequence), dh0


def _adjoint_forward(gates, reverse, dtype, *arguments):
    return _adjoint(gates, reverse, dtype, *arguments), arguments


def _adjoint_backward(gates, reverse, dtype, arguments, cotangents):
    """Differentiates the composition with `linear_scan`, of which `h` is a result."""
    d_h, d_last, inputs, parameters, h, h0, reset = arguments

    def adjoint(d_h, d_last, *arguments):
        def composed(inputs, parameters, h0):
            wide = tuple(p.astype(jnp.float32) for p in inputs)
            wide_parameters = tuple(jnp.broadcast_to(p, h[0].shape) for p in parameters)
            restart = None
            if reset is not None:
                restart = jnp.broadcast_to(reset[..., None], h[0].shape)
            decay, drive = gates(wide, wide_parameters, restart)
            out, last = linear_scan_gpu.linear_scan(drive, decay, h0, reverse=reverse)
            return tuple(p.astype(dtype) for p in out), last

        return jax.vjp(composed, *arguments)[1]((d_h, d_last))

    pulled = jax.vjp(adjoint, d_h, d_last, inputs, parameters, h0)[1](cotangents)
    d_d_h, d_d_last, d_inputs, d_parameters, dh0 = pulled
    nothing = tuple(map(jnp.zeros_like, h))
    return d_d_h, d_d_last, d_inputs, d_parameters, nothing, dh0, None


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _forward(gates, reverse, dtype, inputs, parameters, h0, reset):
    out = (jax.ShapeDtypeStruct(inputs[0].shape, dtype),) * gates.states
    cut = cut_arrays(inputs, out, backwards=reverse, tiles=None)
    run = functools.partial(
        sweep, cut=cut, constants=parameters, planes=inputs, reset=reset
    )
    summaries: Planes = ()
    if cut.segments > 1:
        _, summaries = run(
            functools.partial(_summary_row, gates),
            f"{gates.name}_forward_summary",
            carry=identity(gates.decays, h0),
            outputs=(),
        )
    h, ends = run(
        functools.partial(_forward_row, gates),
        f"{gates.name}_forward",
        carry=h0,
        outputs=out,
        summaries=summaries,
        fold=functools.partial(fold_segments, gates.decays),
    )
    return h, tuple(p[:, -1] for p in ends)


def _backward(gates, reverse, d_h, d_last, inputs, parameters, h, h0, reset):
    planes = (*inputs, *d_h)
    cut = cut_arrays((*planes, *h), inputs, backwards=not reverse, tiles=None)
    run = functools.partial(
        sweep, cut=cut, constants=parameters, planes=planes, reset=reset
    )
    summaries: Planes = ()
    if cut.segments > 1:
        _, summaries = run(
            functools.partial(_adjoint_summary_row, gates),
            f"{gates.name}_backward_summary",
            carry=identity(gates.decays, h0),
            outputs=(),
        )
    totals = (jnp.zeros_like(h0[0]),) * len(parameters)
    d_inputs, ends = run(
        functools.partial(_backward_row, gates),
        f"{gates.name}_backward",
        carry=(*d_last, *totals),
        previous=h,
        first=h0,
        outputs=inputs,
        summaries=summaries,
        fold=functools.partial(fold_segments, gates.decays),
    )
    dh0 = tuple(p[:, -1] for p in ends[: gates.states])
    return d_inputs, tuple(jnp.sum(p, axis=1) for p in ends[gates.states :]), dh0


def _make(gates, inputs, parameters, reset):
    restart = None if reset is None else jnp.broadcast_to(reset, inputs[0].shape)
    return inline(lambda *arguments: gates(*arguments, restart), inputs, parameters)


def _pull(gates, inputs, parameters, reset, cotangents):
    """The cotangents of the inputs and the parameters."""
    restart = None if reset is None else jnp.broadcast_to(reset, inputs[0].shape)

    def pull(cotangents, *arguments):
        return jax.vjp(lambda *values: gates(*values, restart), *arguments)[1](
            cotangents
        )

    return inline(pull, cotangents, inputs, parameters)


def _forward_row(gates, parameters, h, inputs, previous, reset):
    a, u = _make(gates, inputs, parameters, reset)
    h = add(multiply(a, ring_gpu.clear(reset, h)), u)
    return h, h


def _backward_row(gates, parameters, carry, values, previous, reset):
    c, totals = carry[: gates.states], carry[gates.states :]
    inputs, d_h = values[: -gates.states], values[-gates.states :]
    a, _ = _make(gates, inputs, parameters, reset)
    g = add(d_h, c)
    d_a = decay_gradient(g, previous, gates.decays)
    d_inputs, d_parameters = _pull(gates, inputs, parameters, reset, (d_a, g))
    c = multiply_conjugate(a, ring_gpu.clear(reset, g))
    return (*c, *add(totals, d_parameters)), d_inputs


def _summary_row(gates, parameters, carry, inputs, previous, reset):
    a, u = _make(gates, inputs, parameters, reset)
    carry = ring_gpu.clear(reset, carry)
    product, state = carry[: gates.decays], carry[gates.decays :]
    return (*multiply(a, product), *add(multiply(a, state), u)), ()


def _adjoint_summary_row(gates, parameters, carry, values, previous, reset):
    inputs, d_h = values[: -gates.states], values[-gates.states :]
    a, _ = _make(gates, inputs, parameters, reset)
    product, state = carry[: gates.decays], carry[gates.decays :]
    kept = ring_gpu.clear(reset, (*product, *add(state, d_h)))
    product, state = kept[: gates.decays], kept[gates.decays :]
    return (*multiply_conjugate(a, product), *multiply_conjugate(a, state)), ()


def inline(function: Any, *arguments: Any) -> Any:
    """Calls a function by its elementary operations, which is all that kernels take."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    values = _evaluate(closed, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(out), values)


def _evaluate(closed, arguments):
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value(atom):
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        values = list(map(value, equation.invars))
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            results = _evaluate(inner, values)
        elif equation.primitive.name == "add_any":  # of cotangents
            results = [lax.add(*values)]
        else:
            results = equation.primitive.bind(*values, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        known |= dict(zip(equation.outvars, results, strict=True))
    return list(map(value, jaxpr.outvars))
