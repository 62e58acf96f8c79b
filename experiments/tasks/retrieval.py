"""Retrieval of Long Range Arena: does one of two papers cite the other?"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import aan, archives, builders, encoding, stdlib_pairs
from experiments.data.encoding import Unit
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
from experiments.tasks.origin import Origin


class Retrieval(TableTask):
    """Pairs of papers from Long Range Arena's files, or a stand-in, `stdlib_pairs`.

    The model reads two texts, each (B, max_length) tokens, zeros after the end, and
    their lengths. Of longer texts it reads the beginning; an end token is always there.
    Rows are prepared at first use and kept in `cache_dir`.

    Args:
      unit: what a token is: "byte", or "char", a character of the training texts.
      max_length: of each text in tokens, with the end token; the width of a batch.
      train_size, validation_size, test_size: pairs; those that the files have.
      window_length: of the stand-in's texts in bytes, less than max_length.
      data_seed: of the stand-in's pairs.
      cache_dir: where prepared rows are kept.
      source: where the files or the archive are, see `experiments.data.aan`; "stand-in"
        for windows of Python's sources, see `experiments.data.stdlib_pairs`.
    """

    name = "retrieval"
    model_kind = "retrieval"

    def __init__(
        self,
        *,
        unit: Unit,
        max_length: int,
        train_size: int,
        validation_size: int,
        test_size: int,
        window_length: int,
        data_seed: int,
        cache_dir: str,
        source: str,
    ):
        sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        if min(sizes.values()) < 1:
            raise ValueError(f"every split needs rows, got {sizes}")
        if data_seed < 0:
            raise ValueError(f"data_seed={data_seed}, wanted 0 or above")
        encoding.check(unit, max_length)
        if source == "stand-in":
            if not 1 <= window_length < max_length:
                raise ValueError(
                    f"window_length={window_length}, wanted at least 1 and less than "
                    f"max_length={max_length}"
                )
            origin = _stand_in(sizes, window_length, data_seed)
        else:
            origin = _files(source, sizes, max_length)
        self.name, self.provenance = origin.name, origin.provenance
        self._splits = origin.load(cache_dir, functools.partial(_measure, max_length))
        check_sizes(self._splits, sizes)
        self._encoding = encoding.of_unit(
            unit, _texts(self._splits["train"]), max_length, min_frequency=1
        )
        self._width = max_length
        self.model_kwargs = {"vocab_size": self._encoding.size, "n_classes": 2}
        self.checksum = builders.checksum(self._splits)
        self.reference_points = {
            "chance": 0.5,
            "majority class": majority_share(self._splits["test"].labels),
        }

    def size(self, split: str) -> int:
        return len(self._splits[split])

    def batch(self, split: str, indices: np.ndarray) -> Batch:
        rows = self._splits[split]
        batch: Batch = {
            "label": rows.labels[indices],
            "weight": np.ones(len(indices), np.float32),
        }
        pairs = [_pair(rows, row) for row in indices]
        for number, texts in enumerate(zip(*pairs, strict=True), start=1):
            tokens, lengths = encoding.padded(self._encoding, texts, self._width)
            batch |= {f"tokens{number}": tokens, f"length{number}": lengths}
        return batch

    def loss(
        self,
        model: Model,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, Sums]:
        logits = model(
            batch["tokens1"].astype(jnp.int32),
            batch["tokens2"].astype(jnp.int32),
            batch["length1"],
            batch["length2"],
            key=key,
            train=train,
        )
        return classification_sums(logits, batch["label"], batch["weight"])


def _files(source: str, sizes: Mapping[str, int], max_length: int) -> Origin:
    if not source:
        raise UserError(
            "task retrieval reads files, and data.source is empty: set "
            f"--config.data.source to the folder of {aan.WANTED}; or give "
            "--config.data.source=stand-in for pairs of Python's own sources, which "
            "are not Long Range Arena"
        )
    files = aan.find(source)

    def make() -> dict[str, Rows]:
        # Of a longer text enough to see that it is longer.
        pairs = aan.read(files, n_characters=max_length)
        check_sizes(pairs, sizes)
        return pairs

    return Origin(
        name=Retrieval.name,
        provenance="official archive" if sizes == aan.SIZES else "stand-in",
        folder=f"files-{archives.fingerprint(files.values())}_length-{max_length}",
        make=make,
        about={"source": source},
    )


def _stand_in(sizes: Mapping[str, int], window_length: int, seed: int) -> Origin:
    python = stdlib_pairs.PYTHON
    return Origin(
        name="stdlib_pairs",
        provenance="stand-in",
        folder=f"python-{python}_window-{window_length}"
        f"_rows-{'-'.join(map(str, sizes.values()))}_seed-{seed}"
        f"_v{stdlib_pairs.VERSION}",
        make=functools.partial(stdlib_pairs.generate, seed, sizes, window_length),
        about={"python": python, "window_length": window_length, "data_seed": seed},
    )


def _measure(max_length: int, pairs: Mapping[str, Rows]) -> dict[str, Any]:
    texts = {split: _texts(rows) for split, rows in pairs.items()}
    return encoding.shares_cut(texts, max_length)


def _texts(rows: Rows) -> Iterator[bytes]:
    """First and second texts in turns."""
    for row in range(len(rows)):
        yield from _pair(rows, row)


def _pair(rows: Rows, row: int) -> list[bytes]:
    return rows[row].tobytes().split(b"\t")
