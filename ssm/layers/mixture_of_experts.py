"""A gated feed-forward map that is chosen for each token among several."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike

from ssm.layers.base import AuxiliaryLoss


class MixtureOfExperts(nnx.Module):
    """The weighted sum of the `top_k` most probable of E gated MLPs.

        p = softmax(router(x)),    w_e = p_e / sum of the top_k p, 0 for the others
        y = sum_e w_e down_e(activation(gate_e(x)) * up_e(x))

    Every token gets its experts: none is dropped, however uneven the choice. All
    experts are computed for all tokens, E / top_k times the arithmetic of those chosen:
    right for small models, and the reference for anything faster.

    With `balance_weight` a call with train=True leaves an `AuxiliaryLoss` behind,
    balance_weight times

        balance_loss = E sum_e f_e P_e

    where f_e is how many of a token's top_k are expert e, and P_e its probability, both
    averaged over all tokens of the call. Where all experts are alike it is top_k. What
    trains the layer adds it to the loss, see `auxiliary_loss`.

        y = experts(x, *, train=False)

    Shapes: x (..., d_model) -> y (..., d_model). It looks at one step at a time.

    Parameters: router, kernel (d_model, E); gate and up (E, d_model, d_ff), normal of
    variance `in_variance` / d_model; down (E, d_ff, d_model), normal of variance
    `out_variance` / d_ff; no biases.

    Args:
      d_model: width of the inputs and outputs.
      d_ff: width inside an expert.
      n_experts: E.
      top_k: how many experts a token has.
      activation: of the gates.
      balance_weight: see above.
      in_variance, out_variance: see above.
      dtype: of the products; None takes that of the inputs and parameters. The router's
        softmax is in float32 at least.
      param_dtype: of the parameters.

    Raises ValueError unless 1 <= top_k <= n_experts.

    Source: Shazeer et al. 2017 (1701.06538); the loss, Fedus et al. 2022, Switch
    Transformers (2101.03961), equation 4; as in MiniMax 2025 (2501.08313).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        n_experts: int,
        top_k: int,
        activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        balance_weight: float = 0.0,
        in_variance: float = 1.0,
        out_variance: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 1 <= top_k <= n_experts:
            raise ValueError(
                f"MixtureOfExperts: top_k={top_k}, wanted 1 to n_experts={n_experts}"
            )
        self.n_experts, self.top_k, self.activation = n_experts, top_k, activation
        self.balance_weight, self.dtype = balance_weight, dtype

        def normal(d_in, d_out, variance):
            shape = (n_experts, d_in, d_out)
            draw = jax.random.normal(rngs.params(), shape, param_dtype)
            return nnx.Param(draw * (variance / d_in) ** 0.5)

        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.router = nnx.Linear(d_model, n_experts, use_bias=False, rngs=rngs, **types)
        self.gate = normal(d_model, d_ff, in_variance)
        self.up = normal(d_model, d_ff, in_variance)
        self.down = normal(d_ff, d_model, out_variance)
        if balance_weight:
            wide = jnp.promote_types(param_dtype, jnp.float32)
            self.balance = AuxiliaryLoss(jnp.zeros((), wide))

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        p, chosen = self.route(x)
        if train and self.balance_weight:
            loss = self.balance_weight * balance_loss(p, chosen)
            self.balance[...] = loss.astype(self.balance.dtype)
        w = jnp.where(chosen, p, 0)
        w = w / jnp.sum(w, axis=-1, keepdims=True)
        inputs = x, self.gate[...], self.up[...], self.down[...]
        x, gate, up, down = promote_dtype(inputs, dtype=self.dtype)
        hidden = self.activation(jnp.einsum("...d,edf->...ef", x, gate))
        hidden = hidden * jnp.einsum("...d,edf->...ef", x, up)
        hidden = hidden * w.astype(x.dtype)[..., None]
        return jnp.einsum("...ef,efd->...d", hidden, down)

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The probability of each expert, and whether it is chosen, (..., E)."""
        logits = self.router(x)
        p = jax.nn.softmax(
            logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1
        )
        _, best = jax.lax.top_k(p, self.top_k)
        return p, jnp.any(jax.nn.one_hot(best, self.n_experts, dtype=bool), axis=-2)


def balance_loss(p: jax.Array, chosen: jax.Array) -> jax.Array:
    """How unevenly experts are chosen, from what `MixtureOfExperts.route` returns.

        E sum_e (mean over tokens of chosen_e) (mean over tokens of p_e)

    Shapes: p (..., E) real, chosen (..., E) bool -> ().
    """
    tokens = tuple(range(p.ndim - 1))
    often = jnp.mean(chosen, axis=tokens, dtype=p.dtype)
    return p.shape[-1] * jnp.sum(often * jnp.mean(p, axis=tokens))
