import hashlib
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.delayed_copy import FORMS, DelayedCopy


def make(form="urnn", n_data=3, delay=5, n_symbols=8, eval_size=64):
    return DelayedCopy(
        form=form,
        n_data=n_data,
        delay=delay,
        n_symbols=n_symbols,
        eval_size=eval_size,
        cache_dir="",
        source="",
    )


def with_symbols(task, *symbols):
    """A batch of one row, its symbols chosen."""
    return task._batch(np.array([symbols], np.uint8))


@pytest.mark.parametrize(
    ("form", "inputs", "targets"),
    [
        ("urnn", "27100009000", "00000000271"),
        ("tcn", "27100009999", "00000000271"),
        ("s4", "27100000999", "00000000271"),
        ("s4_reverse", "27100000999", "00000000172"),
    ],
)
def test_worked_examples(form, inputs, targets):
    batch = with_symbols(make(form), 2, 7, 1)
    assert "".join(map(str, batch["inputs"][0])) == inputs
    assert "".join(map(str, batch["targets"][0])) == targets


def test_worked_example_of_the_shift_register():
    batch = with_symbols(make("s4_lag", delay=6), 2, 7, 1, 8, 3, 4)
    assert batch["inputs"].tolist() == [[2, 7, 1, 8, 3, 4]]
    assert batch["targets"].tolist() == [[0, 0, 0, 2, 7, 1]]


