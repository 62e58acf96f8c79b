"""Residual blocks around sequence layers."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers.base import Carry, SequenceLayer, Stepping

Norm = Literal["layer", "rms", "batch"]
Glu = Literal["full", "half", "none"]


def make_norm(
    kind: Norm,
    width: int,
    *,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """A norm over the channels ("layer", "rms") or over batch and time ("batch")."""
    if kind not in ("layer", "rms", "batch"):
        raise ValueError(f"norm={kind!r} is unknown, wanted 'layer', 'rms' or 'batch'")
    if kind == "batch":
        return nnx.BatchNorm(
            width,
            momentum=0.99,
            epsilon=1e-5,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
    norm = nnx.LayerNorm if kind == "layer" else nnx.RMSNorm
    return norm(width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def apply_norm(
    norm: nnx.Module, x: jax.Array, *, mask: jax.Array | None, train: bool
) -> jax.Array:
    """Normalise; batch norm reads the batch only if `train`, where `mask` (B, T) is."""
    if not isinstance(norm, nnx.BatchNorm):
        return norm(x)
    mask = None if mask is None else mask[..., None]
    return norm(x, use_running_average=not train, mask=mask)


class S4Block(Stepping, nnx.Module):
    """The residual block of the S4 family: mixer over time, then a gate over channels.

        z = x + drop(glu(drop(gelu(mixer(norm(x))))))          prenorm
        z = norm(x + drop(glu(drop(gelu(mixer(x))))))          otherwise

        glu(v) = (W1 v + b1) * sigmoid(W2 v + b2)    "full"
        glu(v) = v * sigmoid(W2 v + b2)              "half"
        glu(v) = v                                   "none"

    `gelu` is the tanh approximation. Dropout masks are shared over time.

    Shapes: x (B, T, d_model) -> z (B, T, d_model); the carry is the mixer's.

        z, carry = block(x, carry=None, *, reset=None, key=None, mask=None, train=False)

    Dropout happens if a PRNG `key` is given, and only then. `mask` (B, T)
    bool and `train` concern batch norm alone: where its statistics come from.

    Source: Gu et al. 2022 (2111.00396); the gates as in Orvieto et al. 2023
    (2303.06349), appendix D.1.
    """

    def __init__(
        self,
        mixer: SequenceLayer,
        d_model: int,
        *,
        norm: Norm = "layer",
        prenorm: bool = True,
        glu: Glu = "full",
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if glu not in ("full", "half", "none"):
            raise ValueError(f"glu={glu!r} is unknown, wanted 'full', 'half' or 'none'")
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.mixer, self.prenorm, self.glu = mixer, prenorm, glu
        self.norm = make_norm(norm, d_model, rngs=rngs, **types)
        if glu != "none":
            width = 2 * d_model if glu == "full" else d_model
            self.gate = nnx.Linear(d_model, width, rngs=rngs, **types)
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1,))

    @property
    def causal(self) -> bool:
        return self.mixer.causal

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Carry]:
        keys = (None, None) if key is None else jax.random.split(key)
        v = apply_norm(self.norm, x, mask=mask, train=train) if self.prenorm else x
        v, carry = self.mixer(v, carry, reset=reset)
        v = self._gate(self._drop(nnx.gelu(v), keys[0]))
        z = x + self._drop(v, keys[1])
        if not self.prenorm:
            z = apply_norm(self.norm, z, mask=mask, train=train)
        return z, carry

    def _gate(self, v):
        if self.glu == "none":
            return v
        if self.glu == "half":
            return v * nnx.sigmoid(self.gate(v))
        return nnx.glu(self.gate(v))

    def _drop(self, v, key):
        return v if key is None else self.dropout(v, deterministic=False, rngs=key)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return self.mixer.init_carry(batch_size, max_length=max_length)
