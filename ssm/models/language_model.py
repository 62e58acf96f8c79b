"""Tokens to the logits of tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssm.blocks import Norm, make_final_norm
from ssm.layers.base import Carry, Stepping
from ssm.models.encoder import encode
from ssm.models.stack import MakeBlock, Pattern, Stack


class LanguageModel(Stepping, nnx.Module):
    """Embedding, blocks, norm, linear map to the logits of every position.

        logits, carry = model(tokens, carry=None, *, reset=None, key=None)

    Shapes: tokens (B, T) int, reset (B, T) bool -> logits (B, T, n_outputs) float32. A
    causal model may be run whole, in chunks with the carry passed on, or in steps:
    `logits_t, carry = model.step(tokens_t, carry)` with tokens_t (B,).

    `reset` marks the starts of packed documents, which then never see each other. To
    compare with a model that reads across their borders leave it None: there is no
    other switch.

    Args:
      make_block: builds one block, or several such in turn, see `Stack`.
      n_layers, d_model, vocab_size: sizes.
      n_outputs: number of logits; None is vocab_size.
      tied: use the embedding as the output map (then n_outputs must be vocab_size).
      head: builds the output map if it is not tied, as `nnx.Linear` would be built.
      embedding_scale: multiplies the embeddings on their way in; RecurrentGemma has
        sqrt(d_model), rounded to bfloat16.
      final_norm: the norm before the output map: its kind, see `blocks.make_norm`;
        True is "layer", False none.
      soft_cap: bounds the logits smoothly, `soft_cap * tanh(logits / soft_cap)`; None
        does not.
      scan_layers, remat: see `Stack`.
      dtype, param_dtype: of the computation and of the parameters.

    Dropout happens if a PRNG `key` is given, and only then. `train` as in
    `SequenceClassifier`.
    """

    def __init__(
        self,
        make_block: MakeBlock | Pattern,
        *,
        n_layers: int,
        d_model: int,
        vocab_size: int,
        n_outputs: int | None = None,
        tied: bool = False,
        head: Callable[..., nnx.Module] = nnx.Linear,
        embedding_scale: float = 1.0,
        final_norm: Norm | bool = True,
        soft_cap: float | None = None,
        scan_layers: bool = False,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        n_outputs = vocab_size if n_outputs is None else n_outputs
        if tied and n_outputs != vocab_size:
            raise ValueError(
                f"n_outputs={n_outputs} with tied=True, "
                f"wanted {vocab_size} = vocab_size"
            )
        if soft_cap is not None and not soft_cap > 0:
            raise ValueError(f"soft_cap={soft_cap}, wanted a positive number or None")
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.embedding_scale, self.soft_cap = embedding_scale, soft_cap
        self.encoder = nnx.Embed(vocab_size, d_model, rngs=rngs, **types)
        self.stack = Stack(
            make_block, n_layers, scan_layers=scan_layers, remat=remat, rngs=rngs
        )
        self.norm = make_final_norm(final_norm, d_model, rngs=rngs, **types)
        self.head = None if tied else head(d_model, n_outputs, rngs=rngs, **types)

    def __call__(
        self,
        tokens: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Carry]:
        x = encode(self.encoder, tokens)
        if self.embedding_scale != 1:
            x = x * jnp.asarray(self.embedding_scale, x.dtype)
        x, carry = self.stack(x, carry, reset=reset, key=key, train=train)
        if self.norm is not None:
            x = self.norm(x)
        logits = self.encoder.attend(x) if self.head is None else self.head(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.soft_cap is not None:
            logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
        return logits, carry

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        return self.stack.init_carry(batch_size, max_length=max_length)
