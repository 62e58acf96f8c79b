"""Scalars: fetched in one piece, averaged exactly, written as JSON lines.

A metric is a pair (sum, weight); sums are added first and divided once.
"""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.errors import UserError

Sums = dict[str, tuple[float, float]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree of scalars in one float32 array: a fetch costs one transfer, not many."""

    values: jax.Array
    structure: jax.tree_util.PyTreeDef = dataclasses.field(metadata={"static": True})

    @classmethod
    def pack(cls, tree: Any) -> "Packed":
        leaves, structure = jax.tree.flatten(tree)
        return cls(jnp.stack([leaf.astype(jnp.float32) for leaf in leaves]), structure)

    def fetch(self) -> Any:
        """Wait for the device; return the tree of Python floats."""
        return jax.tree.unflatten(self.structure, np.asarray(self.values).tolist())


def add(sums: Sums, new: Mapping[str, tuple[float, float]]) -> Sums:
    """Return the sums of two batches."""
    empty = (0.0, 0.0)
    return {
        name: (sums.get(name, empty)[0] + value, sums.get(name, empty)[1] + weight)
        for name, (value, weight) in new.items()
    }


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Divide each sum by its weight, once."""
    return {name: value / weight for name, (value, weight) in sums.items()}


def text(values: Mapping[str, float]) -> str:
    """Return metrics as a line shows them, the loss first."""
    names = sorted(values, key=lambda name: (name != "loss", name))
    return " ".join(f"{name} {values[name]:.4f}" for name in names)


def non_finite(tree: Any) -> list[str]:
    """Return the paths of the leaves that are infinite or not a number."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
        if not math.isfinite(value)
    ]


def all_finite(tree: Any) -> bool:
    """Whether no leaf is infinite or not a number."""
    return all(map(math.isfinite, jax.tree.leaves(tree)))


def norm(norms: Any) -> float:
    """Return the norm of the whole from the norms of its parts."""
    return math.hypot(*jax.tree.leaves(norms))


class Writer(Protocol):
    """Somewhere to write metrics to."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends `{"step": ..., "train/loss": ...}` lines to a file, the record of truth.

    Opened at a step, it drops the lines of later steps, and one that was torn.
    """

    def __init__(self, path: Path, step: int):
        self._file: IO[str] = path.open("a")
        self._cut(path, step)

    @staticmethod
    def _cut(path: Path, step: int) -> None:
        with path.open("rb+") as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
                end += len(line)
            file.truncate(end)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line; when this returns, a killed process no longer loses it."""
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Several:
    """Writes to each of several writers; to none in the processes that do not write."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class TensorBoard:
    """Event files in `workdir/tensorboard`."""

    def __init__(self, workdir: Path, step: int):
        module = _optional("tensorboardX", "log.tensorboard")
        self._writer = module.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A Weights & Biases run, one for each directory and continued with it."""

    def __init__(self, workdir: Path, config: ConfigDict):
        module = _optional("wandb", "log.wandb")
        self._run = module.init(
            project="ssm-lab",
            name=workdir.name,
            dir=str(workdir),
            config=config.to_dict(),
            resume="allow",
            id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _optional(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"config key {key} needs {package}: pip install {package}"
        ) from error