class Predictor:
    """A model made of a function of the inputs (B, T), to logits (B, T, outputs)."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, tokens, *, key, train):
        return jnp.asarray(self.logits(np.asarray(tokens))), None


def memoryless(task):
    """Sure of a blank where only a blank can be, uniform over the symbols elsewhere."""

    def logits(tokens):
        out = np.full((*tokens.shape, task.model_kwargs["n_outputs"]), -1e9, np.float32)
        out[:, : task._answers_from, 0] = 0
        out[:, task._answers_from :, 1:] = 0
        return out

    return Predictor(logits)


def solver(task, form):
    """Finds the answers in the inputs."""

    def logits(tokens):
        k, n_outputs = task._n_data, task.model_kwargs["n_outputs"]
        answers = np.zeros_like(tokens)
        if form == "s4_lag":
            answers[:, k:] = tokens[:, :-k]
        else:
            data = tokens[:, :k]
            answers[:, -k:] = data[:, ::-1] if form == "s4_reverse" else data
        return 50 * np.eye(n_outputs, dtype=np.float32)[answers]

    return Predictor(logits)


def means(task, model, batch):
    _, _, sums = task.loss(model, batch)
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_solver_is_always_right(form, split):
    task = make(form, n_data=4, delay=9)
    batch = task.eval_batch(split, np.arange(64))
    found = means(task, solver(task, form), batch)
    assert found == {
        "loss": pytest.approx(0, abs=1e-6),
        "accuracy": 1,
        "exact_match": 1,
    }


@pytest.mark.parametrize("delay", [100, 200, 500])
def test_the_memoryless_baseline(delay):
    task = make(n_data=10, delay=delay)
    found = means(task, memoryless(task), task.eval_batch("test", np.arange(64)))
    expected = 10 * math.log(8) / (delay + 20)
    assert task.reference_points["memoryless loss"] == pytest.approx(expected)
    assert found["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_chance(form):
    task = make(form, n_data=10, delay=40, eval_size=512)
    found = means(task, memoryless(task), task.eval_batch("test", np.arange(512)))
    assert found["loss"] == pytest.approx(task.reference_points["memoryless loss"])
    assert task.reference_points["chance"] == 1 / 8
    error = (1 / 8 * 7 / 8 / (512 * (task.length - task._answers_from))) ** 0.5
    assert abs(found["accuracy"] - 1 / 8) < 4 * error


def test_padding_rows_count_for_nothing():
    task = make("s4_lag", delay=7)
    batch = task.eval_batch("test", np.arange(6))
    model = memoryless(task)
    expected = [float(x) for x in task.loss(model, batch)[:2]]
    padded = task.eval_batch("test", np.array([0, 1, 2, 3, 4, 5, 0, 0]))
    padded["weight"][6:] = 0
    assert [float(x) for x in task.loss(model, padded)[:2]] == pytest.approx(expected)
    assert means(task, model, padded) == pytest.approx(means(task, model, batch))


def test_accuracy_counts_the_answers_alone():
    task = make()
    batch = with_symbols(task, 2, 7, 1)

    def logits(tokens):  # 9 at every blank, and the last answer wrong
        answers = np.full(tokens.shape, 8)
        answers[:, -3:] = [2, 7, 2]
        return np.eye(9, dtype=np.float32)[answers]

    found = means(task, Predictor(logits), batch)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["exact_match"] == 0


def digest(batch):
    parts = (batch[name].tobytes() for name in ("inputs", "targets"))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


GOLDEN = {  # of batch (0, 0), batch (0, 1000) and the test set
    "urnn": ("89919a6c19c475d6", "bb24c70f3a902fb2", "fa9a03d603998919"),
    "tcn": ("c75c4145084f9ceb", "79e4925d2f9101d4", "a14d94af6db0d5e4"),
    "s4": ("10dba30c00791482", "38b31c67b7a895e0", "31c47886db400067"),
    "s4_reverse": ("bb7965833e9c03e4", "c1047bc304d45ecf", "6e7c5043c61de5ab"),
    "s4_lag": ("2388ee3fc99b5421", "cc36ba8d09baa74e", "7c5599dc4915ed30"),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_the_same_for_ever(form):
    # A release of numpy that changes a stream is seen here.
    task = make(form, n_data=10, delay=200)
    assert (
        digest(task.train_batch(0, 0, 64)),
        digest(task.train_batch(0, 1_000, 64)),
        digest(task.eval_batch("test", np.arange(64))),
    ) == GOLDEN[form]


def test_batches_are_pure(subprocess_env):
    task = make()
    forward = [digest(task.train_batch(3, step, 16)) for step in range(5)]
    task.eval_batch("test", np.arange(4))
    assert [digest(make().train_batch(3, s, 16)) for s in (4, 0, 2)] == [
        forward[s] for s in (4, 0, 2)
    ]
    program = (
        "from tests.experiments.tasks.test_delayed_copy import digest, make; "
        "print(digest(make().train_batch(3, 4, 16)))"
    )
    other = subprocess.check_output(
        [sys.executable, "-c", program], env=subprocess_env, text=True
    )
    assert other.strip() == forward[4]


def test_streams_are_disjoint():
    task = make(n_data=10, delay=20)
    digests = {digest(task.train_batch(seed, s, 64)) for seed in (0, 1) for s in (0, 1)}
    digests |= {
        digest(task.eval_batch(s, np.arange(64))) for s in ("validation", "test")
    }
    assert len(digests) == 6


def test_evaluation_rows_are_fixed():
    task = make(eval_size=64)
    assert task.eval_size("validation") == task.eval_size("test") == 64
    whole = task.eval_batch("validation", np.arange(64))
    some = task.eval_batch("validation", np.array([63, 5]))
    assert np.array_equal(some["inputs"], whole["inputs"][[63, 5]])


def test_symbols_are_uniform():
    batch = make(n_data=10, delay=1).train_batch(0, 0, 8_000)
    counts = np.bincount(batch["inputs"][:, :10].ravel(), minlength=9)
    assert counts[0] == 0
    assert np.sum((counts[1:] - 10_000) ** 2 / 10_000) < 29.9  # chi2(7), p = 1e-4


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"form": "urn"}, "form='urn' is not one of: urnn"),
        ({"n_data": 0}, "at least 1"),
        ({"delay": 0}, "at least 1"),
        ({"eval_size": 0}, "at least 1"),
        ({"n_symbols": 255}, "from 1 to 254"),
        ({"form": "s4_lag", "delay": 3}, "delay > n_data"),
    ],
)
def test_wrong_arguments(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        make(**wrong)


def test_the_checksum_names_the_task():
    assert make().checksum == make().checksum
    assert make().checksum != make(delay=6).checksum
