"""Imports run one way, and `import ssm` stays cheap.

    pallas_kernels <- ssm.ops <- ssm.layers <- ssm.blocks <- ssm.models
                   <- experiments -> configs

Read from the syntax tree, so an import inside a function counts as well.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a room may import besides itself and the standard library. A new room of `ssm`
# needs a line here.
OPS = {"jax", "numpy", "pallas_kernels"}
LAYERS = OPS | {"flax", "ssm.ops", "ssm.initializers"}
BLOCKS = LAYERS | {"ssm.layers"}
MODELS = BLOCKS | {"ssm.blocks"}
ALLOWED = {
    "pallas_kernels": {"jax"},
    "ssm.ops": OPS,
    "ssm.reference": {"jax", "numpy"},  # the truth leans on nothing that it judges
    "ssm.initializers": {"jax", "numpy"},
    "ssm.layers": LAYERS,
    "ssm.blocks": BLOCKS,
    "ssm.models": MODELS,
    "ssm.param_groups": MODELS | {"ssm.models"},
    "ssm.param_sharding": {"jax"},
    "ssm.pretrained": MODELS | {"ssm.models", "ssm.param_groups", "ssm.param_sharding"},
    "ssm.generate": {"jax", "numpy", "flax"},
    "ssm": {f"ssm.{room}" for room in ("ops", "layers", "blocks", "models")}
    | {"ssm.generate", "ssm.initializers", "ssm.param_groups", "ssm.reference"}
    | {"ssm.param_sharding", "ssm.pretrained"},
    "configs": {"ml_collections"},
}


def room_of(module: str) -> str:
    """Return the entry of ALLOWED that holds a module, else its top-level package."""
    parts = module.split(".")
    if parts[0] == "ssm":
        return ".".join(parts[:2])
    return parts[0]


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the room of every import in a file of `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, room_of(alias.name)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, package)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield node.lineno, room_of(full if room_of(full) in ALLOWED else source)


def violations(path: Path, source: str) -> list[str]:
    """Name every import that a file at `path`, relative to the root, may not have."""
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    package = ".".join(path.parent.parts)
    room = room_of(module)
    if room not in ALLOWED:
        return [f"{path}: the room {room!r} is missing from ALLOWED"]
    allowed = ALLOWED[room] | {room} | sys.stdlib_module_names
    return [
        f"{path}:{line}: {room} must not import {found}"
        for line, found in imports(ast.parse(source), package)
        if found not in allowed
    ]


def python_files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def test_imports_run_one_way():
    found = []
    for path in python_files("pallas_kernels", "ssm", "configs"):
        found += violations(path.relative_to(ROOT), path.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pallas_kernels/scan.py", "import ssm"),
        ("ssm/ops/scan.py", "from flax import nnx"),
        ("ssm/ops/scan.py", "from ..layers import lru"),
        ("ssm/ops/scan.py", "from .. import layers"),
        ("ssm/layers/lru.py", "def f():\n    import ssm.models"),
        ("ssm/layers/lru.py", "from ssm import LRU"),
        ("ssm/models/classifier.py", "import optax"),
        ("ssm/models/__init__.py", "from .. import param_groups"),
        ("ssm/new_room.py", ""),
        ("configs/digits.py", "import jax"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str):
    assert violations(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pallas_kernels/scan.py", "import functools\nfrom jax import numpy"),
        ("ssm/ops/scan.py", "from . import checks\nfrom ssm.ops.checks import check"),
        ("ssm/layers/lru.py", "from ssm import initializers, ops\nfrom .. import ops"),
        ("ssm/__init__.py", "from . import ops\nfrom .layers import LRU"),
        ("configs/digits.py", "from configs import base\nfrom . import base"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str):
    assert not violations(Path(path), source)


def test_configs_are_read_by_attribute():
    # `.get` with a default would hide a mistyped key.
    found = []
    for path in python_files("configs", "experiments"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "get":
                if "config" in ast.unparse(node.value).split("."):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, f".get on a config: {found}"


def test_import_ssm_is_cheap(subprocess_env: dict[str, str]):
    # The goal is 0.1 s over flax.nnx, which `make bench` measures on a quiet machine.
    timed_import = (
        "from flax import nnx; import time; start = time.perf_counter(); "
        "import ssm; print(time.perf_counter() - start)"
    )
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", timed_import],
                env=subprocess_env,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.3
