"""Compiles the TPU kernels with the real compiler, on a machine without a TPU.

    python -m tests.aot.tpu CHIP        prints a JSON line for each kernel and direction
    python -m tests.aot.tpu --write     writes tests/aot/tpu_cycles.json for all chips
    python -m tests.aot.tpu --table     prints that file beside the time of the memory

Needs libtpu (the extra `aot-tpu`). libtpu reads its flags once, and from the
environment: each chip has a process of its own.
"""

import collections
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import linear_scan_tpu
from tests.aot.bundles import cycles

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


class Case(NamedTuple):
    """Arguments of `linear_scan_tpu.linear_scan`."""

    planes: int = 1
    dtype: str = "float32"
    decay_planes: int = 1
    decay_dtype: str = "float32"
    constant: bool = False
    log: bool = False
    reset: bool = False
    reverse: bool = False
    shape: tuple[int, int, int] = (32, 2048, 1024)


CASES = {
    "float32": Case(),
    "float32, reversed": Case(reverse=True),
    "float32, reset": Case(reset=True),
    "float32 log_a": Case(log=True),
    "bfloat16 x, float32 a": Case(dtype="bfloat16"),
    "bfloat16 x, bfloat16 log_a": Case(
        dtype="bfloat16", decay_dtype="bfloat16", log=True
    ),
    "float32, constant a": Case(constant=True),
    "complex": Case(planes=2, decay_planes=2),
    "complex, constant a": Case(planes=2, decay_planes=2, constant=True),
    "complex, real a": Case(planes=2),
    "float32, one sequence": Case(shape=(1, 32768, 1024)),
    "float32, D 512": Case(shape=(32, 2048, 512)),
    "float32, D 256": Case(shape=(32, 2048, 256)),
    "float32, D 128": Case(shape=(32, 2048, 128)),
    "bfloat16 x, bfloat16 log_a, D 256": Case(
        dtype="bfloat16", decay_dtype="bfloat16", log=True, shape=(32, 2048, 256)
    ),
}

