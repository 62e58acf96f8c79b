"""Modules with given values in place of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def with_params(module: nnx.Module, params: dict[str, Any]) -> tuple[Any, Any]:
    """The graph of an (abstract) module, and `params`, which must be all of its own.

    They are cast to the dtypes of the module's own, and have their shapes.
    """
    graphdef, state = nnx.split(module)
    own = nnx.to_pure_dict(state)
    new = jax.tree.map(lambda old, v: jnp.asarray(v, old.dtype), own, params)
    jax.tree.map(lambda old, v: np.testing.assert_equal(v.shape, old.shape), own, new)
    return graphdef, new


def wave(k: int, *shape: int, size: float = 0.5) -> np.ndarray:
    """Tensor k of a worked example, whose entries n are size * sin(1 + k + 0.9 n)."""
    return (size * np.sin(1 + k + 0.9 * np.arange(np.prod(shape)))).reshape(shape)


HGRU_X = [[1, -0.5], [0.5, 2], [-1, 0.25], [2, -1]]
HGRU_PROJECTIONS = ("input_proj", "lambda_proj", "gate", "out_proj")


def hgru_of_waves(layer: nnx.Module) -> nnx.Module:
    """An HGRU of the worked examples: weights and biases in turn, the rest its own."""
    graphdef, state = nnx.split(layer)
    params = nnx.to_pure_dict(state)
    for place, name in enumerate(HGRU_PROJECTIONS):
        d_in, d_out = params[name]["kernel"].shape
        kernel = wave(2 * place, d_out, d_in, size=0.8).T
        bias = wave(2 * place + 1, d_out, size=0.8)
        params[name] = {"kernel": kernel, "bias": bias}
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
