"""Evaluation, exact to the last example on any number of devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from experiments import metrics
from experiments.prefetch import batches
from experiments.tasks.base import Task

EvalStep = Callable[[Any, Any, dict[str, jax.Array]], metrics.Packed]


def make_eval_step(graphdef: nnx.GraphDef, task: Task) -> EvalStep:
    """Return the pure function (params, model_state, batch) -> packed sums."""

    def eval_step(
        params: Any, model_state: Any, batch: dict[str, jax.Array]
    ) -> metrics.Packed:
        model = nnx.merge(graphdef, params, model_state)
        _, _, sums = task.loss(model, batch, key=None, train=False)
        return metrics.Packed.pack((sums, jnp.sum(batch["weight"])))

    return eval_step


def evaluate(
    eval_step: EvalStep,
    task: Task,
    split: str,
    params: Any,
    model_state: Any,
    batch_size: int,
    sharding: NamedSharding,
) -> dict[str, Any]:
    """Return the metrics over a whole split.

    The last batch is filled up with rows of weight 0. The result holds `examples`, each
    metric's mean, and under `weights` what each mean was divided by.
    """
    size = task.eval_size(split)

    def make_batch(index: int) -> dict[str, np.ndarray]:
        rows = np.arange(index * batch_size, min((index + 1) * batch_size, size))
        return pad(task.eval_batch(split, rows), batch_size)

    sums: metrics.Sums = {}
    examples = 0.0
    pending: list[metrics.Packed] = []
    for batch in batches(make_batch, 0, -(-size // batch_size), sharding):
        pending.append(eval_step(params, model_state, batch))
        if len(pending) == 2:  # fetch one late, while the device works on the next
            sums, examples = _add(sums, examples, pending.pop(0))
    for packed in pending:
        sums, examples = _add(sums, examples, packed)
    assert examples == size, f"evaluated {examples} of {size} examples of {split}"
    weights = {name: weight for name, (_, weight) in sums.items()}
    return {"examples": size} | metrics.means(sums) | {"weights": weights}


def _add(
    sums: metrics.Sums, examples: float, packed: metrics.Packed
) -> tuple[metrics.Sums, float]:
    new_sums, new_examples = packed.fetch()
    return metrics.add(sums, new_sums), examples + new_examples


def pad(batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """Repeat row 0 up to the batch size; the repeats have weight 0."""
    missing = batch_size - len(batch["weight"])
    padded = {
        name: np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
        for name, array in batch.items()
    }
    if missing:
        padded["weight"][-missing:] = 0
    return padded
