"""Products of an input with those just before it."""

import jax
import jax.numpy as jnp


def consecutive_products(
    u: jax.Array, before: jax.Array, reset: jax.Array | None = None
) -> tuple[list[jax.Array], jax.Array]:
    """v^(p)_t = u_t u_{t-1} ... u_{t-p+1} for p = 2 ... P, within a document.

    Shapes: u (B, T, D); before (B, P - 1, D), the inputs that came before them, oldest
    first; reset (B, T) bool, where documents start.

    Returns the P - 1 arrays v^(p) (B, T, D), and the inputs (B, P - 1, D) to go on
    with, zeros where they are of an earlier document.
    """
    kept = before.shape[1]
    u = jnp.concatenate([before, u], axis=1)
    starts = jnp.zeros(u.shape[:2], bool)
    if reset is not None:  # those of `before` belong to the first document
        starts = starts.at[:, kept:].set(reset)
    document = jnp.cumsum(starts, axis=1)

    def seen(low, by):
        """The inputs from `low` on, each if it is of the document of its `by`."""
        steps = slice(low, low + by.shape[1])
        return jnp.where((document[:, steps] == by)[..., None], u[:, steps], 0)

    of_step, product, products = document[:, kept:], u[:, kept:], []
    for back in range(1, kept + 1):
        product = product * seen(kept - back, of_step)
        products.append(product)
    last = jnp.broadcast_to(document[:, -1:], before.shape[:2])
    return products, seen(u.shape[1] - kept, last)
