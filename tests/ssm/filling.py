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


# One channel of two pairs: lambda = -1/2 and -1/2 + i pi, dt = 0.1, B = 1, no D.
S4D_OF_TWO = {
    "log_dt": np.log([0.1]),
    "log_a_re": np.log([[0.5, 0.5]]),
    "a_im": np.array([[0, np.pi]]),
    "b_re": np.ones((1, 2)),
    "b_im": np.zeros((1, 2)),
    "c_re": np.array([[1, -0.3]]),
    "c_im": np.array([[0.5, 0.2]]),
    "d": np.zeros(1),
}


def of_two(layer: type[nnx.Module], **options: Any) -> nnx.Module:
    """An `S4D`, or a kind of it, with these values in float64, where x64 is enabled."""
    options["param_dtype"] = jnp.float64
    made = nnx.eval_shape(lambda: layer(1, 4, rngs=nnx.Rngs(0), **options))
    return nnx.merge(*with_params(made, S4D_OF_TWO))
