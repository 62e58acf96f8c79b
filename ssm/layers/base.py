"""What every sequence layer has in common."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Carry = Any
"""The state that a layer hands from one chunk of a sequence to the next: a pytree of
arrays of fixed shapes and dtypes."""


class AuxiliaryLoss(nnx.Variable):
    """What a layer wants added to the loss, of its last call with train=True."""


def auxiliary_loss(model: nnx.Module) -> jax.Array | None:
    """The sum of what layers want added to the loss; None if there are no such layers.

    Read it after the call with train=True, inside the function that is differentiated;
    it is a mean over the tokens of that call.
    """
    losses = jax.tree.leaves(nnx.state(model, AuxiliaryLoss))
    return jnp.sum(jnp.stack([jnp.sum(loss) for loss in losses])) if losses else None


class Stepping:
    """Gives a module that runs in chunks a `step`: the chunk of one time step."""

    def step(
        self, x_t: jax.Array, carry: Carry, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        """One time step: x_t (B, ...), reset (B,) bool -> y_t (B, ...), carry."""
        reset = None if reset is None else reset[:, None]
        y, carry = self(x_t[:, None], carry, reset=reset)  # type: ignore[operator]
        return y[:, 0], carry


class SequenceLayer(Stepping, nnx.Module):
    """A map of sequences to sequences that can be run whole, in chunks or in steps.

        y, carry = layer(x, carry=None, *, reset=None)

    x (B, T, D) -> y (B, T, D). The law of every causal layer, in values and gradients:
    the whole sequence = any split into chunks with the carry passed on = step by step;
    and packed documents, with `reset` (B, T) bool True at the first step of each, = the
    documents one by one.

    Attributes:
      causal: False for layers that look ahead. They take no carry and return None.
      recurrence_parameters: names of the parameters that decide the dynamics and want a
        smaller learning rate and no weight decay (see `ssm.param_groups`).
      per_layer: names of further keywords of the call, for values that a model works
        out for all of its layers at once (see `ssm.models.stack.Coupled`); "key" if the
        layer takes a PRNG key for what is random in training; "mask" if it looks at
        the mask (B, T) of the valid steps of padded sequences, and not at a reset.
    """

    causal: bool = True
    recurrence_parameters: ClassVar[tuple[str, ...]] = ()
    per_layer: tuple[str, ...] = ()

    def __call__(
        self, x: jax.Array, carry: Carry = None, *, reset: jax.Array | None = None
    ) -> tuple[jax.Array, Carry]:
        raise NotImplementedError

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        """The carry before the first step. Only full attention needs `max_length`."""
        raise NotImplementedError


def wanted(mixer: SequenceLayer, values: dict[str, Any]) -> dict[str, Any]:
    """Of what a model or a block has for its mixers, that which this one takes."""
    return {name: values[name] for name in mixer.per_layer if name in values}


def recurrence_dtype(param_dtype: DTypeLike) -> jnp.dtype:
    """`param_dtype`, but never narrower than float32: rounding a decay ruins it."""
    dtype = jnp.dtype(param_dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def document_ends(reset: jax.Array | None) -> jax.Array | None:
    """Where documents end, given where they start: what a backward scan resets at.

    Shape (B, T) bool -> (B, T) bool: shifted left by one, the last step True.
    """
    if reset is None:
        return None
    return jnp.concatenate([reset[:, 1:], jnp.ones_like(reset[:, :1])], axis=1)


def strictly_ahead(
    run: Callable[[Any, jax.Array | None], jax.Array],
    inputs: Any,
    reset: jax.Array | None,
) -> jax.Array:
    """What a causal map makes of the reversed sequence, of all that follows a step.

        y_t = run of x_{T-1}, ..., x_{t+1}

    `run(inputs, reset)` maps a pytree of arrays (B, T, ...) to y (B, T, D); documents
    start where `reset` (B, T) says, and no y sees another one.
    """
    ends = document_ends(reset)
    reversed_inputs, starts = jax.tree.map(
        lambda x: jnp.flip(x, axis=1), (inputs, ends)
    )
    y = jnp.flip(run(reversed_inputs, starts), axis=1)
    y = jnp.concatenate([y[:, 1:], jnp.zeros_like(y[:, :1])], axis=1)
    return y if ends is None else jnp.where(ends[..., None], 0, y)


def check_input(layer: nnx.Module, x: jax.Array, width: int) -> None:
    """Raises ValueError unless x is (B, T, width) and floating."""
    name = type(layer).__name__
    if x.ndim != 3 or x.shape[-1] != width:
        raise ValueError(f"{name}: x has shape {x.shape}, wanted (B, T, {width})")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: x has dtype {x.dtype}, wanted real floating")


def check_carry(
    layer: SequenceLayer, carry: Carry, batch_size: int, max_length: int | None = None
) -> None:
    """Raises ValueError unless the carry is None, or such as `init_carry` makes."""
    if carry is None:
        return
    wanted = jax.eval_shape(lambda: layer.init_carry(batch_size, max_length=max_length))
    if _form(carry) != _form(wanted):
        raise ValueError(
            f"{type(layer).__name__}: the carry is {_form(carry)}, wanted "
            f"{_form(wanted)}, as init_carry({batch_size}) makes it: is it of another "
            "layer, or of another batch?"
        )


def _form(carry: Carry) -> Any:
    """What tells carries apart: names, shapes, and whether complex, real or integer."""

    def of_leaf(leaf: jax.Array) -> str:
        kind = jnp.issubdtype(leaf.dtype, jnp.integer) and "int"
        kind = kind or (jnp.issubdtype(leaf.dtype, jnp.complexfloating) and "complex")
        return f"{kind or 'real'}{list(leaf.shape)}"

    return jax.tree.map(of_leaf, carry)


def refuse_carry(layer: nnx.Module) -> ValueError:
    """The error of a layer that looks ahead and is asked to run in chunks or steps."""
    return ValueError(
        f"{type(layer).__name__} looks at the whole sequence, so it has no carry: "
        "call it once on whole sequences, with carry=None"
    )
