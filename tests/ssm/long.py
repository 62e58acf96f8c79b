"""Layers over 4096 steps in bfloat16, against float64."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.ssm.filling import with_params
from tests.ssm.law import QUICK_COMPILE

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
HALF_A_ROUNDING = 2.0**-9


def run(
    make: Callable[..., nnx.Module],
    x: np.ndarray,
    change: Callable[[dict[str, Any]], None] = lambda params: None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Outputs in bfloat16 and in float64 of one layer, and the carry of the former.

    Parameters, which `change` may alter, and inputs are the same bfloat16 numbers in
    both. Everything in bfloat16 is finite: outputs, carry, and all gradients.
    """
    with jax.enable_x64(True):
        narrow = make(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        params = nnx.to_pure_dict(nnx.state(narrow))
        change(params)
        graphdef, params = with_params(narrow, params)
        wide_graphdef, wide = with_params(make(param_dtype=jnp.float64), params)
        x = jnp.asarray(x, jnp.bfloat16)

        @jit
        def narrow_run(params, x):
            def loss(params, x):
                y, carry = nnx.merge(graphdef, params)(x)
                return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, carry)

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

        (_, (got, carry)), gradients = narrow_run(params, x)
        for leaf in jax.tree.leaves((got, carry, gradients)):
            assert np.isfinite(np.asarray(leaf, np.complex128)).all()
        wide_run = jit(lambda params, x: nnx.merge(wide_graphdef, params)(x)[0])
        want = wide_run(wide, x.astype(jnp.float64))
        return np.asarray(got, np.float64), np.asarray(want), carry


def root_mean_square(array: np.ndarray) -> float:
    """Over all entries."""
    return float(np.sqrt(np.mean(np.abs(array) ** 2)))
