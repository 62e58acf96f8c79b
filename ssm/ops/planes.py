"""Complex arrays as the device kernels take them: a real plane, an imaginary one."""

import jax
import jax.numpy as jnp
from jax import lax

from ssm.ops.checks import is_complex


def to_planes(x: jax.Array) -> tuple[jax.Array, ...]:
    """A real array alone; of a complex one the real and the imaginary part."""
    return (jnp.real(x), jnp.imag(x)) if is_complex(x) else (x,)


def from_planes(planes: tuple[jax.Array, ...]) -> jax.Array:
    """The array that planes make."""
    return planes[0] if len(planes) == 1 else lax.complex(*planes)
