"""Language modelling of the bytes of local text."""

import hashlib
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import text
from experiments.tasks.base import Batch, Model, Sums, TextTask, refuse_source

START = 256  # the token before the first byte of a document
VOCABULARY = 257


class ByteText(TextTask):
    """The next byte of text, in windows of a stream of documents.

    The documents of a split follow one another, each after a START token, and the
    stream is cut into windows of `length`. A window that begins inside a document knows
    nothing of what was before, so that shorter windows have higher losses. The model
    gets a `reset` at every START.

    A document is a file, and lies in one split as a whole; a single file is cut in
    three. Metric: bits per byte, over bytes alone.

    Args:
      path: a UTF-8 text file, or a folder of them; empty for the sources of Python's
        standard library, which are everywhere, and differ with the version of Python.
      length: bytes of a window.
      separate_documents: whether the model gets resets; False lets documents see those
        packed before them.
      cache_dir: not used, text is read as it is.
      source: must be empty.

    Raises ValueError for text that cannot be read.
    """

    name = "byte_text"
    model_kind = "language_model"
    selection_metric = "bits_per_byte"
    larger_is_better = False
    model_kwargs = {"vocab_size": VOCABULARY}
    stop_tokens = (START,)

    def __init__(
        self,
        *,
        path: str,
        length: int,
        separate_documents: bool,
        cache_dir: str,
        source: str,
    ):
        refuse_source(self.name, source)
        if length < 2:
            raise ValueError(f"length={length}, wanted at least 2")
        documents = text.read_documents(path) if path else text.standard_library()
        self.provenance = "local text" if path else "standard library"
        self._length, self._separate = length, separate_documents
        self._streams = {}
        digest = hashlib.sha256()
        for split, contents in _splits(documents).items():
            if sum(map(len, contents)) < length:
                raise ValueError(
                    f"the {split} split of path={path!r} has fewer than "
                    f"length={length} bytes: give it more text, or a shorter length"
                )
            pieces = [
                np.concatenate([[START], np.frombuffer(content, np.uint8)])
                for content in contents
            ]
            self._streams[split] = np.concatenate(pieces).astype(np.int16)
            digest.update(self._streams[split].tobytes())
        self.checksum = digest.hexdigest()
        counts = np.bincount(self._streams["train"], minlength=VOCABULARY)[:START] + 1
        test = self._streams["test"]
        bits = -np.log2(counts / counts.sum())
        self.reference_points = {
            "chance": 8.0,
            "frequencies": float(bits[test[test < START]].mean()),
        }

    def size(self, split: str) -> int:
        # The last window may be short: nothing is left out.
        return math.ceil((len(self._streams[split]) - 1) / self._length)

    def batch(self, split: str, indices: np.ndarray) -> Batch:
        stream = self._streams[split]
        at = indices[:, None] * self._length + np.arange(self._length + 1)
        tokens = stream[np.minimum(at, len(stream) - 1)]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        counts = (targets != START) & (at[:, 1:] < len(stream))
        return {
            "inputs": inputs,
            "targets": np.where(counts, targets, -1).astype(np.int16),
            "weight": np.ones(len(indices), np.float32),
        }

    def encode(self, text: str) -> list[int]:
        try:
            return [START, *text.encode()]
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the prompt {text!r} is not UTF-8 text at its character {error.start}"
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t < START).decode(errors="replace")

    def loss(
        self,
        model: Model,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, Sums]:
        inputs = batch["inputs"].astype(jnp.int32)
        targets = batch["targets"].astype(jnp.int32)
        reset = inputs == START if self._separate else None
        logits, _ = model(inputs, reset=reset, key=key, train=train)
        counts = (targets >= 0) * batch["weight"][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), jnp.maximum(targets, 0)
        )
        loss, weight = (losses * counts).sum(), counts.sum()
        correct = ((logits.argmax(-1) == targets) * counts).sum()
        return (
            loss,
            weight,
            {
                "loss": (loss, weight),
                "bits_per_byte": (loss / math.log(2), weight),
                "accuracy": (correct, weight),
            },
        )


def _splits(documents: list[text.Document]) -> dict[str, list[bytes]]:
    """The contents of each split."""
    if len(documents) == 1:
        parts = text.parts_of(documents[0])
        return {split: [part.content] for split, part in parts.items()}
    splits: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        splits[document.split()].append(document.content)
    return splits
