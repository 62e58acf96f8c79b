"""Drawing and storing ListOps at the size of Long Range Arena."""

import tempfile
import time

import numpy as np

from benchmarks.harness import ROOT, at_most, table
from experiments.builders import build_task
from experiments.config import load
from experiments.data.listops import EOS, PAD, evaluate
from experiments.tasks.listops import ListOps

SIZES = {"train": 96_000, "validation": 2_000, "test": 2_000}


def check(task: ListOps) -> None:
    """Hold sizes, lengths and a sample of the values to a second evaluation."""
    for split, size in SIZES.items():
        assert task.size(split) == size
        batch = task.batch(split, np.arange(0, size, 20))
        for row, label in zip(batch["tokens"], batch["label"], strict=True):
            tokens = row[(row != PAD) & (row != EOS)]
            assert 500 < len(tokens) < 2000
            assert evaluate(tokens.tolist()) == label


def run() -> str:
    """Return the table."""
    config, _ = load(str(ROOT / "configs/lra/listops.py"), "lru")
    with tempfile.TemporaryDirectory() as directory:
        config.data.cache_dir = directory
        start = time.perf_counter()
        task = build_task(config)
        seconds = time.perf_counter() - start
        assert isinstance(task, ListOps)
        check(task)
    rows = [[" + ".join(map(str, SIZES.values())), at_most(seconds, 120, "s")]]
    return (
        "Expressions of 500 to 2000 tokens, drawn on all cores and stored as "
        "array_record.\n\n" + table(["rows", "time"], rows)
    )
