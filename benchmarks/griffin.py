"""A small Griffin: a training step beside the plain scan, and decoding at any context.

The model is that of `configs/lm/bytes.py:griffin,tiny`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from benchmarks.harness import at_least, at_most, check_close, interleaved, table
from benchmarks.train_step import Contender, stepper
from ssm import LanguageModel
from ssm.models import griffin, transformer

SIZE = griffin.Size(128, 3, 4, lru_width=128, d_ff=256)
PEER = transformer.Size(128, 3, 4, d_ff=224)
VOCABULARY, WINDOW = 257, 128
BATCH, LENGTH = 8, 512  # of a training step
CONTEXTS = {"1k": 2**10, "4k": 2**12, "16k": 2**14, "64k": 2**16}
CHUNK = 2**10  # tokens that are read at once
STEPS = 256  # tokens that are timed
# Sums over BATCH * LENGTH rows in another order: 4096 * 6e-8 at the very worst.
TOLERANCE = 3e-4


def make(implementation: str | None = None) -> LanguageModel:
    """Return the model, the same for every implementation."""
    return griffin.griffin(
        SIZE,
        vocab_size=VOCABULARY,
        window=WINDOW,
        implementation=implementation,
        rngs=nnx.Rngs(0),
    )


def tokens_of(batch: int, length: int) -> jax.Array:
    """Return random tokens (B, T)."""
    return jax.random.randint(jax.random.key(0), (batch, length), 0, VOCABULARY)


def training(batch: int = BATCH, length: int = LENGTH, repeats: int = 9) -> str:
    """Return the table of a step of AdamW, ours beside the parallel prefix."""
    tokens = tokens_of(batch, length + 1)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]

    def contender(implementation: str | None) -> Contender:
        graphdef, params = nnx.split(make(implementation))

        def apply(params: Any, tokens: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(tokens)[0]

        return Contender(nnx.to_pure_dict(params), inputs, apply)

    models = {name: contender(name) for name in (None, "associative")}
    got, wanted = (
        jax.jit(jax.grad(model.loss))(model.params, inputs, labels)
        for model in models.values()
    )
    check_close("gradient", got, wanted, TOLERANCE)
    seconds = interleaved(
        {name or "ours": stepper(model, labels) for name, model in models.items()},
        repeats,
    )
    ratio = seconds["associative"] / seconds["ours"]
    rows = [[name, f"{1e3 * value:.0f}"] for name, value in seconds.items()]
    rows.append(["ratio", at_least(ratio, 1.5)])
    return table(["scan", "step ms"], rows)


def read(model: LanguageModel, tokens: jax.Array) -> Iterator[tuple[int, Any]]:
    """Yield how many tokens are read and the carry, chunk by chunk."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def chunk(state: Any, tokens: jax.Array, carry: Any) -> Any:
        return nnx.merge(graphdef, state)(tokens, carry)[1]

    carry = model.init_carry(tokens.shape[0])
    for start in range(0, tokens.shape[1], CHUNK):
        carry = chunk(state, tokens[:, start : start + CHUNK], carry)
        yield start + CHUNK, carry


def decoder(model: LanguageModel) -> Callable[..., tuple[Any, jax.Array]]:
    """Return a function that feeds tokens (N, B) one by one: logits (N, B, V)."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def decode(state: Any, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        def step(carry: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            logits, carry = nnx.merge(graphdef, state).step(token, carry)
            return carry, logits

        return jax.lax.scan(step, carry, tokens)

    return functools.partial(decode, state)


def check_decoding(model: LanguageModel, carry: Any, tokens: jax.Array) -> None:
    """Hold decoding after the first chunk to the whole sequence at once."""
    _, logits = decoder(model)(carry, tokens[:, CHUNK:].T)
    graphdef, state = nnx.split(model)
    whole = jax.jit(lambda state: nnx.merge(graphdef, state)(tokens)[0])(state)
    # Some hundred float32 roundings between a logit and the inputs.
    check_close("decoding", logits[:, 0], whole[0, CHUNK:], tolerance=1e-4)


def size_of(carry: Any) -> int:
    """Return the bytes of a carry."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))


def decoding(contexts: dict[str, int] = CONTEXTS, repeats: int = 41) -> str:
    """Return the table of the tokens a second, and of the bytes of the cache."""
    model = make()
    tokens = tokens_of(1, max(contexts.values()))
    carries = {
        length: carry
        for length, carry in read(model, tokens)
        if length in contexts.values()
    }
    check_decoding(model, carries[min(carries)], tokens_of(1, CHUNK + 32))
    decode, new = decoder(model), tokens_of(STEPS, 1)
    seconds = interleaved(
        {
            name: functools.partial(decode, carries[length], new)
            for name, length in contexts.items()
        },
        repeats,
    )
    attention = transformer.transformer(PEER, vocab_size=VOCABULARY, rngs=nnx.Rngs(0))

    def cache_of_attention(length: int) -> int:
        make_cache = functools.partial(attention.init_carry, 1, max_length=length)
        return size_of(jax.eval_shape(make_cache))

    rows = [
        [
            name,
            f"{STEPS / seconds[name]:,.0f}",
            f"{size_of(carries[length]):,}",
            f"{cache_of_attention(length):,}",
        ]
        for name, length in contexts.items()
    ]
    slowest, fastest = max(seconds.values()), min(seconds.values())
    spread = at_most(100 * (slowest / fastest - 1), 10, "%")
    header = ["tokens read", "tokens/s", "bytes of cache", "of a Transformer's cache"]
    return table(header, rows) + f"\n\nSlowest over fastest: {spread} more time."


def run() -> str:
    """Return both tables."""
    return (
        f"Griffin of {SIZE.n_layers} layers, d_model {SIZE.d_model}, window {WINDOW}, "
        f"float32. A training step on {BATCH} x {LENGTH}\ntokens, AdamW:\n\n"
        f"{training()}\n\nDecoding {STEPS} tokens, batch 1, after so many others; the "
        f"Transformer is of the same\nsize:\n\n{decoding()}"
    )
