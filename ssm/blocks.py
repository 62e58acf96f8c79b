"""Residual blocks around sequence layers."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.layers.base import Carry, SequenceLayer, Stepping, wanted
from ssm.layers.mixture_of_experts import MixtureOfExperts

Norm = Literal["layer", "rms", "gemma", "batch"] | Callable[..., nnx.Module]
Glu = Literal["full", "half", "half2", "none"]


def make_norm(
    kind: Norm,
    width: int,
    *,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """A norm over the channels, or over batch and time if its kind is "batch".

    Of the others "gemma" is `GemmaNorm`, "layer" and "rms" are those of Flax. Or `kind`
    builds the norm itself, called as the class of one would be.
    """
    if callable(kind):
        return kind(width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    if kind not in ("layer", "rms", "gemma", "batch"):
        raise ValueError(
            f"norm={kind!r} is unknown, wanted 'layer', 'rms', 'gemma' or 'batch'"
        )
    if kind == "gemma":
        return GemmaNorm(width, dtype=dtype, param_dtype=param_dtype)
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


def make_final_norm(kind: Norm | bool, width: int, **options: Any) -> nnx.Module | None:
    """The norm between the last block and the output: True is "layer", False none.

    `options` are those of `make_norm`.
    """
    if kind is False:
        return None
    return make_norm("layer" if kind is True else kind, width, **options)


def apply_norm(
    norm: nnx.Module, x: jax.Array, *, mask: jax.Array | None, train: bool
) -> jax.Array:
    """Normalise; batch norm reads the batch only if `train`, where `mask` (B, T) is."""
    if not isinstance(norm, nnx.BatchNorm):
        return norm(x)
    mask = None if mask is None else mask[..., None]
    return norm(x, use_running_average=not train, mask=mask)


class GemmaNorm(nnx.Module):
    """Root-mean-square norm whose scale is stored as its difference from one.

        y = x / sqrt(mean(x^2) + 1e-6) * (1 + scale)

    Shapes: x (..., width) -> y (..., width). Parameters: scale (width,), zero.

    Computed in float32, or wider if x is, and rounded once: to `dtype`, or for None to
    what the inputs and the parameter promote to.

    Source: Zhang and Sennrich 2019 (1910.07467), as in Gemma and RecurrentGemma.
    """

    def __init__(
        self,
        width: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.zeros((width,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...]
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x, scale = x.astype(wide), scale.astype(wide)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return (x * (1 + scale).reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)


def apply_mlp(mlp: nnx.Module, x: jax.Array, *, train: bool) -> jax.Array:
    """A map of each step, of which experts alone want to know if they are trained."""
    return mlp(x, train=train) if isinstance(mlp, MixtureOfExperts) else mlp(x)


class S4Block(Stepping, nnx.Module):
    """The residual block of the S4 family: mixer over time, then a gate over channels.

        z = x + drop(glu(drop(gelu(mixer(norm(x))))))          prenorm
        z = norm(x + drop(glu(drop(gelu(mixer(x))))))          otherwise

        glu(v) = (W1 v + b1) * sigmoid(W2 v + b2)    "full"
        glu(v) = v * sigmoid(W2 v + b2)              "half"
        glu(v) = v                                   "none"

    and with "half2" the value that passes the gate is the mixer's, before its gelu:
    y * sigmoid(W2 drop(gelu(y)) + b2) with y = mixer(norm(x)).

    `gelu` is the tanh approximation. Dropout masks are shared over time.

    Shapes: x (B, T, d_model) -> z (B, T, d_model); the carry is the mixer's.

        z, carry = block(x, carry=None, *, reset=None, key=None, mask=None, train=False)

    Dropout happens if a PRNG `key` is given, and only then. `mask` (B, T)
    bool and `train` concern batch norm alone: where its statistics come from. Further
    keywords go to a mixer that names them in `per_layer`.

    Source: Gu et al. 2022 (2111.00396); the gates as in Orvieto et al. 2023
    (2303.06349), appendix D.1, the last one as in the code of S5 (2208.04933).
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
        if glu not in get_args(Glu):
            raise ValueError(
                f"glu={glu!r} is unknown, wanted {', '.join(map(repr, get_args(Glu)))}"
            )
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
        **per_layer: jax.Array | None,
    ) -> tuple[jax.Array, Carry]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        own = wanted(self.mixer, per_layer | {"key": keys[2], "mask": mask})
        v = apply_norm(self.norm, x, mask=mask, train=train) if self.prenorm else x
        y, carry = self.mixer(v, carry, reset=reset, **own)
        v = self._gate(self._drop(nnx.gelu(y), keys[0]), y)
        z = x + self._drop(v, keys[1])
        if not self.prenorm:
            z = apply_norm(self.norm, z, mask=mask, train=train)
        return z, carry

    def _gate(self, v, y):
        if self.glu == "none":
            return v
        if self.glu == "full":
            return nnx.glu(self.gate(v))
        return (v if self.glu == "half" else y) * nnx.sigmoid(self.gate(v))

    def _drop(self, v, key):
        return v if key is None else self.dropout(v, deterministic=False, rngs=key)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return self.mixer.init_carry(batch_size, max_length=max_length)


class ResidualBlock(Stepping, nnx.Module):
    """The residual block of Transformers: a mixer over time, then one over channels.

        z = x + drop(mixer(norm(x)))            y = z + drop(mlp(mlp_norm(z)))

    Shapes: x (B, T, d_model) -> y (B, T, d_model); the carry is the mixer's.

        y, carry = block(x, carry=None, *, reset=None, key=None, mask=None, train=False)

    Args:
      mixer: any sequence layer of width d_model.
      mlp: a map (B, T, d_model) -> (B, T, d_model) of each step, such as `GatedMLP`.
      d_model: width of the inputs and outputs.
      norm: kind of both norms, see `make_norm`.
      dropout: rate at the end of both branches.
      dtype, param_dtype: of the norms.

    Dropout happens if a PRNG `key` is given, and only then. `mask` (B, T) bool and
    `train` concern batch norm, where its statistics come from, and `train` also
    `MixtureOfExperts`. Further keywords go to a mixer that names them in `per_layer`.

    Source: with the Gemma norm, De et al. 2024, Griffin (2402.19427), section 2.1.
    """

    def __init__(
        self,
        mixer: SequenceLayer,
        mlp: nnx.Module,
        d_model: int,
        *,
        norm: Norm = "gemma",
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.norm = make_norm(norm, d_model, rngs=rngs, **types)
        self.mixer = mixer
        self.mlp_norm = make_norm(norm, d_model, rngs=rngs, **types)
        self.mlp = mlp
        self.dropout = nnx.Dropout(dropout)

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
        **per_layer: jax.Array | None,
    ) -> tuple[jax.Array, Carry]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        own = wanted(self.mixer, per_layer | {"key": keys[2], "mask": mask})
        v = apply_norm(self.norm, x, mask=mask, train=train)
        v, carry = self.mixer(v, carry, reset=reset, **own)
        z = x + self._drop(v, keys[0])
        v = apply_norm(self.mlp_norm, z, mask=mask, train=train)
        v = apply_mlp(self.mlp, v, train=train)
        return z + self._drop(v, keys[1]), carry

    def _drop(self, v, key):
        return v if key is None else self.dropout(v, deterministic=False, rngs=key)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return self.mixer.init_carry(batch_size, max_length=max_length)
