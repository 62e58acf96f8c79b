"""Decoding after ever longer contexts: the time and the bytes of a token stay the same.

Small models, one sequence. Each is read chunk by chunk, and its decoding held to the
whole sequence at once before it is timed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from benchmarks.griffin import SIZE, VOCABULARY, tokens_of
from benchmarks.griffin import make as griffin
from benchmarks.harness import at_most, check_close, interleaved, table
from ssm import LanguageModel
from ssm.models import hgrn, transformer, transnormer

STATE = hgrn.Size(SIZE.d_model, SIZE.n_layers, d_ff=256, n_heads=2)
PEER = transformer.Size(SIZE.d_model, SIZE.n_layers, 4, d_ff=224)
LIGHTNING = transnormer.Size(SIZE.d_model, SIZE.n_layers, 2, d_ff=256)
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "Griffin": griffin,
    "HGRN": lambda: hgrn.hgrn(STATE, vocab_size=VOCABULARY, rngs=nnx.Rngs(0)),
    "HGRN2": lambda: hgrn.hgrn2(STATE, vocab_size=VOCABULARY, rngs=nnx.Rngs(0)),
    "TransNormerLLM": lambda: transnormer.transnormer(
        LIGHTNING, vocab_size=VOCABULARY, rngs=nnx.Rngs(0)
    ),
}
CONTEXTS = {"1k": 2**10, "16k": 2**14, "64k": 2**16, "256k": 2**18}
CHUNK = 2**10  # tokens that are read at once
STEPS = 256  # tokens that are timed


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


def decoding(
    name: str, contexts: Mapping[str, int] = CONTEXTS, repeats: int = 41
) -> tuple[list[list[str]], str]:
    """Return the rows of a model, and by how much it slows down.

    A row has the tokens a second and the bytes of the carry.
    """
    model = MODELS[name]()
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
            context: functools.partial(decode, carries[length], new)
            for context, length in contexts.items()
        },
        repeats,
    )
    rows = [
        [
            name,
            context,
            f"{STEPS / seconds[context]:,.0f}",
            f"{size_of(carries[length]):,}",
            f"{cache_of_attention(length):,}",
        ]
        for context, length in contexts.items()
    ]
    slowest, fastest = max(seconds.values()), min(seconds.values())
    return rows, at_most(100 * (slowest / fastest - 1), 10, "%")


def cache_of_attention(length: int) -> int:
    """Return the bytes of a Transformer of the same size."""
    model = transformer.transformer(PEER, vocab_size=VOCABULARY, rngs=nnx.Rngs(0))
    make_cache = functools.partial(model.init_carry, 1, max_length=length)
    return size_of(jax.eval_shape(make_cache))


def run() -> str:
    """Return the table."""
    header = ["model", "tokens read", "tokens/s", "bytes of the carry"]
    header += ["of a Transformer's cache"]
    measured = {name: decoding(name) for name in MODELS}
    rows = [row for of_model, _ in measured.values() for row in of_model]
    spreads = [f"{name} {spread}" for name, (_, spread) in measured.items()]
    return (
        f"Models of {SIZE.n_layers} layers, d_model {SIZE.d_model}, float32: {STEPS} "
        "tokens one by one, batch 1, after so many others.\n\n"
        f"{table(header, rows)}\n\nSlowest over fastest, more time: "
        f"{'; '.join(spreads)}."
    )
