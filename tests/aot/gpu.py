"""Compiles the GPU kernels with the real compiler, on a machine without a GPU.

    python -m tests.aot.gpu CHIP FAMILY         prints a JSON line for each kernel
    python -m tests.aot.gpu --write [FAMILY]    writes tests/aot/gpu_registers.json
    python -m tests.aot.gpu --table [FAMILY]    prints it

Needs XLA for GPU and NVIDIA's assembler (the extra `aot-gpu`), but no CUDA libraries.
The target of a chip is described in tests/aot/CHIP.txtpb, in a format of XLA. A family
is a module as tests/aot/tpu.py has them.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from tests.aot import gpu_hgrn, gpu_linear_scan, gpu_rg_lru
from tests.aot.tpu import directions, moved_planes

FAMILIES: dict[str, ModuleType] = {
    family.OP: family for family in (gpu_linear_scan, gpu_rg_lru, gpu_hgrn)
}
ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("gpu_registers.json")
CHIPS = ("h100", "b200")
PACKAGES = (
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "nvidia-cuda-nvcc",
    "nvidia-nvvm",
)
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "MOSAIC_GPU_DUMP_PTX": "1",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
}


def is_installed() -> bool:
    """Whether all is there that compiles."""
    try:
        return all(map(importlib.metadata.version, PACKAGES))
    except importlib.metadata.PackageNotFoundError:
        return False


def compile_kernels(
    chip: str, family: ModuleType, dump: Path
) -> Iterator[dict[str, Any]]:
    """Compiles both directions of every case and yields what the compiler says."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip,
        topology="1x1x1",
        target_config=Path(__file__).with_name(f"{chip}.txtpb").read_text(),
    )
    mesh = jax.sharding.Mesh(np.array(description.devices[:1]), ("device",))
    on_device = jax.NamedSharding(mesh, jax.P())

    def placed(shapes: Any) -> Any:
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on_device), shapes
        )

    with jax.set_mesh(mesh):
        for name, case in (family.CASES | family.RAGGED).items():
            for direction, (function, shapes) in directions(family, case).items():
                compiled = jax.jit(function).lower(*placed(shapes)).compile()
                hlo = compiled.as_text()
                elements = math.prod(case.shape)
                yield {
                    "kernel": f"{name}, {direction}",
                    "ragged": name in family.RAGGED,
                    "compiled": [read_kernel(path) for path in in_order(dump)],
                    "custom_calls": len(re.findall(r"= .* custom-call\(", hlo)),
                    "moved": moved_planes(hlo, elements),
                    "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                    "ideal_bytes": family.ideal_bytes(case, direction == "backward"),
                }
                for path in dump.iterdir():
                    path.unlink()


def in_order(dump: Path) -> list[Path]:
    """The reports of the assembler, which are numbered as the kernels are compiled."""
    return sorted(dump.glob("*.ptxas"), key=lambda p: int(p.stem.rpartition("_")[2]))


def read_kernel(path: Path) -> dict[str, Any]:
    """What the assembler says of one kernel, and its barriers for all threads."""
    report = path.read_text()
    (used,) = re.findall(r"Used (\d+) registers", report)
    return {
        "name": re.sub(r"_\d+$", "", path.stem),
        "registers": int(used),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "barriers": path.with_suffix(".ptx").read_text().count("bar.sync"),
    }


def reports(chip: str, family: str) -> list[dict[str, Any]]:
    """Runs this file on one chip, in a process of its own."""
    with tempfile.TemporaryDirectory() as dump:
        done = subprocess.run(
            [sys.executable, "-m", "tests.aot.gpu", chip, family],
            env=os.environ
            | ENVIRONMENT
            | {"MOSAIC_GPU_DUMP_TO": dump, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


def registers(report: dict[str, Any]) -> dict[str, int]:
    """The registers of a thread in each of the kernels that a call consists of."""
    return {kernel["name"]: kernel["registers"] for kernel in report["compiled"]}


def write_table(family: str) -> None:
    """Stores the registers of every kernel of a family on every chip."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for chip in CHIPS:
        for report in reports(chip, family):
            found.setdefault(report["kernel"], {})[chip] = registers(report)
    stored = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    stored |= {family: found}
    table = {name: stored[name] for name in FAMILIES if name in stored}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


def print_table(family: str) -> None:
    """Prints the registers of a thread, of one kernel after the other."""
    print(f"\n| {family} |", " | ".join(CHIPS), "|")
    print("|---|" + "---|" * len(CHIPS))
    for kernel, row in json.loads(TABLE.read_text())[family].items():
        cells = (" then ".join(map(str, row[chip].values())) for chip in CHIPS)
        print(f"| {kernel} |", " | ".join(cells), "|")


def main(action: str, *families: str) -> None:
    """Does what the command line asks for."""
    if action in CHIPS:
        (family,) = families
        with contextlib.suppress(BrokenPipeError):
            for line in compile_kernels(
                action, FAMILIES[family], Path(os.environ["MOSAIC_GPU_DUMP_TO"])
            ):
                print(json.dumps(line), flush=True)
        return
    for family in families or FAMILIES:
        {"--write": write_table, "--table": print_table}[action](family)


if __name__ == "__main__":
    main(*sys.argv[1:])
