"""The hierarchically gated recurrent unit of HGRN."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

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
    document_ends,
    recurrence_dtype,
    refuse_carry,
)

LayerNorm = functools.partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)
"""The norm of the published layers; sums of squares apart from the mean are exact."""

linear_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within one over the square root of the number of inputs."""


class HGRU(SequenceLayer):
    """Hierarchically gated recurrent unit: a diagonal recurrence with a forget gate.

        c_t = silu(input_proj(x_t))                      complex, D of them
        l_t = lower_bound + (1 - lower_bound) sigmoid(lambda_proj(x_t))
        h_t = l_t exp(i theta) * h_{t-1} + (1 - l_t) * c_t
        y_t = out_proj(norm([Re h_t, Im h_t]) * gate_activation(gate(x_t)))

    where D is d_model; channels 2 j and 2 j + 1 of input_proj are the real and the
    imaginary part of c_j. With `real=True` there is no theta, and h, c are D real
    numbers. With `gate_first=True` the gate comes before the norm, as the paper has it;
    the code behind its numbers has what is above.

    The lower bound keeps upper layers from forgetting fast. It is a number given to the
    layer, or one for each channel and call, from a model that learns those of all its
    layers, see `LowerBounds`.

    With `bidirectional=True` a second scan runs backwards over the same c_t and l_t,
    with a theta_reverse of its own unless `shared_phase`. The states are added, so that
    c_t counts twice.

    Shapes: x (B, T, D) real -> y (B, T, D); carry (B, D) complex64, or float32 if real.

        y, carry = layer(x, carry=None, *, reset=None, lower_bound=None)

    Parameters: input_proj and gate, kernel (D, 2 D); lambda_proj, kernel (D, D);
    out_proj, kernel (2 D, D); where 2 D is D if real. Kernels and biases are uniform
    within 1 / sqrt(number of inputs). theta (D,), 10000^(-2 j / D), in radians.
    norm, of width 2 D.

    Args:
      d_model: D, width of inputs, outputs and state.
      real: see above.
      bidirectional, shared_phase: see above. The layer is then not causal.
      lower_bound: below 1, the least decay where the call does not give another.
      gate_first: see above.
      gate_activation: of the gate.
      norm: builds the norm, called as the class of one would be.
      bias: whether the projections have biases.
      kernel_init: of the projections' kernels; None is the above.
      dtype: of the projections and the output; None takes that of the inputs and
        parameters. The recurrence is float32 at least.
      param_dtype: of the parameters; theta is float32 at least.
      implementation: of the scan, see `ssm.ops.hgrn_scan`.

    Raises ValueError if x has another width, lower_bound or a carry another shape, or a
    carry is given when bidirectional.

    Source: Qin et al. 2023, HGRN (2311.04823), section 3; the real form with an RMS
    norm and without biases is that of released language models.
    """

    recurrence_parameters: ClassVar[tuple[str, ...]] = ("theta", "theta_reverse")
    per_layer = ("lower_bound",)

    def __init__(
        self,
        d_model: int,
        *,
        real: bool = False,
        bidirectional: bool = False,
        shared_phase: bool = False,
        lower_bound: float = 0.0,
        gate_first: bool = False,
        gate_activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        norm: Callable[..., nnx.Module] = LayerNorm,
        bias: bool = True,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if not 0 <= lower_bound < 1:
            raise ValueError(f"HGRU: lower_bound={lower_bound}, wanted 0 <= it < 1")
        self.d_model, self.real, self.causal = d_model, real, not bidirectional
        self.lower_bound, self.implementation = lower_bound, implementation
        self.gate_first, self.gate_activation = gate_first, gate_activation
        self.state_dtype = recurrence_dtype(param_dtype)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        types["rngs"] = rngs
        width = d_model if real else 2 * d_model

        def linear(d_in, d_out):
            return nnx.Linear(
                d_in,
                d_out,
                use_bias=bias,
                kernel_init=kernel_init or linear_uniform,
                bias_init=uniform_bias(d_in),
                **types,
            )

        self.input_proj = linear(d_model, width)
        self.lambda_proj = linear(d_model, d_model)
        self.gate = linear(d_model, width)
        self.out_proj = linear(width, d_model)
        self.norm = norm(width, **types)
        if not real:
            powers = jnp.arange(d_model, dtype=self.state_dtype) * (-2 / d_model)
            theta = 10_000.0**powers
            self.theta = nnx.Param(theta)
            if bidirectional and not shared_phase:
                self.theta_reverse = nnx.Param(theta)

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        lower_bound: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        check_input(self, x, self.d_model)
        if not self.causal and carry is not None:
            raise refuse_carry(self)
        check_carry(self, carry, x.shape[0])
        scan = functools.partial(self.scan, *self.inputs(x), lower_bound)
        h, carry = scan(theta=self.phase(), h0=carry, reset=reset)
        if not self.causal:
            ends = document_ends(reset)
            back, _ = scan(theta=self.phase(reverse=True), reset=ends, reverse=True)
            h, carry = h + back, None
        return self.output(x, h), carry

    def inputs(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What goes into the recurrence: c, and the forget gate before its sigmoid."""
        if self.real:
            return nnx.silu(self.input_proj(x)), self.lambda_proj(x)
        # The kernel's columns are sorted, not the channels, of which there are more.
        graphdef, params = nnx.split(self.input_proj)
        sorted_proj = nnx.merge(graphdef, jax.tree.map(_real_then_imaginary, params))
        c = nnx.silu(sorted_proj(x)).astype(self.state_dtype)
        return jax.lax.complex(*jnp.split(c, 2, axis=-1)), self.lambda_proj(x)

    def scan(
        self, c: jax.Array, f: jax.Array, lower_bound: jax.Array | None, **options: Any
    ) -> tuple[jax.Array, jax.Array]:
        """`ssm.ops.hgrn_scan`, where a lower bound of None is that of the layer."""
        bound = self.lower_bound if lower_bound is None else lower_bound
        bound = jnp.asarray(bound, self.state_dtype)
        if bound.shape not in ((), (self.d_model,)):
            raise ValueError(
                f"{type(self).__name__}: lower_bound has shape {bound.shape}, wanted "
                f"{(self.d_model,)} = (d_model,)"
            )
        bound = jnp.broadcast_to(bound, (self.d_model,))
        return ops.hgrn_scan(c, f, bound, implementation=self.implementation, **options)

    def phase(self, *, reverse: bool = False) -> jax.Array | None:
        """What the state turns by in a step, in either direction; None if real."""
        if self.real:
            return None
        own = reverse and hasattr(self, "theta_reverse")
        return (self.theta_reverse if own else self.theta)[...]

    def output(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """What follows the recurrence: norm, gate, projection."""
        gate = self.gate_activation(self.gate(x))
        if not self.real:
            h = jnp.concatenate([jnp.real(h), jnp.imag(h)], axis=-1)
        if self.gate_first:
            return self.out_proj(self.norm(h * gate))
        return self.out_proj(self.norm(h) * gate)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        if not self.causal:
            raise refuse_carry(self)
        dtype = self.state_dtype if self.real else _complex(self.state_dtype)
        return jnp.zeros((batch_size, self.d_model), dtype)


def _real_then_imaginary(array):
    """Sorts a last axis on which the two alternate."""
    pairs = array.reshape(*array.shape[:-1], -1, 2)
    return jnp.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1)


def uniform_bias(d_in: int) -> nnx.Initializer:
    """Biases uniform within one over the square root of the number of inputs."""

    def draw(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -(d_in**-0.5), d_in**-0.5)

    return draw


def _complex(dtype):
    return jnp.complex128 if dtype == jnp.float64 else jnp.complex64
