"""Handwritten digits, 8 x 8 grey pixels, read as a sequence of 64."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import (
    Batch,
    Model,
    Sums,
    TableTask,
    classification_sums,
    majority_share,
    refuse_source,
)

_MAX_PIXEL = 16


class Digits(TableTask):
    """The 1,797 images that scikit-learn ships, a stand-in for pixel-level images.

    The model reads (B, 64, 1) real numbers: pixels from 0 to 1, less the mean over the
    training set. The split is fixed and stratified: 1,293 images to train on, 144 to
    choose by, 360 to test on.
    """

    name = "digits"
    model_kind = "classifier"
    provenance = "stand-in"
    model_kwargs = {"d_input": 1, "n_classes": 10}

    def __init__(self, *, cache_dir: str, source: str):
        refuse_source(self.name, source)
        from sklearn.datasets import load_digits  # seconds: only when needed

        pixels, labels = load_digits(return_X_y=True)
        pixels, labels = pixels.astype(np.uint8), labels.astype(np.uint8)
        rest, test = _split(np.arange(len(labels)), labels, 360)
        train, validation = _split(rest, labels, 144)
        self._pixels, self._labels = pixels, labels
        self._rows = {"train": train, "validation": validation, "test": test}
        self._mean = float(pixels[train].mean()) / _MAX_PIXEL
        digest = hashlib.sha256()
        for array in (pixels, labels, train, validation, test):
            digest.update(array.tobytes())
        self.checksum = digest.hexdigest()
        self.reference_points = {
            "chance": 0.1,
            "majority class": majority_share(labels[test]),
            "ridge regression": 0.939,  # scikit-learn's RidgeClassifier on this split
        }

    def size(self, split: str) -> int:
        return len(self._rows[split])

    def batch(self, split: str, indices: np.ndarray) -> Batch:
        rows = self._rows[split][indices]
        return {
            "pixels": self._pixels[rows],
            "label": self._labels[rows],
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
        x = batch["pixels"].astype(jnp.float32)[..., None] / _MAX_PIXEL - self._mean
        logits = model(x, key=key, train=train)
        return classification_sums(logits, batch["label"], batch["weight"])


def _split(
    rows: np.ndarray, labels: np.ndarray, n_held_out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hold some rows out, each label in its share; the same ones every time."""
    from sklearn.model_selection import train_test_split

    return train_test_split(
        rows, test_size=n_held_out, stratify=labels[rows], random_state=0
    )
