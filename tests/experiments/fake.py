"""A task and a model that train in microseconds, for testing the runner alone.

As a program, `python -m tests.experiments.fake ARGUMENTS` is `experiments.main` with
these in place of the real ones.
"""

import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import builders, main, process, sweep
from experiments.tasks.base import Task

CLASSES = 3
FEATURES = 4


class FakeTask(Task):
    """Which of three linear maps of x is largest? From step `poison_step` on, x is nan.

    `delay` is how many seconds a batch takes to make.
    """

    name = "fake"
    provenance = "synthetic"
    model_kind = "fake"
    model_kwargs: dict = {}
    checksum = "0" * 64
    reference_points = {"chance": 1 / CLASSES, "linear": 0.9}

    def __init__(self, *, validation_size, poison_step, delay, cache_dir, source):
        self._sizes = {"validation": validation_size, "test": 41}
        self._poison_step = poison_step
        self._delay = delay

    def train_batch(self, seed, step, batch_size):
        time.sleep(self._delay)
        batch = self._rows([seed, step], batch_size)
        if 0 <= self._poison_step <= step:
            batch["x"][0, 0] = np.nan
        return batch

    def eval_size(self, split):
        return self._sizes[split]

    def eval_batch(self, split, indices):
        rows = self._rows([int(split == "test"), 0], self._sizes[split])
        return {name: array[indices] for name, array in rows.items()}

    def _rows(self, key, count):
        rng = np.random.Generator(np.random.Philox(key=key))
        x = rng.normal(size=(count, FEATURES)).astype(np.float32)
        truth = np.random.Generator(np.random.Philox(key=7)).normal(
            size=(FEATURES, CLASSES)
        )
        return {
            "x": x,
            "label": np.argmax(x @ truth, axis=1).astype(np.uint8),
            "weight": np.ones(count, np.float32),
        }

    def loss(self, model, batch, *, key=None, train=False):
        logits = model(batch["x"], key=key, train=train)
        labels, weight = batch["label"].astype(jnp.int32), batch["weight"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss, weight_sum = jnp.sum(weight * loss), jnp.sum(weight)
        right = jnp.sum(weight * (jnp.argmax(logits, axis=1) == labels))
        sums = {"loss": (loss, weight_sum), "accuracy": (right, weight_sum)}
        return loss, weight_sum, sums


class FakeModel(nnx.Module):
    """Two dense maps, with dropout between them, and batch norm if asked for."""

    def __init__(self, width, *, norm, dropout, rngs):
        self.hidden = nnx.Linear(FEATURES, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs) if norm == "batch" else None
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x, *, key, train):
        x = jnp.tanh(self.hidden(x))
        if self.norm is not None:
            x = self.norm(x, use_running_average=not train)
        if key is not None:
            x = self.dropout(x, deterministic=False, rngs=key)
        return self.head(x)


def build_model(config, task):
    def create(key):
        block = config.model.block
        return FakeModel(
            config.model.d_model,
            norm=block.norm,
            dropout=block.dropout,
            rngs=nnx.Rngs(key),
        )

    return create


if __name__ == "__main__":
    builders.TASKS["fake"] = FakeTask
    builders.build_model = build_model
    sweep.PROGRAM = "tests.experiments.fake"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    signal.signal(signal.SIGTERM, main.end)
    process.end_with_starter()
    # Ignored in what a shell has put into the background, tests and all.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main.main(sys.argv))
