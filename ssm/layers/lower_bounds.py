"""The lower bounds of the forget gates of all layers of an HGRN."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers.base import recurrence_dtype

Convention = Literal["exclusive", "shifted"]


class LowerBounds(nnx.Module):
    """Learned lower bounds of forget gates that grow from layer to layer.

        P = softmax of gamma over the layers
        bound_k = P_0 + ... + P_{k-1}      "exclusive"
        bound_k = P_1 + ... + P_k          "shifted"

    Both start at 0 in the lowest layer, and differ as soon as gamma does between
    layers. "exclusive" is the formula of the paper and its code for images and Long
    Range Arena; "shifted" is its code for language models, and that of released ones.

        {"lower_bound": (n_layers, width)} = LowerBounds(n_layers, width, ...)()

    Parameters: gamma (n_layers, width), zero, so that bounds rise evenly from 0 to
    1 - 1 / n_layers; float32 at least.

    Raises ValueError for another convention.

    Source: Qin et al. 2023, HGRN (2311.04823), section 3.3.
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = ("gamma",)

    def __init__(
        self,
        n_layers: int,
        width: int,
        *,
        convention: Convention,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if convention not in ("exclusive", "shifted"):
            raise ValueError(
                f"LowerBounds: convention={convention!r} is unknown, wanted "
                "'exclusive' or 'shifted'"
            )
        self.convention = convention
        self.gamma = nnx.Param(
            jnp.zeros((n_layers, width), recurrence_dtype(param_dtype))
        )

    def __call__(self) -> dict[str, jax.Array]:
        p = jax.nn.softmax(self.gamma[...], axis=0)
        added = p[:-1] if self.convention == "exclusive" else p[1:]
        # From an exact zero: a difference of sums would round the lowest layer's.
        bounds = [jnp.zeros_like(p[:1]), jnp.cumsum(added, axis=0)]
        return {"lower_bound": jnp.concatenate(bounds)}
