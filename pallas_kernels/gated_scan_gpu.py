"""The kernels of `gated_scan` on GPU, Hopper or newer.

`gates` is a plain function on rows of float32 planes. The kernels read its inputs, make
decay and drive row by row, and write the states alone; the backward kernel makes them
again and pulls the cotangents back through `gates` by `jax.vjp`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import linear_scan_gpu, ring_gpu
from pallas_kernels.gated_scan import Kernels
from pallas_kernels.planes import (
    Planes,
    add,
    decay_gradient,
    multiply,
    multiply_conjugate,
)
from pallas_kernels.ring_gpu import cut_arrays, fold_segments, identity, sweep


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


KERNELS = Kernels(ring_gpu.refuse, _forward, _backward, linear_scan_gpu.linear_scan)
