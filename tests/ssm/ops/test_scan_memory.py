"""What the compiled CPU loop must not do: copy whole buffers, or hold more of them."""

import re

import jax
import jax.numpy as jnp
import pytest

from ssm import ops

BATCH, TIME, WIDTH = 4, 128, 32
PLANE = BATCH * TIME * WIDTH


def whole_copies_in_loops(hlo: str) -> int:
    """The copies of PLANE elements or more inside the while bodies of an HLO text."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", hlo))
    count = 0
    for block in re.split(r"\n(?=%|ENTRY)", hlo):
        name = re.match(r"%?([\w.\-]+)", block)
        if name is None or name.group(1) not in bodies:
            continue
        instructions = re.findall(
            r"= \w+\[([\d,]+)\]\S* (copy|fusion)\([^)]*\)([^\n]*)", block
        )
        for shape, kind, rest in instructions:
            size = 1
            for length in shape.split(","):
                size *= int(length)
            count += size >= PLANE and (kind == "copy" or "wrapped_copy" in rest)
    return count


def linear(name, reverse=False, reset=None):
    def run(x, decay, h0):
        x = x * jnp.asarray(1.0001, x.dtype)  # a temporary, as inside a layer
        return ops.linear_scan(
            x,
            **{name: decay},
            h0=h0,
            reverse=reverse,
            reset=reset,
            implementation="loop",
        )

    return run


def shapes(dtype, constant):
    decay = (WIDTH,) if constant else (BATCH, TIME, WIDTH)
    wide = jnp.float32 if dtype == jnp.bfloat16 else dtype
    return (
        jax.ShapeDtypeStruct((BATCH, TIME, WIDTH), dtype),
        jax.ShapeDtypeStruct(decay, wide),
        jax.ShapeDtypeStruct((BATCH, WIDTH), wide),
    )


def vjp_of(run):
    def gradients(arguments, cotangents):
        return jax.vjp(run, *arguments)[1](cotangents)

    return gradients


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16"])
@pytest.mark.parametrize("name", ["a", "log_a"])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_no_whole_copy_inside_a_loop(dtype, name, constant, reverse):
    arguments = shapes(jnp.dtype(dtype), constant)
    reset = jnp.zeros((BATCH, TIME), bool).at[:, 5].set(True)
    run = linear(name, reverse, reset)
    gradients = vjp_of(run)
    outputs = jax.eval_shape(run, *arguments)

    def compiled(function, *args):
        return jax.jit(function).lower(*args).compile().as_text()

    assert whole_copies_in_loops(compiled(run, *arguments)) == 0
    assert whole_copies_in_loops(compiled(gradients, arguments, outputs)) == 0


@pytest.mark.parametrize("transform", [jax.vmap, jax.checkpoint])
def test_no_whole_copy_under_vmap_and_remat(transform):
    arguments = shapes(jnp.float32, constant=False)
    run = linear("a")
    outputs = jax.eval_shape(run, *arguments)
    if transform is jax.vmap:
        gradients = jax.vmap(vjp_of(run))
        arguments, outputs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype),
            (arguments, outputs),
        )
    else:
        gradients = vjp_of(jax.checkpoint(run))
    text = jax.jit(gradients).lower(arguments, outputs).compile().as_text()
    assert whole_copies_in_loops(text) == 0


def test_the_guard_sees_a_copy():
    """Two arrays written in one loop, reading each other, is what XLA:CPU copies."""

    def bad(x, decay, h0):
        def body(t, both):
            re, im = both
            row = re[:, t - 1] - im[:, t - 1]
            column = re[:, t - 1] + im[:, t - 1]
            return re.at[:, t].add(row), im.at[:, t].add(column)

        return jax.lax.fori_loop(1, TIME, body, (x, x * decay))

    text = jax.jit(bad).lower(*shapes(jnp.float32, False)).compile().as_text()
    assert whole_copies_in_loops(text) > 0


@pytest.mark.parametrize("name", ["a", "log_a"])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_backward_holds_the_inputs_and_h(name, constant, dtype):
    """Temporaries of value and gradient: h, and dx until it is returned."""
    arguments = shapes(jnp.dtype(dtype), constant)
    run = linear(name)
    outputs = jax.eval_shape(run, *arguments)
    compiled = jax.jit(vjp_of(run)).lower(arguments, outputs).compile()
    plane = PLANE * jnp.dtype(dtype).itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < 2.2 * plane


def fused(name, reverse=False, reset=None):
    """A fused op on x, its gates and its parameters, from a state."""

    def rg_lru(x, r, i, a_param, h0):
        return ops.rg_lru_scan(
            x * 1.0001, r, i, a_param, h0=h0, reset=reset, implementation="loop"
        )

    def hgrn(x, f, bound, theta, h0):
        return ops.hgrn_scan(
            *(x * 1.0001, f, bound),
            theta=theta if name == "hgrn, turned" else None,
            h0=h0,
            reset=reset,
            reverse=reverse,
            implementation="loop",
        )

    real = jax.ShapeDtypeStruct((BATCH, TIME, WIDTH), jnp.float32)
    dtype = jnp.complex64 if name == "hgrn, turned" else jnp.float32
    x = jax.ShapeDtypeStruct(real.shape, dtype)
    row = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    h0 = jax.ShapeDtypeStruct((BATCH, WIDTH), dtype)
    if name == "rg_lru":
        return rg_lru, (x, real, real, row, h0)
    return hgrn, (x, real, row, row, h0)


@pytest.mark.parametrize(
    ("name", "reverse"),
    [("rg_lru", False), ("hgrn", False), ("hgrn", True), ("hgrn, turned", True)],
)
@pytest.mark.parametrize("with_reset", [False, True])
def test_fused_ops_copy_nothing_and_hold_the_inputs_and_h(name, reverse, with_reset):
    reset = jnp.zeros((BATCH, TIME), bool).at[:, 5].set(True) if with_reset else None
    run, arguments = fused(name, reverse, reset)
    outputs = jax.eval_shape(run, *arguments)
    forward = jax.jit(run).lower(*arguments).compile()
    backward = jax.jit(vjp_of(run)).lower(arguments, outputs).compile()
    assert whole_copies_in_loops(forward.as_text()) == 0
    assert whole_copies_in_loops(backward.as_text()) == 0
    plane = PLANE * outputs[0].dtype.itemsize
    # The scaled x, which stands for a temporary of the layer, and h; no gates.
    assert backward.memory_analysis().temp_size_in_bytes < 2.2 * plane
