"""Argument checks shared by the ops: each error names argument, got and wanted."""

import jax
import jax.numpy as jnp
import numpy as np


def is_complex(x: jax.Array) -> bool:
    """Whether the dtype of `x` is complex."""
    return jnp.issubdtype(x.dtype, jnp.complexfloating)


def check_inexact(name: str, x: jax.Array) -> None:
    """Raises ValueError unless `x` is real or complex floating point."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(f"{name} has dtype {x.dtype}, wanted real or complex floating")


def check_real(name: str, x: jax.Array) -> None:
    """Raises ValueError unless `x` is real floating point."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}, wanted real floating")


def check_shape(
    name: str, x: jax.Array, *wanted: tuple[int, ...], meaning: str
) -> None:
    """Raises ValueError unless the shape of `x` is one of `wanted`."""
    if x.shape not in wanted:
        options = " or ".join(str(shape) for shape in wanted)
        raise ValueError(f"{name} has shape {x.shape}, wanted {options} = {meaning}")


def check_reset(reset: jax.Array, batch: int, time: int) -> None:
    """Raises ValueError unless `reset` is boolean of shape (batch, time)."""
    if reset.dtype != jnp.bool_:
        raise ValueError(f"reset has dtype {reset.dtype}, wanted bool")
    check_shape("reset", reset, (batch, time), meaning="(B, T)")


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> np.dtype:
    """The dtype of a state: that of the inputs, but never narrower than float32."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
