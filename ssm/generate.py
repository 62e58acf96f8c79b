"""Text, or any tokens, from a causal model: prefill, then one decoding loop."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: (B, max_new_tokens) int32; `pad_token` after the end of a row.
      lengths: (B,) int32, how many tokens each row has, the stop token included.
      log_probabilities: (B, max_new_tokens) float32, of each token under the model, in
        nats and before temperature, top-k and top-p; 0 after the end of a row.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probabilities: jax.Array


class Sampling(NamedTuple):
    """How the next token is drawn from the logits, in this order.

    Attributes:
      temperature: divides the logits; 0 takes the largest.
      top_k: keep the k largest; 0 keeps all.
      top_p: of what is left keep the fewest tokens that have this probability together.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raises ValueError for what no sampling can have."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}, wanted at least 0")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}, wanted at least 0, which keeps all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}, wanted 0 < top_p <= 1")

    def filter(self, logits: jax.Array) -> jax.Array:
        """The logits (B, V) to draw from; -inf for tokens that are left out."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = jnp.sort(logits, descending=True)
            probability = jax.nn.softmax(ordered)
            # A token stays while those before it have less than top_p together.
            stays = jnp.cumsum(probability, axis=-1) - probability < self.top_p
            least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits

    def draw(self, logits: jax.Array, keys: jax.Array, step: jax.Array) -> jax.Array:
        """The next tokens, (B, V) -> (B,) int32; each row has a key."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(of_step, self.filter(logits)).astype(
            jnp.int32
        )


def left_pad(
    prompts: Sequence[Sequence[int]], pad_token: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as `tokens` (B, T) and `lengths` (B,) int32.

    Raises ValueError if there is no prompt, or an empty one.
    """
    if not prompts:
        raise ValueError("prompts is empty, wanted at least one prompt")
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths.all():
        row = int(lengths.argmin())
        raise ValueError(
            f"prompt {row} is empty, wanted at least one token: give a model that "
            "starts from nothing its token for the beginning of a text"
        )
    tokens = np.full((len(prompts), lengths.max()), pad_token, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    return tokens, lengths


def generate(
    model: nnx.Module,
    tokens: jax.Array | np.ndarray,
    lengths: jax.Array | np.ndarray | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_tokens: Sequence[int] = (),
    pad_token: int = 0,
    key: jax.Array | None = None,
) -> Generated:
    """Continues prompts, a whole batch at once.

    The prompts are run through the model as one sequence each, then a single compiled
    loop feeds every new token back. It holds the carry and the tokens, nothing that
    grows with what was read; it ends early when all rows have ended.

    Args:
      model: any causal model with `logits, carry = model(tokens, carry, reset=)`,
        `step` and `init_carry`, such as `LanguageModel`.
      tokens: (B, T) integer prompts, padded on the **left** (`left_pad`).
      lengths: (B,) how many of them are real; None is all. What lies before is not
        seen: the first real token of each row starts a document.
      max_new_tokens: when to end at the latest.
      temperature, top_k, top_p: see `Sampling`; temperature 0 is greedy.
      stop_tokens: a row ends with the first of these that it produces.
      pad_token: what follows the end of a row.
      key: a PRNG key, needed unless greedy; or one key per row, (B,). Of one key, row b
        takes `jax.random.fold_in(key, b)`.

    Raises:
      ValueError: a prompt is empty, an argument is out of its range, sampling has no
        key, or the model is not causal.
    """
    sampling = Sampling(float(temperature), int(top_k), float(top_p))
    sampling.check()
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}, wanted at least 1")
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens has shape {tokens.shape} and dtype {tokens.dtype}, "
            "wanted (B, T) integers"
        )
    batch, time = tokens.shape
    lengths = np.full(batch, time) if lengths is None else np.asarray(lengths)
    if lengths.shape != (batch,) or not np.all((1 <= lengths) & (lengths <= time)):
        raise ValueError(
            f"lengths={lengths.tolist()}, wanted {batch} numbers from 1 (a prompt has "
            f"at least one token) to {time} = T"
        )
    if key is None and temperature:
        raise ValueError(
            f"temperature={temperature} draws at random: pass key=jax.random.key(seed)"
        )
    key = jax.random.key(0) if key is None else key
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))

    graphdef, state = nnx.split(model)
    starts = jnp.asarray(time - lengths)
    logits, carry = _prefill(graphdef, state, tokens, starts, max_new_tokens)
    return _decode(
        graphdef,
        state,
        logits,
        carry,
        key,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_tokens=tuple(stop_tokens),
        pad_token=pad_token,
    )


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens"))
def _prefill(graphdef, state, tokens, starts, max_new_tokens):
    """The logits after the prompts (B, V), and the carry."""
    model = nnx.merge(graphdef, state)
    batch, time = tokens.shape
    carry = model.init_carry(batch, max_length=time + max_new_tokens)
    reset = jnp.arange(time)[None] == starts[:, None]
    logits, carry = model(tokens, carry, reset=reset)
    return logits[:, -1], carry


@functools.partial(
    jax.jit,
    static_argnames=(
        "graphdef",
        "max_new_tokens",
        "sampling",
        "stop_tokens",
        "pad_token",
    ),
)
def _decode(
    graphdef,
    state,
    logits,
    carry,
    keys,
    *,
    max_new_tokens,
    sampling,
    stop_tokens,
    pad_token,
):
    """The loop: draw, write, stop or feed back."""
    model = nnx.merge(graphdef, state)
    batch = logits.shape[0]
    empty = Generated(
        jnp.full((batch, max_new_tokens), pad_token, jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros((batch, max_new_tokens), jnp.float32),
    )

    def going_on(loop):
        step, ended, *_ = loop
        return (step < max_new_tokens) & ~jnp.all(ended)

    def one_more(loop):
        step, ended, logits, carry, out = loop
        token = sampling.draw(logits, keys, step)
        each = jax.nn.log_softmax(logits.astype(jnp.float32))
        its_own = jnp.take_along_axis(each, token[:, None], axis=1)[:, 0]
        token = jnp.where(ended, pad_token, token)
        out = Generated(
            out.tokens.at[:, step].set(token),
            out.lengths + ~ended,
            out.log_probabilities.at[:, step].set(jnp.where(ended, 0.0, its_own)),
        )
        if stop_tokens:
            ended |= jnp.isin(token, jnp.array(stop_tokens)) & (out.lengths == step + 1)
        logits, carry = model.step(token, carry)
        return step + 1, ended, logits, carry, out

    start = jnp.int32(0), jnp.zeros(batch, bool), logits, carry, empty
    return lax.while_loop(going_on, one_more, start)[-1]
