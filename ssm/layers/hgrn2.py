"""HGRN with an outer-product state: a matrix for each head."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm import ops
from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    recurrence_dtype,
)
from ssm.layers.hgru import linear_uniform

RMSNorm = functools.partial(nnx.RMSNorm, epsilon=1e-5)
"""That of released models, whose other norms have 1e-6."""


class HGRN2(SequenceLayer):
    """Gated linear attention whose key is what the forget gate leaves to be written.

        q_t = silu(q_proj(x_t)),    v_t = i_proj(x_t)
        l_t = lower_bound + (1 - lower_bound) sigmoid(f_proj(x_t))
        S_t = diag(l_t) S_{t-1} + (1 - l_t)^T v_t
        y_t = o_proj(g_norm(q_t S_t / sqrt(K)))

    q, l and v are cut into H heads of K = d_model / H channels, each with its own S;
    the norm is over all heads. The division reaches y through the norm's epsilon alone.

    The lower bound is a number given to the layer, or one for each channel and call,
    see `HGRU`.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model); carry (B, H, K, K) float32, its
    rows those of the key.

        y, carry = layer(x, carry=None, *, reset=None, lower_bound=None)

    Parameters: q_proj, f_proj, i_proj, o_proj, kernel (d_model, d_model), uniform
    within 1 / sqrt(d_model); no biases; g_norm.

    Args:
      d_model: width of the inputs and outputs.
      n_heads: H; the state has K times the width of the model.
      lower_bound: below 1, the least decay where the call does not give another.
      norm: builds g_norm, called as the class of one would be.
      kernel_init: of the projections; None is the above.
      dtype: of the projections and the output; None takes that of the inputs and
        parameters. Decays and states are float32 at least.
      param_dtype: of the parameters.
      implementation: of the recurrence, see `ssm.ops.lightning_attention`.

    Raises ValueError if x has another width, lower_bound or a carry another shape, or
    n_heads does not divide d_model.

    Source: Qin et al. 2024, HGRN2 (2404.07904), section 3.2; norm and scale as in
    released models.
    """

    per_layer = ("lower_bound",)

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        lower_bound: float = 0.0,
        norm: Callable[..., nnx.Module] = RMSNorm,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(
                f"HGRN2: n_heads={n_heads}, wanted a divisor of d_model={d_model}"
            )
        if not 0 <= lower_bound < 1:
            raise ValueError(f"HGRN2: lower_bound={lower_bound}, wanted 0 <= it < 1")
        self.d_model, self.n_heads = d_model, n_heads
        self.lower_bound, self.implementation = lower_bound, implementation
        self.state_dtype = recurrence_dtype(param_dtype)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        types["rngs"] = rngs

        def linear():
            init = kernel_init or linear_uniform
            return nnx.Linear(
                d_model, d_model, use_bias=False, kernel_init=init, **types
            )

        self.q_proj, self.f_proj, self.i_proj = linear(), linear(), linear()
        self.o_proj = linear()
        self.g_norm = norm(d_model, **types)

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        lower_bound: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        check_carry(self, carry, x.shape[0])
        q, v = nnx.silu(self.q_proj(x)), self.i_proj(x)
        f = self.f_proj(x).astype(self.state_dtype)
        bound = self._bound(lower_bound)
        written = (1 - bound) * jax.nn.sigmoid(-f)  # 1 - l, which would cancel
        q, v, written, log_decay = (
            array.reshape(*x.shape[:2], self.n_heads, -1)
            for array in (q, v, written, log_forget(f, bound))
        )
        o, carry = ops.lightning_attention(
            q * q.shape[-1] ** -0.5,
            written.astype(v.dtype),
            v,
            log_decay,
            s0=carry,
            reset=reset,
            implementation=self.implementation,
        )
        return self.o_proj(self.g_norm(o.reshape(x.shape))), carry

    def _bound(self, lower_bound):
        bound = self.lower_bound if lower_bound is None else lower_bound
        bound = jnp.asarray(bound, self.state_dtype)
        if bound.shape not in ((), (self.d_model,)):
            raise ValueError(
                f"HGRN2: lower_bound has shape {bound.shape}, wanted "
                f"{(self.d_model,)} = (d_model,)"
            )
        return jnp.broadcast_to(bound, (1, 1, self.d_model))

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        width = self.d_model // self.n_heads
        shape = (batch_size, self.n_heads, width, width)
        return jnp.zeros(shape, self.state_dtype)


@jax.custom_jvp
def log_forget(f: jax.Array, lower_bound: jax.Array) -> jax.Array:
    """The logarithm of the decay l = b + (1 - b) sigmoid(f) of a forget gate.

    Exact to rounding, relative to itself, for decays near one and near zero, and with
    finite derivatives where b is 0 and the sigmoid underflows.

    Shapes: f and lower_bound broadcast. Raises nothing.
    """
    forgotten = (1 - lower_bound) * jax.nn.sigmoid(-f)
    small = jnp.where(forgotten < 0.5, forgotten, 0)
    negative = jnp.minimum(f, 0)  # the other branch is for l of a half at most
    strong = jnp.logaddexp(jnp.log(lower_bound), negative) - jnp.log1p(
        jnp.exp(negative)
    )
    return jnp.where(forgotten < 0.5, jnp.log1p(-small), strong)


@log_forget.defjvp
def _(primals, tangents):
    f, b = primals
    log_decay = log_forget(f, b)
    by_f = (1 - b) * jax.nn.sigmoid(-f) * jnp.exp(jax.nn.log_sigmoid(f) - log_decay)
    # Where b is 0 this grows as l vanishes; an infinity would be NaN times zero.
    by_b = jnp.exp(jnp.minimum(jax.nn.log_sigmoid(-f) - log_decay, 80.0))
    return log_decay, by_f * tangents[0] + by_b * tangents[1]
