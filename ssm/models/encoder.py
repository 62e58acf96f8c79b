"""What turns tokens or real channels into vectors of the model's width."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def make_encoder(
    vocab_size: int | None,
    d_input: int | None,
    d_model: int,
    *,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Embed | nnx.Linear:
    """An embedding if `vocab_size` is given, a linear map if `d_input` is."""
    if (vocab_size is None) == (d_input is None):
        raise ValueError(
            f"vocab_size={vocab_size}, d_input={d_input}: wanted exactly one of them"
        )
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    if vocab_size is not None:
        return nnx.Embed(vocab_size, d_model, rngs=rngs, **types)
    assert d_input is not None
    return nnx.Linear(d_input, d_model, rngs=rngs, **types)


def encode(encoder: nnx.Embed | nnx.Linear, x: jax.Array) -> jax.Array:
    """Tokens (B, T) int, or channels (B, T, C) real, -> (B, T, d_model)."""
    if isinstance(encoder, nnx.Embed):
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"x has shape {x.shape} and dtype {x.dtype}, "
                "wanted (B, T) integer tokens"
            )
    elif x.ndim != 3 or x.shape[-1] != encoder.in_features:
        raise ValueError(f"x has shape {x.shape}, wanted (B, T, {encoder.in_features})")
    return encoder(x)
