"""Delayed copy: remember some symbols over a delay, then say them again.

With K symbols, a delay T and a marker, the forms in use are

    urnn        inputs   K symbols | T-1 blanks | marker | K blanks
                targets  T+K blanks | the K symbols              loss on all positions
    tcn         as urnn, with K+1 markers at the end instead of one and the K blanks
    s4          inputs   K symbols | T blanks | K markers
                targets  the K symbols at the markers            loss on these alone
    s4_reverse  as s4, the symbols in reversed order
    s4_lag      inputs   T symbols
                targets  K blanks | the first T-K symbols        loss on all positions

Sources: urnn, Arjovsky, Shah and Bengio 2016 (1511.06464); tcn, Bai, Kolter and Koltun
2018 (1803.01271); s4, Gu, Goel and Re 2022 (2111.00396).
"""

import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tasks.base import Batch, Model, Sums, Task, refuse_source

FORMS = ("urnn", "tcn", "s4", "s4_reverse", "s4_lag")
_BLANK = 0


class DelayedCopy(Task):
    """Delayed copy, with fresh symbols at every step and fixed sets to evaluate on.

    Accuracy counts the positions of the answers only (the last K; all after the first K
    for s4_lag), `exact_match` the rows where all of them are right.

    Args:
      form: one of FORMS.
      n_data: K.
      delay: T, in positions.
      n_symbols: how many there are; 0 is the blank, n_symbols + 1 the marker.
      eval_size: rows of the validation and of the test set.
      cache_dir: not used, there are no files.
      source: must be empty.
    """

    name = "delayed_copy"
    model_kind = "language_model"
    provenance = "synthetic"

    def __init__(
        self,
        *,
        form: str,
        n_data: int,
        delay: int,
        n_symbols: int,
        eval_size: int,
        cache_dir: str,
        source: str,
    ):
        refuse_source(self.name, source)
        if form not in FORMS:
            raise ValueError(f"form={form!r} is not one of: {', '.join(FORMS)}")
        if n_data < 1 or delay < 1 or eval_size < 1:
            raise ValueError(
                "n_data, delay and eval_size must be at least 1, got "
                f"{n_data}, {delay} and {eval_size}"
            )
        if form == "s4_lag" and delay <= n_data:
            raise ValueError(f"s4_lag wants delay > n_data, got {delay} and {n_data}")
        if not 1 <= n_symbols <= 254:
            raise ValueError(f"n_symbols must be from 1 to 254, got {n_symbols}")
        self._form, self._n_data = form, n_data
        self._n_symbols = n_symbols
        self.length = delay if form == "s4_lag" else delay + 2 * n_data
        self._answers_from = n_data if form == "s4_lag" else self.length - n_data
        self._loss_from = self._answers_from if form in ("s4", "s4_reverse") else 0
        self.model_kwargs = {"vocab_size": n_symbols + 2, "n_outputs": n_symbols + 1}
        self._eval_symbols = {
            split: self._draw(split, 0, 0, eval_size)
            for split in ("validation", "test")
        }
        parameters = json.dumps([self.name, form, n_data, delay, n_symbols, eval_size])
        self.checksum = hashlib.sha256(parameters.encode()).hexdigest()
        n_answers = self.length - self._answers_from
        n_losses = self.length - self._loss_from
        self.reference_points = {
            "chance": 1 / n_symbols,
            "memoryless loss": n_answers * math.log(n_symbols) / n_losses,
        }

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        return self._batch(self._draw("train", seed, step, batch_size))

    def eval_size(self, split: str) -> int:
        return len(self._eval_symbols[split])

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        return self._batch(self._eval_symbols[split][indices])

    def loss(
        self,
        model: Model,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, Sums]:
        logits, _ = model(batch["inputs"].astype(jnp.int32), key=key, train=train)
        targets = batch["targets"].astype(jnp.int32)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), targets
        )[:, self._loss_from :]
        correct = (logits.argmax(-1) == targets)[:, self._answers_from :]
        weight = batch["weight"]
        rows = weight.sum()
        loss = (cross_entropy.sum(-1) * weight).sum()
        loss_weight = rows * cross_entropy.shape[1]
        sums = {
            "loss": (loss, loss_weight),
            "accuracy": ((correct.sum(-1) * weight).sum(), rows * correct.shape[1]),
            "exact_match": ((correct.all(-1) * weight).sum(), rows),
        }
        return loss, loss_weight, sums

    def _draw(self, split: str, seed: int, step: int, n_rows: int) -> np.ndarray:
        """Draw the symbols of a batch, from a stream of its own."""
        stream = f"{self.name}/{split}/{seed}".encode()
        key = int.from_bytes(hashlib.blake2b(stream, digest_size=16).digest(), "little")
        generator = np.random.Generator(
            np.random.Philox(key=key, counter=[0, 0, step, 0])
        )
        width = self.length if self._form == "s4_lag" else self._n_data
        return generator.integers(
            1, self._n_symbols, size=(n_rows, width), dtype=np.uint8, endpoint=True
        )

    def _batch(self, symbols: np.ndarray) -> Batch:
        """Lay out rows with these symbols: (B, K), or (B, T) for s4_lag."""
        k, marker = self._n_data, self._n_symbols + 1
        inputs = np.full((len(symbols), self.length), _BLANK, np.uint8)
        targets = np.full_like(inputs, _BLANK)
        inputs[:, : symbols.shape[1]] = symbols
        if self._form == "urnn":
            inputs[:, -k - 1] = marker
        elif self._form == "tcn":
            inputs[:, -k - 1 :] = marker
        elif self._form in ("s4", "s4_reverse"):
            inputs[:, -k:] = marker
        n_answers = self.length - self._answers_from
        answers = symbols[:, ::-1] if self._form == "s4_reverse" else symbols
        targets[:, self._answers_from :] = answers[:, :n_answers]
        weight = np.ones(len(symbols), np.float32)
        return {"inputs": inputs, "targets": targets, "weight": weight}
