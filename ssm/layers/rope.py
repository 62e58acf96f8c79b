"""Rotary position embedding."""

import jax
import jax.numpy as jnp


def rotate(
    x: jax.Array, positions: jax.Array, *, fraction: float, theta: float
) -> jax.Array:
    """Turns pairs of channels of every head by angles that grow with the position.

        (u_j, v_j) -> (u_j cos - v_j sin, v_j cos + u_j sin)
        angle_j = position * theta^(-2 j / d),    j = 0 ... d/2 - 1

    of the first d = fraction * H channels of a head u is the first half, v the second;
    the others stay. The product of two turned vectors depends on their positions only
    by the difference.

    Shapes: x (B, T, N, H), positions (B, T) or (1, T) int -> (B, T, N, H) in the dtype
    of x. Angles are in float32, or wider if x is. Raises ValueError if d is odd.

    Source: Su et al. 2021 (2104.09864), in the layout of GPT-NeoX; a fraction of 1/2 in
    Griffin (2402.19427).
    """
    turned = channels_turned(fraction, x.shape[-1])
    if turned % 2 or not 0 <= fraction <= 1:
        raise ValueError(
            f"rope: a fraction of {fraction} of {x.shape[-1]} channels is {turned}, "
            "wanted an even number of them"
        )
    if turned == 0:
        return x
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    exponents = jnp.arange(0, turned, 2, dtype=dtype) / turned
    angles = positions.astype(dtype)[..., None] * (theta**-exponents)[None, None]
    sin, cos = jnp.sin(angles)[:, :, None], jnp.cos(angles)[:, :, None]
    u, v, rest = jnp.split(x, (turned // 2, turned), axis=-1)
    u, v = u.astype(dtype), v.astype(dtype)
    u, v = u * cos - v * sin, v * cos + u * sin
    return jnp.concatenate([u.astype(x.dtype), v.astype(x.dtype), rest], axis=-1)


def channels_turned(fraction: float, width: int) -> int:
    """How many of `width` channels a fraction of them is, rounded down."""
    return int(fraction * width + 1e-6)  # 60 / 88 * 88 is a little less than 60