# Whose last blocks are not full: a loop of theirs turns as often as its block is long,
# so that there are no cycles to count.
RAGGED = {
    "ragged float32": Case(shape=(3, 257, 1000), reset=True, reverse=True),
    "ragged bfloat16": Case(
        dtype="bfloat16",
        decay_dtype="bfloat16",
        log=True,
        shape=(3, 1001, 1500),
        reverse=True,
    ),
    "ragged bfloat16, D 96": Case(dtype="bfloat16", shape=(3, 257, 96), reset=True),
    "ragged complex": Case(planes=2, decay_planes=2, shape=(5, 1001, 1000), reset=True),
    "ragged complex, constant a": Case(
        planes=2, decay_planes=2, constant=True, shape=(5, 1001, 130), reverse=True
    ),
    "seven steps": Case(shape=(2, 7, 600), reverse=True),
}


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the scan of a case and the shapes of its arguments."""
    batch, time, width = case.shape
    x = (jax.ShapeDtypeStruct(case.shape, case.dtype),) * case.planes
    decay_shape = (width,) if case.constant else case.shape
    decay = (jax.ShapeDtypeStruct(decay_shape, case.decay_dtype),) * case.decay_planes
    h0 = (jax.ShapeDtypeStruct((batch, width), jnp.float32),) * case.planes
    reset = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case.reset else None

    def run(x, decay, h0, reset):
        return linear_scan_tpu.linear_scan(
            x, decay, h0, reset, log=case.log, reverse=case.reverse
        )

    return run, (x, decay, h0, reset)


def ideal_bytes(case: Case, backward: bool) -> int:
    """What must be read and written of the arrays (B, T, D), each once."""
    element = jnp.dtype(case.dtype).itemsize * case.planes * (3 if backward else 2)
    if not case.constant:
        of_decay = jnp.dtype(case.decay_dtype).itemsize * case.decay_planes
        element += of_decay * (2 if backward else 1)
    return math.prod(case.shape) * element


def moved_planes(hlo: str, case: Case) -> list[str]:
    """The instructions besides the kernel whose result is half a plane or more."""
    harmless = ("parameter", "custom-call", "get-tuple-element", "tuple", "bitcast")
    found = []
    for name, dims, op in re.findall(
        r"^\s*(?:ROOT )?%(\S+) = \w+\[([\d,]*)\]\S* ([\w-]+)\(", hlo, re.MULTILINE
    ):
        size = math.prod(int(n) for n in dims.split(",") if n)
        if op not in harmless and size >= math.prod(case.shape) // 2:
            found.append(f"{op} {name}[{dims}]")
    return found


def compile_kernels(chip: str, dump: Path) -> Iterator[dict[str, Any]]:
    """Compiles both directions of every case and yields what the compiler says."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip].topology
    )
    kind = description.devices[0].device_kind
    linear_scan_tpu.device_kind = lambda: kind
    on_device = jax.sharding.SingleDeviceSharding(description.devices[0])

    def placed(shapes):
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on_device), shapes
        )

    for name, case in (CASES | RAGGED).items():
        run, arguments = program(case)
        *differentiable, reset = arguments

        def forward(*arguments, run=run):
            return run(*arguments)

        def with_vjp(x, decay, h0, reset, run=run):
            return jax.vjp(lambda *values: run(*values, reset), x, decay, h0)

        outputs, vjp = jax.eval_shape(with_vjp, *differentiable, reset)
        directions = {
            "forward": (forward, arguments),
            "backward": (lambda vjp, cotangents: vjp(cotangents), (vjp, outputs)),
        }
        for direction, (function, shapes) in directions.items():
            compiled = jax.jit(function).lower(*placed(shapes)).compile()
            hlo = compiled.as_text()
            backward = direction == "backward"
            files = [
                path
                for path in dump.glob(f"*linear_scan_{direction}*final_bundles.txt")
                if "schedule-analysis" not in path.name
            ]
            yield {
                "kernel": f"{name}, {direction}",
                "cycles": sum(cycles(path.read_text()) for path in files)
                if name in CASES
                else None,
                "kernels": len(files),
                "custom_calls": hlo.count('custom_call_target="tpu_custom_call"'),
                "moved": moved_planes(hlo, case),
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                "bytes": int(compiled.cost_analysis()["bytes accessed"]),
                "ideal_bytes": ideal_bytes(case, backward),
                "elements": math.prod(case.shape),
            }
            for path in dump.iterdir():
                path.unlink()


def reports(chip: str) -> list[dict[str, Any]]:
    """Runs this file on one chip, in a process of its own."""
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        done = subprocess.run(
            [sys.executable, "-m", "tests.aot.tpu", chip],
            env=os.environ
            | ENVIRONMENT
            | {"LIBTPU_INIT_ARGS": flags, "AOT_DUMP": dump, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


def write_table() -> None:
    """Stores the cycles of every kernel on every chip."""
    table: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for chip in CHIPS:
        for report in reports(chip):
            if report["cycles"] is not None:
                table[report["kernel"]][chip] = report["cycles"]
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


def print_table() -> None:
    """Prints cycles per 1024 elements: kernel / memory (ratio)."""
    stored = json.loads(TABLE.read_text())
    print("| kernel |", " | ".join(CHIPS), "|")
    print("|---|" + "---|" * len(CHIPS))
    for kernel, row in stored.items():
        name, _, direction = kernel.rpartition(", ")
        case = CASES[name]
        elements = math.prod(case.shape)
        cells = []
        for chip, (_, cores, clock, bandwidth) in CHIPS.items():
            compute = row[chip] / elements * 1024 * cores
            size = ideal_bytes(case, direction == "backward") / elements * 1024
            memory = size * clock / bandwidth
            cells.append(f"{compute:.1f} / {memory:.1f} ({compute / memory:.2f})")
        print(f"| {kernel} |", " | ".join(cells), "|")


if __name__ == "__main__":
    (argument,) = sys.argv[1:]
    if argument == "--write":
        write_table()
    elif argument == "--table":
        print_table()
    else:
        with contextlib.suppress(BrokenPipeError):
            for line in compile_kernels(argument, Path(os.environ["AOT_DUMP"])):
                print(json.dumps(line), flush=True)
