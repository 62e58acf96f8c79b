"""Compiles the TPU kernels with the real compiler, on a machine without a TPU.

    python -m tests.aot.tpu CHIP FAMILY         prints a JSON line for each kernel
    python -m tests.aot.tpu --write [FAMILY]    writes tests/aot/tpu_cycles.json
    python -m tests.aot.tpu --table [FAMILY]    prints it beside the time of the memory

Needs libtpu (the extra `aot-tpu`). libtpu reads its flags once, and from the
environment: each chip has a process of its own.

A family is a module with
    OP                  the prefix of its kernels' names: `OP_forward`, `OP_backward`
    CASES, RAGGED       {name: case}; cycles are counted of the first. `case.shape` is
                        that of its largest array
    program(case)       a function and the shapes of its arguments, of which all but the
                        last are differentiated
    ideal_bytes(case, backward)     what must be read and written at least
"""

import contextlib
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
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.aot import (
    tpu_hgrn,
    tpu_lightning,
    tpu_lightning_channel,
    tpu_linear_scan,
    tpu_rg_lru,
)
from tests.aot.bundles import cycles

FAMILIES: dict[str, ModuleType] = {
    family.OP: family
    for family in (
        tpu_linear_scan,
        tpu_rg_lru,
        tpu_hgrn,
        tpu_lightning,
        tpu_lightning_channel,
    )
}
ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("tpu_cycles.json")


class Chip(NamedTuple):
    """A compile target, and what one core of it can do, from the vendor's figures."""

    topology: str
    cores: int  # that one device's program is spread over
    clock: float  # Hz; of tpu7x assumed
    bandwidth: float  # bytes/s of a core


CHIPS = {
    "v5e": Chip("v5e:2x2", 1, 1.50e9, 819e9),
    "v5p": Chip("v5p:2x2x1", 2, 1.75e9, 1382e9),
    "v6e": Chip("v6e:2x2", 1, 1.75e9, 1640e9),
    "tpu7x": Chip("tpu7x:2x2x1", 1, 2.00e9, 3690e9),
}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def moved_planes(hlo: str, elements: int) -> list[str]:
    """The instructions besides the kernel whose result is half a plane or more."""
    harmless = ("parameter", "custom-call", "get-tuple-element", "tuple", "bitcast")
    found = []
    for name, dims, op in re.findall(
        r"^\s*(?:ROOT )?%(\S+) = \w+\[([\d,]*)\]\S* ([\w-]+)\(", hlo, re.MULTILINE
    ):
        size = math.prod(int(n) for n in dims.split(",") if n)
        if op not in harmless and size >= elements // 2:
            found.append(f"{op} {name}[{dims}]")
    return found


def directions(family: ModuleType, case: Any) -> dict[str, tuple[Any, Any]]:
    """The functions to compile, each with the shapes of its arguments."""
    run, arguments = family.program(case)
    *differentiable, constant = arguments

    def with_vjp(differentiable: Any, constant: Any) -> Any:
        return jax.vjp(lambda *values: run(*values, constant), *differentiable)

    outputs, vjp = jax.eval_shape(with_vjp, differentiable, constant)
    return {
        "forward": (run, arguments),
        "backward": (lambda vjp, cotangents: vjp(cotangents), (vjp, outputs)),
    }


def compile_kernels(
    chip: str, family: ModuleType, dump: Path
) -> Iterator[dict[str, Any]]:
    """Compiles both directions of every case and yields what the compiler says."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip].topology
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
                files = [
                    path
                    for path in dump.glob(f"*{family.OP}_{direction}*final_bundles.txt")
                    if "schedule-analysis" not in path.name
                ]
                elements = math.prod(case.shape)
                yield {
                    "kernel": f"{name}, {direction}",
                    "cycles": sum(cycles(path.read_text()) for path in files)
                    if name in family.CASES
                    else None,
                    "kernels": len(files),
                    "custom_calls": hlo.count('custom_call_target="tpu_custom_call"'),
                    "moved": moved_planes(hlo, elements),
                    "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                    "bytes": int(compiled.cost_analysis()["bytes accessed"]),
                    "ideal_bytes": family.ideal_bytes(case, direction == "backward"),
                    "elements": elements,
                }
                for path in dump.iterdir():
                    path.unlink()


def reports(chip: str, family: str) -> list[dict[str, Any]]:
    """Runs this file on one chip, in a process of its own."""
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        done = subprocess.run(
            [sys.executable, "-m", "tests.aot.tpu", chip, family],
            env=os.environ
            | ENVIRONMENT
            | {"LIBTPU_INIT_ARGS": flags, "AOT_DUMP": dump, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


def write_table(family: str) -> None:
    """Stores the cycles of every kernel of a family on every chip."""
    found: dict[str, dict[str, int]] = {}
    for chip in CHIPS:
        for report in reports(chip, family):
            if report["cycles"] is not None:
                found.setdefault(report["kernel"], {})[chip] = report["cycles"]
    stored = json.loads(TABLE.read_text()) | {family: found}
    table = {name: stored[name] for name in FAMILIES if name in stored}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


def print_table(family: str) -> None:
    """Prints cycles per 1024 elements: kernel / memory (ratio)."""
    print(f"\n| {family} |", " | ".join(CHIPS), "|")
    print("|---|" + "---|" * len(CHIPS))
    for kernel, row in json.loads(TABLE.read_text())[family].items():
        name, _, direction = kernel.rpartition(", ")
        case = FAMILIES[family].CASES[name]
        elements = math.prod(case.shape)
        size = FAMILIES[family].ideal_bytes(case, direction == "backward")
        cells = []
        for chip, (_, cores, clock, bandwidth) in CHIPS.items():
            compute = row[chip] / elements * 1024 * cores
            memory = size / elements * 1024 * clock / bandwidth
            cells.append(f"{compute:.1f} / {memory:.1f} ({compute / memory:.2f})")
        print(f"| {kernel} |", " | ".join(cells), "|")


def main(action: str, *families: str) -> None:
    """Does what the command line asks for."""
    if action in CHIPS:
        (family,) = families
        with contextlib.suppress(BrokenPipeError):
            for line in compile_kernels(
                action, FAMILIES[family], Path(os.environ["AOT_DUMP"])
            ):
                print(json.dumps(line), flush=True)
        return
    for family in families or FAMILIES:
        {"--write": write_table, "--table": print_table}[action](family)


if __name__ == "__main__":
    main(*sys.argv[1:])
