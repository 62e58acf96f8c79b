"""Text of Long Range Arena: is a film review good or bad, read byte by byte?"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments import distributed
from experiments.data import archives, builders, encoding, imdb, polarity, splits
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

Protocol = Literal["heldout", "paper"]

_MIN_FREQUENCY = 15  # of a character that has a token of its own
# Of logistic regression on 4,000 made-up reviews, for 2,000 others.
_LINEAR = {
    polarity.Settings(0.5, 200, 1_000): {
        "byte counts": 0.50,
        "word counts": 0.50,
        "word pair counts": 0.93,
    },
    polarity.Settings(0.0, 200, 1_000): {"byte counts": 0.64, "word counts": 1.0},
    polarity.Settings(0.0, 100, 300): {"byte counts": 0.70, "word counts": 1.0},
}


class Text(TableTask):
    """The IMDB reviews, or made-up ones as a stand-in, `polarity`.

    The model reads (B, max_length) tokens, zeros after the end, and their lengths. Of
    longer reviews it reads the beginning; an end token is always there. Rows are
    prepared at first use and kept in `cache_dir`.

    The set has no validation split. Of the training reviews a tenth is held out, the
    same in every run, or, as in published work, the test set is taken for it: then all
    are trained on, and results say that they were selected on test.

    Args:
      unit: what a token is: "byte", or "char", a character that the training reviews,
        cut to max_length, have 15 times at least.
      max_length: tokens of a review, with the end token; the width of a batch.
      protocol: "heldout", or "paper".
      train_size, test_size: reviews; those that the files have.
      negation: of the stand-in: the share of opinions that are negated, 0 is easy.
      min_bytes, max_bytes: of a review of the stand-in; less than max_length.
      data_seed: of the stand-in.
      cache_dir: where prepared rows are kept.
      source: where the reviews are, see `experiments.data.imdb`; "stand-in" for
        made-up ones, see `experiments.data.polarity`.
    """

    name = "text"
    model_kind = "classifier"

    def __init__(
        self,
        *,
        unit: Unit,
        max_length: int,
        protocol: Protocol,
        train_size: int,
        test_size: int,
        negation: float,
        min_bytes: int,
        max_bytes: int,
        data_seed: int,
        cache_dir: str,
        source: str,
    ):
        sizes = {"train": train_size, "test": test_size}
        if train_size < 10 or test_size < 1:
            raise ValueError(
                f"train_size={train_size}, test_size={test_size}: wanted at least 10 "
                "reviews to train on and 1 to test on"
            )
        if data_seed < 0:
            raise ValueError(f"data_seed={data_seed}, wanted 0 or above")
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol={protocol!r}, wanted 'heldout' or 'paper'")
        encoding.check(unit, max_length)
        self.reference_points = {"chance": 0.5}
        if source == "stand-in":
            if max_bytes >= max_length:
                raise ValueError(
                    f"max_bytes={max_bytes}, wanted less than max_length={max_length}"
                )
            settings = polarity.Settings(negation, min_bytes, max_bytes)
            origin = _stand_in(sizes, settings, data_seed)
            self.reference_points |= _LINEAR.get(settings, {})
        else:
            origin = _files(source, sizes, max_length)
        self.name, self.provenance = origin.name, origin.provenance
        reviews = origin.load(cache_dir, functools.partial(_measure, max_length))
        check_sizes(reviews, sizes)
        self._encoding = encoding.of_unit(
            unit, _texts(reviews["train"]), max_length, _MIN_FREQUENCY
        )
        self._splits = _SPLIT[protocol](reviews)
        self._width = max_length
        self.selects_on_test = protocol == "paper"
        if self.selects_on_test:
            distributed.say(
                "warning: protocol='paper' takes the test set for validation: its best "
                "step is selected on test, and the result says so"
            )
        self.model_kwargs = {"vocab_size": self._encoding.size, "n_classes": 2}
        self.checksum = builders.checksum(self._splits)
        test = self._splits["test"].labels
        self.reference_points["majority class"] = majority_share(test)

    def size(self, split: str) -> int:
        return len(self._splits[split])

    def batch(self, split: str, indices: np.ndarray) -> Batch:
        rows = self._splits[split]
        texts = [rows[row].tobytes() for row in indices]
        tokens, lengths = encoding.padded(self._encoding, texts, self._width)
        return {
            "tokens": tokens,
            "length": lengths,
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


def _files(source: str, sizes: Mapping[str, int], max_length: int) -> Origin:
    if not source:
        raise UserError(
            "task text reads files, and data.source is empty: set "
            f"--config.data.source to a file or folder of IMDB's {imdb.WANTED}; or "
            "give --config.data.source=stand-in for made-up reviews, which are not "
            "Long Range Arena"
        )
    found = imdb.find(source)

    def make() -> dict[str, Rows]:
        reviews = imdb.read(found)
        check_sizes(reviews, sizes)
        return reviews

    return Origin(
        name=Text.name,
        provenance="official archive" if sizes == imdb.SIZES else "stand-in",
        folder=f"files-{archives.fingerprint(found.files.values())}"
        f"_length-{max_length}",
        make=make,
        about={"source": source, "form": found.form},
    )


def _stand_in(
    sizes: Mapping[str, int], settings: polarity.Settings, seed: int
) -> Origin:
    def make() -> dict[str, Rows]:
        train, test = sizes.values()
        rows = polarity.generate(seed, train + test, settings)
        return {"train": rows.part(0, train), "test": rows.part(train, len(rows))}

    return Origin(
        name="polarity",
        provenance="stand-in",
        folder=f"negation-{settings.negation}"
        f"_length-{settings.min_bytes}-{settings.max_bytes}"
        f"_rows-{'-'.join(map(str, sizes.values()))}_seed-{seed}_v{polarity.VERSION}",
        make=make,
        about={"settings": dataclasses.asdict(settings), "data_seed": seed},
    )


def _held_out(reviews: Mapping[str, Rows]) -> dict[str, Rows]:
    train = reviews["train"]
    n_validation = len(train) // 10
    sizes = {"train": len(train) - n_validation, "validation": n_validation}
    cut = splits.cut(sizes, "permuted")
    own = {split: train.take(rows) for split, rows in cut.items()}
    return own | {"test": reviews["test"]}


def _as_published(reviews: Mapping[str, Rows]) -> dict[str, Rows]:
    return {**reviews, "validation": reviews["test"]}


_SPLIT = {"heldout": _held_out, "paper": _as_published}


def _measure(max_length: int, reviews: Mapping[str, Rows]) -> dict[str, Any]:
    texts = {split: _texts(rows) for split, rows in reviews.items()}
    return encoding.shares_cut(texts, max_length)


def _texts(rows: Rows) -> Iterator[bytes]:
    return (rows[row].tobytes() for row in range(len(rows)))
