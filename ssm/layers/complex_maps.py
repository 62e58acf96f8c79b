"""Dense maps between real channels and complex states, each as one real product."""

import jax
import jax.numpy as jnp
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike


def to_states(
    x: jax.Array, b_re: jax.Array, b_im: jax.Array, *, dtype: DTypeLike | None
) -> jax.Array:
    """B x, summed in the dtype of B.

    Shapes: x (B, T, D) real, b_re, b_im (N, D) -> (B, T, N) complex. `dtype` is that of
    the product's factors; None takes that of both.
    """
    b = jnp.concatenate([b_re, b_im])
    wide = b.dtype
    x, b = promote_dtype((x, b), dtype=dtype)
    u = jnp.einsum("btd,nd->btn", x, b, preferred_element_type=wide)
    return lax.complex(*jnp.split(u, 2, axis=-1))


def from_states(
    h: jax.Array, c_re: jax.Array, c_im: jax.Array, *, dtype: DTypeLike | None
) -> jax.Array:
    """Re(C h).

    Shapes: h (B, T, N) complex, c_re, c_im (D, N) -> (B, T, D) real, of `dtype`; None
    takes that of the real parts and C.
    """
    c = jnp.concatenate([c_re, -c_im], axis=1)
    h = jnp.concatenate([jnp.real(h), jnp.imag(h)], axis=-1)
    h, c = promote_dtype((h, c), dtype=dtype)
    return jnp.einsum("btn,dn->btd", h, c)
