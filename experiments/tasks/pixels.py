"""What the tasks of images have in common: one pixel a step."""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import splits
from experiments.data.rows import Rows
from experiments.tasks.base import (
    Batch,
    Model,
    Sums,
    TableTask,
    classification_sums,
    majority_share,
)

_MAX_PIXEL = 255


class PixelTask(TableTask):
    """Images read row by row, as (B, pixels, channels) real numbers.

    A channel is (x / 255 - mean) / deviation. Pixels are bytes until the device has
    them.

    Args:
      images: of each split, one an element, a row of bytes.
      order: of each split, which of its images it consists of.
      images_checksum: SHA-256 of the images.
      n_classes: how many labels there are.
    """

    model_kind = "classifier"
    mean: ClassVar[tuple[float, ...]]
    deviation: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        images: Mapping[str, Rows],
        order: Mapping[str, np.ndarray],
        images_checksum: str,
        n_classes: int,
    ):
        channels = len(self.mean)
        self._pixels = {
            split: rows.values.reshape(len(rows), -1, channels)
            for split, rows in images.items()
        }
        self._labels = {split: rows.labels for split, rows in images.items()}
        self._order = order
        self.checksum = splits.checksum(images_checksum, order)
        self.model_kwargs = {"d_input": channels, "n_classes": n_classes}
        self.reference_points = {
            "chance": 1 / n_classes,
            "majority class": majority_share(self._labels["test"][order["test"]]),
            "chance loss": math.log(n_classes),
        }

    def size(self, split: str) -> int:
        return len(self._order[split])

    def batch(self, split: str, indices: np.ndarray) -> Batch:
        rows = self._order[split][indices]
        return {
            "pixels": self._pixels[split][rows],
            "label": self._labels[split][rows],
            "weight": np.ones(len(rows), np.float32),
        }

    def loss(
        self,
        model: Model,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, Sums]:
        mean, deviation = (
            jnp.array(value, jnp.float32)[None, None]
            for value in (self.mean, self.deviation)
        )
        x = (batch["pixels"].astype(jnp.float32) / _MAX_PIXEL - mean) / deviation
        logits = model(x, key=key, train=train)
        return classification_sums(logits, batch["label"], batch["weight"])
