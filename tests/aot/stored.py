"""What the compilers made of the kernels before: tables to hold them to.

A table is of JAX 0.10's compilers. `tpu_cycles.jax_0.12.json` has the figures by which
those of JAX 0.12 are held instead: of the kernels that they make another program of.
"""

import json
from pathlib import Path
from typing import Any

import jax


def figures(table: Path, family: str) -> dict[str, dict[str, Any]]:
    """Those of every kernel of a family, on each chip, by the JAX that runs."""
    found = json.loads(table.read_text())[family]
    version = ".".join(jax.__version__.split(".")[:2])
    others = table.with_suffix(f".jax_{version}.json")
    if others.exists():
        for kernel, row in json.loads(others.read_text()).get(family, {}).items():
            found[kernel] |= row
    return found
