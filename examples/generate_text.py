"""Train a small Griffin on a text and let it go on, in one file.

    python examples/generate_text.py [TEXT] [--tokenizer=FILE] [--prompt=...]

TEXT is a UTF-8 file, by default Python's `typing` module. FILE is a `tokenizer.json` of
the package `tokenizers`, or a model of `sentencepiece`; without one, tokens are bytes.
"""

import argparse
import functools
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ssm.generate import generate
from ssm.models import griffin

BATCH, LENGTH = 8, 256
SIZE = griffin.Size(d_model=128, n_layers=3, n_heads=4)


class Tokenizer(Protocol):
    """What is needed of one."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""


class Bytes:
    """Every byte of UTF-8 is a token."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes; half a character at the end becomes a mark."""
        return bytes(tokens).decode(errors="replace")


class HuggingFace:
    """A `tokenizer.json`."""

    def __init__(self, file: Path):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, none added around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._tokenizer.decode(list(tokens))


class SentencePiece:
    """A model of sentencepiece, as Gemma's `tokenizer.model`."""

    def __init__(self, file: Path):
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_file=str(file))
        self.vocab_size = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._processor.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._processor.decode([int(token) for token in tokens])


def load_tokenizer(file: Path | None) -> Tokenizer:
    """Return the tokenizer of a file, or bytes."""
    if file is None:
        return Bytes()
    file.stat()  # a missing one is told here, not by a package
    return HuggingFace(file) if file.suffix == ".json" else SentencePiece(file)


def train(tokens: np.ndarray, vocab_size: int, steps: int) -> nnx.Module:
    """Return a model of the tokens of one text, (N,)."""
    model = griffin.griffin(SIZE, vocab_size=vocab_size, window=128, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    opt_state = optimizer.init(params)

    def loss(params: nnx.State, batch: jax.Array) -> jax.Array:
        logits, _ = nnx.merge(graphdef, params)(batch[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return losses.mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    rng = np.random.default_rng(0)
    for step in range(steps):
        starts = rng.integers(len(tokens) - LENGTH, size=(BATCH, 1))
        batch = jnp.asarray(tokens[starts + np.arange(LENGTH + 1)])
        params, opt_state, value = train_step(params, opt_state, batch)
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {value:.3f} nats a token", file=sys.stderr)
    return nnx.merge(graphdef, params)


def go_on(model: nnx.Module, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    """Return the prompt and what the model says after it."""
    tokens = np.array([tokenizer.encode(prompt)])
    made = generate(
        model,
        tokens,
        max_new_tokens=length,
        temperature=0.6,
        top_p=0.95,
        key=jax.random.key(0),
    )
    return prompt + tokenizer.decode(made.tokens[0].tolist())


def main(argv: Sequence[str]) -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, nargs="?", default=typing.__file__)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--prompt", default="def ")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=200, help="new tokens")
    options = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(options.tokenizer)
        text = Path(options.text).read_text(encoding="utf-8")
    except ImportError as error:
        parser.error(f"{options.tokenizer} needs `pip install {error.name}`")
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except UnicodeDecodeError as error:
        parser.error(f"{options.text} is not UTF-8 text: see its byte {error.start}")
    tokens = np.array(tokenizer.encode(text))
    if len(tokens) <= LENGTH:
        parser.error(f"{options.text} has {len(tokens)} tokens, wanted over {LENGTH}")
    if not tokenizer.encode(options.prompt):
        parser.error("--prompt has no token: give at least one to start from")
    model = train(tokens, tokenizer.vocab_size, options.steps)
    print(go_on(model, tokenizer, options.prompt, options.length))


if __name__ == "__main__":
    main(sys.argv[1:])
