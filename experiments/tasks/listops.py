"""ListOps of Long Range Arena: what is a nested expression of digits worth?"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import (
    archives,
    builders,
    listops_generator,
    listops_rows,
    listops_tsv,
)
from experiments.data.listops import EOS, SYMBOLS, Grammar
from experiments.data.progress import counter
from experiments.data.rows import Rows
from experiments.errors import UserError
from experiments.tasks.base import (
    Batch,
    Model,
    Sums,
    TableTask,
    check_sizes,
    classification_sums,
    majority_share,
)

_OFFICIAL_GRAMMAR = Grammar()
_OFFICIAL_SIZES = {"train": 96_000, "validation": 2_000, "test": 2_000}
_TINY_GRAMMAR = Grammar(min_length=10, max_length=128, max_depth=6, max_args=5)
# Accuracy of whoever evaluates the upper levels of an expression alone.
_MILESTONES = {
    _OFFICIAL_GRAMMAR: {
        "root's own digits": 0.353,
        "one nested level": 0.616,
        "two nested levels": 0.774,
    },
    _TINY_GRAMMAR: {
        "root's own digits": 0.25,
        "one nested level": 0.53,
        "two nested levels": 0.77,
    },
}


class ListOps(TableTask):
    """ListOps, drawn here or read from Long Range Arena's files.

    The model reads (B, max_length) tokens of 17 kinds, zeros after the end, and their
    lengths. Rows are prepared at first use and kept in `cache_dir`. Drawn with the
    sizes and the grammar of Long Range Arena, they have the distribution of its own
    rows but are others, "regenerated"; drawn in any other way they are a "stand-in",
    and the task has another name, `listops_tiny`.

    Args:
      train_size: rows to train on.
      validation_size: rows to choose by.
      test_size: rows to report.
      min_length: of an expression in tokens, exclusive.
      max_length: of an expression in tokens, exclusive; also the width of a batch.
      max_depth: levels of an expression; the deepest holds digits only.
      max_args: of an operator; it has 2 at least.
      end_token: whether `<eos>` follows an expression.
      data_seed: of the rows.
      write_tsv: where `prepare` writes Long Range Arena's files; empty: nowhere.
      cache_dir: where prepared rows are kept.
      source: where Long Range Arena's files are, to read these; empty: draw.
    """

    name = "listops"
    model_kind = "classifier"
    model_kwargs = {"vocab_size": len(SYMBOLS), "n_classes": 10}

    def __init__(
        self,
        *,
        train_size: int,
        validation_size: int,
        test_size: int,
        min_length: int,
        max_length: int,
        max_depth: int,
        max_args: int,
        end_token: bool,
        data_seed: int,
        write_tsv: str,
        cache_dir: str,
        source: str,
    ):
        sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        if min(sizes.values()) < 1:
            raise ValueError(f"every split needs rows, got {sizes}")
        if not 0 <= data_seed < 2**64:
            raise ValueError(f"data_seed must be from 0 to 2**64 - 1, got {data_seed}")
        grammar = Grammar(min_length, max_length, max_depth, max_args)
        cache = Path(cache_dir).expanduser() / self.name
        if source:
            files = listops_tsv.find(source)
            folder = cache / f"files-{archives.fingerprint(files.values())}"
            make = functools.partial(listops_tsv.read_all, files)
            self.provenance = listops_tsv.provenance(files)
        else:
            folder = cache / _folder_name(grammar, sizes, data_seed)
            make = functools.partial(_generate, grammar, sizes, data_seed)
            official = grammar == _OFFICIAL_GRAMMAR and sizes == _OFFICIAL_SIZES
            self.provenance = "regenerated" if official else "stand-in"
        if self.provenance == "stand-in":
            self.name = "listops_tiny"
        if not builders.is_prepared(folder):
            about = {
                "task": self.name,
                "provenance": self.provenance,
                "source": source,
                "grammar": dataclasses.asdict(grammar),
                "data_seed": data_seed,
            }
            builders.prepare(folder, make, about)
        self._splits = builders.load(folder)
        check_sizes(self._splits, sizes)
        for split, rows in self._splits.items():
            _check_lengths(split, rows, max_length - end_token)
        self._width, self._end_token = max_length, end_token
        self._write_tsv = write_tsv
        self.checksum = builders.checksum(self._splits)
        self.reference_points = {
            "chance": 0.1,
            "majority class": majority_share(self._splits["test"].labels),
        }
        if grammar in _MILESTONES:
            self.reference_points |= _MILESTONES[grammar]

    @classmethod
    def prepare(cls, **arguments: Any) -> Self:
        task = super().prepare(**arguments)
        if task._write_tsv:
            listops_tsv.write_all(task._write_tsv, task._splits, task.provenance)
        return task

    def size(self, split: str) -> int:
        return len(self._splits[split])

    def batch(self, split: str, indices: np.ndarray) -> Batch:
        rows = self._splits[split]
        tokens, lengths = rows.padded(indices, self._width)
        if self._end_token:
            tokens[np.arange(len(indices)), lengths] = EOS
        return {
            "tokens": tokens,
            "length": (lengths + self._end_token).astype(np.int32),
            "label": rows.labels[indices],
            "weight": np.ones(len(indices), np.float32),
        }

    def loss(
        self,
        model: Model,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, Sums]:
        tokens = batch["tokens"].astype(jnp.int32)
        logits = model(tokens, batch["length"], key=key, train=train)
        return classification_sums(logits, batch["label"], batch["weight"])


def _folder_name(grammar: Grammar, sizes: dict[str, int], seed: int) -> str:
    """Return the name of what is drawn: other arguments, another name."""
    return (
        f"length-{grammar.min_length}-{grammar.max_length}_depth-{grammar.max_depth}"
        f"_args-{grammar.max_args}_rows-{'-'.join(map(str, sizes.values()))}"
        f"_seed-{seed}_v{listops_generator.VERSION}"
    )


def _generate(grammar: Grammar, sizes: dict[str, int], seed: int) -> dict[str, Rows]:
    """Draw all splits as one table, so that no row is in two of them."""
    total = sum(sizes.values())
    rows = listops_rows.generate(grammar, seed, total, report=counter("drawing", total))
    splits = {}
    start = 0
    for split, size in sizes.items():
        splits[split] = rows.part(start, start + size)
        start += size
    return splits


def _check_lengths(split: str, rows: Rows, max_length: int) -> None:
    """Refuse files with longer rows than the config says."""
    longest = int(rows.lengths.max())
    if longest > max_length:
        raise UserError(
            f"data.source has a {split} row of {longest} tokens, where {max_length} "
            "fit: raise --config.task.max_length"
        )
