"""What the runner knows about a task."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.builders import DamagedError, remove
from experiments.data.order import training_rows
from experiments.data.rows import Rows
from experiments.errors import UserError

Batch = dict[str, Any]  # of arrays with the batch as their leading axis
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, weight)
Model = Callable[..., Any]


class Task(abc.ABC):
    """Rows of data, the loss on them, and the numbers to compare a result with.

    Every batch is a pure function of its arguments, and the same on every process. Its
    entry `weight` (B,) float32 is 1 for a row that counts and 0 for padding.
    """

    name: str  # a stand-in has one of its own
    model_kind: ClassVar[Literal["classifier", "retrieval", "language_model"]]
    selection_metric: ClassVar[str] = "accuracy"
    larger_is_better: ClassVar[bool] = True  # of the selection metric

    provenance: str  # "official archive" | "regenerated" | "stand-in" | "synthetic"
    model_kwargs: dict[str, int]  # what the task fixes of its model
    checksum: str  # SHA-256 of the data, or of what generates it
    reference_points: dict[str, float]  # chance, milestones; losses are "... loss"
    selects_on_test: bool = False  # whether "validation" is the test split

    @classmethod
    def prepare(cls, **arguments: Any) -> Self:
        """Return the task, its files made anew if they are missing or damaged.

        The arguments are those of the constructor, which makes missing ones as well.
        """
        try:
            return cls(**arguments)
        except DamagedError as damaged:
            remove(damaged.folder)
            return cls(**arguments)

    def is_better(self, result: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
        """Return whether validation chooses `result` over the `best` before it."""
        gain = result[self.selection_metric] - best[self.selection_metric]
        return gain > 0 if self.larger_is_better else gain < 0

    @abc.abstractmethod
    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the whole batch of a step."""

    @abc.abstractmethod
    def eval_size(self, split: str) -> int:
        """Return the number of rows of "validation" or "test"."""

    @abc.abstractmethod
    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """Return these rows of "validation" or "test"."""

    @abc.abstractmethod
    def loss(
        self,
        model: Model,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, Sums]:
        """Return the sum of the loss, its weight, and the sums of all metrics.

        The metrics hold "loss", cross-entropy in nats, and "accuracy".
        """


class TableTask(Task):
    """A task whose splits are finite tables, trained on in shuffled epochs."""

    @abc.abstractmethod
    def size(self, split: str) -> int:
        """Return the number of rows of "train", "validation" or "test"."""

    @abc.abstractmethod
    def batch(self, split: str, indices: np.ndarray) -> Batch:
        """Return these rows."""

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        rows = training_rows(self.size("train"), seed, step, batch_size)
        return self.batch("train", rows)

    def eval_size(self, split: str) -> int:
        return self.size(split)

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        return self.batch(split, indices)


class TextTask(TableTask):
    """A task of a language model of text, whose tokens stand for characters."""

    stop_tokens: ClassVar[tuple[int, ...]] = ()  # that end a text

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of the beginning of a document."""

    @abc.abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens that follow."""


def classification_sums(
    logits: jax.Array, labels: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array, Sums]:
    """Return what `Task.loss` does, for one label a row.

    Shapes: logits (B, classes), labels (B,) integer, weight (B,).
    """
    labels = labels.astype(jnp.int32)
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
    correct = logits.argmax(-1) == labels
    total = weight.sum()
    loss_sum = (loss * weight).sum()
    accuracy = (correct * weight).sum()
    return loss_sum, total, {"loss": (loss_sum, total), "accuracy": (accuracy, total)}


def majority_share(labels: np.ndarray) -> float:
    """Return the accuracy of the best constant answer."""
    return float(np.bincount(labels).max() / len(labels))


def check_sizes(splits: Mapping[str, Rows], sizes: Mapping[str, int]) -> None:
    """Raise UserError if files do not have the rows that the config says."""
    for split, size in sizes.items():
        if (found := len(splits[split])) != size:
            raise UserError(
                f"data.source has {found} {split} rows, task.{split}_size is {size}: "
                f"complete the file, or set --config.task.{split}_size={found}"
            )


def refuse_source(task: str, source: str) -> None:
    """Raise ValueError if files are named for a task that reads none."""
    if source:
        raise ValueError(f"data.source={source!r}, but {task} reads no files")
