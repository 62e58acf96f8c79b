"""What each config of Long Range Arena comes to, as text to be diffed.

    python -m tests.configs.golden

writes `tests/configs/golden/TASK.txt`: for each family its config, after the LRU only
what differs from the LRU's; then every parameter of its model, with shape, dtype,
group, and how many layers have one like it. Read the difference before it is committed.
"""

import importlib
import math
import re
from collections import Counter
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from experiments import builders
from experiments.config import flatten

FOLDER = Path(__file__).parent / "golden"
TASKS = {
    "listops": {"vocab_size": 17, "n_classes": 10},
    "text": {"vocab_size": 258, "n_classes": 2},
    "retrieval": {"vocab_size": 258, "n_classes": 2},
    "image": {"d_input": 1, "n_classes": 10},
    "pathfinder": {"d_input": 1, "n_classes": 2},
    "pathx": {"d_input": 1, "n_classes": 2},
}
"""What each task fixes of its model."""


class FakeTask:
    """A task without its data."""

    def __init__(self, name: str):
        self.model_kind = builders.TASKS[name].model_kind
        self.model_kwargs = TASKS[name]


def dump(task: str, family: str) -> str:
    """Return the section of a family."""
    module = importlib.import_module(f"configs.lra.{task}")
    config = module.get_config(family)
    values = flatten(config)
    if family != "lru":
        usual = flatten(module.get_config("lru"))
        values = {k: v for k, v in values.items() if usual.get(k, "absent") != v}
    lines = [f"## {task}.py:{family}"]
    lines += [f"{key} = {value!r}" for key, value in sorted(values.items())]
    return "\n".join(lines + parameters(config)) + "\n"


def parameters(config: ConfigDict) -> list[str]:
    """Return a line for each kind of parameter, and their number."""
    create = builders.build_model(config, FakeTask(config.task.name))
    model = nnx.eval_shape(lambda: create(jax.random.key(0)))
    groups = builders.parameter_groups(config, model)
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    kinds: Counter[str] = Counter()
    for (path, group), shape in zip(
        jax.tree.leaves_with_path(groups), jax.tree.leaves(shapes), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = re.sub(r"/\d+/", "/*/", name)
        kinds[f"{name} {shape.shape} {shape.dtype} {group}"] += 1
    count = sum(math.prod(shape.shape) for shape in jax.tree.leaves(shapes))
    return [f"{n} x {kind}" for kind, n in kinds.items()] + [f"{count} parameters"]


def sections(task: str) -> dict[str, str]:
    """Return the stored sections of a task by family."""
    text = (FOLDER / f"{task}.txt").read_text()
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {re.match(r"## \S+:(\S+)", part)[1]: part.rstrip("\n") for part in parts}


def families(task: str) -> list[str]:
    """Return the families of a task, in the order of its config."""
    return list(importlib.import_module(f"configs.lra.{task}").RECIPES)


if __name__ == "__main__":
    for task in TASKS:
        text = "\n".join(dump(task, family) for family in families(task))
        (FOLDER / f"{task}.txt").write_text(text)
