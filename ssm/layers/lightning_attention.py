"""Linear attention with a fixed decay: TransNormerLLM's and MiniMax's token mixer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm import initializers, ops
from ssm.layers import attend
from ssm.layers.base import (
    Carry,
    SequenceLayer,
    check_carry,
    check_input,
    recurrence_dtype,
)
from ssm.ops.checks import check_reset

SimpleRMSNorm = functools.partial(nnx.RMSNorm, use_scale=False)
"""TransNormerLLM's norm: x / sqrt(mean(x^2) + 1e-6), without parameters."""


class LightningAttention(SequenceLayer):
    """Linear attention in which head h forgets at a fixed rate.

        q, k, v = silu(query(x)), silu(key(x)), value(x)
        S_t = exp(-slope_h) S_{t-1} + k_t^T v_t,    o_t = q_t S_t      for each head
        y_t = out(norm(concat_h o_t) * gate_activation(gate(x_t)))

    This is the sum form: o_t = sum_s exp(-slope (t - s)) (q_t . k_s) v_s, neither
    scaled nor divided by the sum of its weights. The norm over all heads takes the
    place of that division, which linear attention in its normalised form has; there o_t
    would be q_t S_t / (q_t z_t), where z_t runs as S_t does with 1 in the place of v_t.

    As it stands the layer is TransNormerLLM's. MiniMax's is had with

        activate_value=True, gate_activation=nnx.sigmoid, norm=nnx.RMSNorm

    With `turned=True` (LRPE) each channel of q and k becomes two, so that step t sees
    step s with weights q_j k_j cos(theta_j (t - s)):

        q_t -> [q_t cos(theta t), q_t sin(theta t)],    k_t the same

    The slopes are constants, and one for each head: given to the layer, or to the call,
    by a model that has others in each layer, see `decay_slopes`.

    Shapes: x (B, T, d_model) real -> y (B, T, d_model). The carry is the state
    (B, H, K, K) float32, its rows those of the key; if turned a dict: "state"
    (B, H, 2 K, K), and "length" (B,) int32, how many steps the document has.

        y, carry = layer(x, carry=None, *, reset=None, slopes=None)

    Parameters: query, key, value, gate, kernel (d_model, H K); out, kernel
    (H K, d_model); normal of variance 1 / inputs, or by `kernel_init`; biases, zero;
    norm, of width H K. If turned theta (H, K), 10000^(-2 m / (H K)) where m counts the
    channels of all heads, in radians.

    Args:
      d_model: width of the inputs and outputs.
      n_heads: H.
      head_dim: K; None is d_model / n_heads.
      slopes: H numbers, zero or more; None is `initializers.alibi_slopes`.
      activate_value: whether v goes through silu as q and k do.
      activation: what they go through, if not silu.
      turned: see above.
      norm: builds the norm, called as the class of one would be.
      gate_activation: of the gate; None is the identity.
      gate_rank: if given, the gate is a product of two maps with so many channels
        between.
      bias: whether the projections have biases.
      kernel_init: see above.
      dtype: of the projections and the output; None takes that of the inputs and
        parameters. Decays and states are float32 at least.
      param_dtype: of the parameters; theta is float32 at least.
      implementation: of the recurrence, see `ssm.ops.lightning_attention`.

    Raises ValueError if x has another width, slopes or a carry another shape, or
    n_heads does not divide d_model and there is no head_dim.

    Source: Qin et al. 2024, TransNormerLLM (2307.14995), section 3, and Lightning
    Attention-2 (2401.04658); MiniMax 2025 (2501.08313), section 2.2.
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = ("theta",)
    per_layer = ("slopes",)

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        head_dim: int | None = None,
        slopes: Sequence[float] | None = None,
        activate_value: bool = False,
        activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        turned: bool = False,
        norm: Callable[..., nnx.Module] = SimpleRMSNorm,
        gate_activation: Callable[[jax.Array], jax.Array] | None = None,
        gate_rank: int | None = None,
        bias: bool = False,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if head_dim is None:
            if n_heads < 1 or d_model % n_heads:
                raise ValueError(
                    f"LightningAttention: n_heads={n_heads} does not divide "
                    f"d_model={d_model}; wanted a divisor, or a head_dim"
                )
            head_dim = d_model // n_heads
        own = initializers.alibi_slopes(n_heads) if slopes is None else slopes
        self.slopes = tuple(float(slope) for slope in own)
        if len(self.slopes) != n_heads or min(self.slopes) < 0:
            raise ValueError(
                f"LightningAttention: slopes={self.slopes}, wanted {n_heads} numbers, "
                "zero or more, one a head"
            )
        self.d_model, self.n_heads, self.head_dim = d_model, n_heads, head_dim
        self.activate_value, self.activation = activate_value, activation
        self.turned, self.gate_activation = turned, gate_activation
        self.implementation = implementation
        self.state_dtype = recurrence_dtype(param_dtype)
        width = n_heads * head_dim
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        types["rngs"] = rngs

        def linear(d_in, d_out):
            init = kernel_init or nnx.initializers.lecun_normal()
            return nnx.Linear(d_in, d_out, use_bias=bias, kernel_init=init, **types)

        self.query, self.key = linear(d_model, width), linear(d_model, width)
        self.value = linear(d_model, width)
        if gate_rank is None:
            self.gate = linear(d_model, width)
        else:
            self.gate = nnx.Sequential(
                linear(d_model, gate_rank), linear(gate_rank, width)
            )
        self.out = linear(width, d_model)
        self.norm = norm(width, **types)
        if turned:
            powers = jnp.arange(width, dtype=self.state_dtype) * (-2 / width)
            self.theta = nnx.Param((10_000.0**powers).reshape(n_heads, head_dim))

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        slopes: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        check_carry(self, carry, x.shape[0])
        q, k = self.activation(self.query(x)), self.activation(self.key(x))
        v = self.activation(self.value(x)) if self.activate_value else self.value(x)
        q, k, v = (
            array.reshape(*x.shape[:2], self.n_heads, self.head_dim)
            for array in (q, k, v)
        )
        state, length = carry, None
        if self.turned:
            carry = self.init_carry(x.shape[0]) if carry is None else carry
            place, length = _places(carry["length"], reset, x.shape[1])
            q, k, state = self._turn(q, place), self._turn(k, place), carry["state"]
        o, state = ops.lightning_attention(
            q,
            k,
            v,
            self._log_decay(slopes),
            s0=state,
            reset=reset,
            implementation=self.implementation,
        )
        o = self.norm(o.reshape(*x.shape[:2], -1))
        y = self.out(o * self._gate(x))
        return y, {"state": state, "length": length} if self.turned else state

    def _log_decay(self, slopes):
        slopes = jnp.asarray(self.slopes if slopes is None else slopes)
        if slopes.shape != (self.n_heads,):
            raise ValueError(
                f"LightningAttention: slopes has shape {slopes.shape}, wanted "
                f"{(self.n_heads,)} = (n_heads,)"
            )
        return -slopes.astype(self.state_dtype)

    def _turn(self, array, place):
        """Channels (B, T, H, K) -> (B, T, H, 2 K); angles are never narrow."""
        angle = (
            place.astype(self.state_dtype)[..., None, None]
            * self.theta[...][None, None]
        )
        wide = array.astype(self.state_dtype)
        both = [wide * jnp.cos(angle), wide * jnp.sin(angle)]
        return jnp.concatenate(both, axis=-1).astype(array.dtype)

    def _gate(self, x):
        gate = self.gate(x)
        return gate if self.gate_activation is None else self.gate_activation(gate)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        rows = 2 * self.head_dim if self.turned else self.head_dim
        shape = (batch_size, self.n_heads, rows, self.head_dim)
        state = jnp.zeros(shape, self.state_dtype)
        if not self.turned:
            return state
        return {"state": state, "length": jnp.zeros((batch_size,), jnp.int32)}


def _places(length, reset, time):
    """The place of each step in its document (B, T), and how long that is after all."""
    if reset is not None:
        check_reset(reset, length.shape[0], time)
    start = attend.document_starts(reset, length, time)
    place = jnp.arange(time, dtype=jnp.int32)[None] - start
    return place, length if time == 0 else place[:, -1] + 1


class DecaySlopes(nnx.Module):
    """The slopes of all layers, as `ssm.models.stack.Coupled` hands them out.

        {"slopes": (n_layers, n_heads)} = DecaySlopes(n_layers, n_heads, kind=...)()

    It has no parameters. `kind` is that of `initializers.decay_slopes`.
    """

    def __init__(self, n_layers: int, n_heads: int, *, kind: initializers.SlopeKind):
        self.n_layers, self.n_heads, self.kind = n_layers, n_heads, kind

    def __call__(self) -> dict[str, jax.Array]:
        slopes = initializers.decay_slopes(self.n_heads, self.n_layers, kind=self.kind)
        return {"slopes": jnp.asarray(slopes)}
