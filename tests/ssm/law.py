"""The law of every causal layer, block and model, in values and gradients.

The whole sequence = any split into chunks with the carry passed on = step by step;
packed documents, marked by `reset`, = the documents one by one.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# What LLVM makes of the XLA program is not at stake, only how long it takes.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


def run_chunks(module, x, bounds, reset):
    """The outputs of `module` over the chunks that `bounds` cut, and the last carry."""
    carry, outputs = module.init_carry(x.shape[0], max_length=x.shape[1]), []
    for low, high in itertools.pairwise(bounds):
        y, carry = module(x[:, low:high], carry, reset=reset[:, low:high])
        outputs.append(y)
    return jnp.concatenate(outputs, axis=1), carry


def run_steps(module, x, reset, carry=None):
    """The same step by step: a scan, which compiles one step instead of all."""
    graphdef, state = nnx.split(module)

    def step(carry, inputs):
        x_t, reset_t = inputs
        y, carry = nnx.merge(graphdef, state).step(x_t, carry, reset=reset_t)
        return carry, y

    if carry is None:
        carry = module.init_carry(x.shape[0], max_length=x.shape[1])
    steps = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), (x, reset))
    carry, outputs = jax.lax.scan(step, carry, steps)
    return jnp.swapaxes(outputs, 0, 1), carry


def value_and_gradients(run, module, x):
    """Outputs of `run(module, x)`, and gradients in parameters and in floating x."""
    graphdef, params = nnx.split(module)
    floating = jnp.issubdtype(x.dtype, jnp.floating)

    def loss(params, x):
        out = run(nnx.merge(graphdef, params), x)
        total = sum(jnp.sum(jnp.sin(jnp.abs(leaf))) for leaf in jax.tree.leaves(out))
        return total, out

    which = (0, 1) if floating else 0
    gradients, out = jax.jit(
        jax.grad(loss, which, has_aux=True), compiler_options=QUICK_COMPILE
    )(nnx.to_pure_dict(params), x)
    return out, gradients


def same(got, want, tolerance):
    """Equal up to `tolerance` of the largest entry, leaf by leaf."""

    def close(path, g, w):
        scale = max(float(np.max(np.abs(w), initial=0.0)), 1.0)
        np.testing.assert_allclose(
            g, w, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )

    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree_util.tree_map_with_path(close, got, want)


def check_chunks_and_steps(module, x, tolerance):
    """Holds the first half of the law, with documents starting at two places."""
    time = x.shape[1]
    reset = jnp.zeros(x.shape[:2], bool).at[0, 3].set(True).at[1, time - 2].set(True)

    def whole(module, x):
        return module(x, reset=reset)

    want = value_and_gradients(whole, module, x)
    bounds = (0, 3, 4, time)  # a chunk of several steps, of one, of several

    def chunks(module, x):
        return run_chunks(module, x, bounds, reset)

    same(value_and_gradients(chunks, module, x), want, tolerance)

    def steps(module, x):
        return run_steps(module, x, reset)

    same(value_and_gradients(steps, module, x), want, tolerance)


def check_packing(module, x, tolerance):
    """Holds the second half: one row of three documents, the middle one of one step."""
    x, starts = x[:1], (0, 4, 5, x.shape[1])
    reset = jnp.zeros(x.shape[:2], bool).at[0, jnp.array(starts[1:-1])].set(True)

    def packed(module, x):
        return module(x, reset=reset)[0]

    def separate(module, x):
        parts = [module(x[:, i:j])[0] for i, j in itertools.pairwise(starts)]
        return jnp.concatenate(parts, axis=1)

    want = value_and_gradients(separate, module, x)
    same(value_and_gradients(packed, module, x), want, tolerance)
