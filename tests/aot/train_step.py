"""Compiles a whole sharded training step with the real compiler, without the devices.

    python -m tests.aot.train_step TOPOLOGY      prints what the compiler says, as JSON

The step is that of the experiment runner for an LRU language model, on a mesh that
shards the batch over `data`, parameters over `fsdp` as well, and the sequences over
`time`. TOPOLOGY is one of TOPOLOGIES; the compiler of its platform must be installed.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from tests.aot import gpu, tpu

ROOT = Path(__file__).parents[2]
# In each platform's own naming: the mesh over its devices.
TOPOLOGIES: dict[str, dict[str, int]] = {
    "v5e:4x4": {"data": 2, "fsdp": 2, "time": 4},
    "v5p:2x2x1": {"data": 1, "fsdp": 2, "time": 2},
    "v6e:2x2": {"data": 1, "fsdp": 2, "time": 2},
    "tpu7x:2x2x1": {"data": 2, "fsdp": 2, "time": 2},  # two devices a chip
    "h100": {"data": 2, "fsdp": 2, "time": 2},
}
KERNEL = r'custom_call_target="(?:tpu_custom_call|mosaic_gpu\w*)"'
BATCH, LENGTH, WIDTH, STATES = 32, 4096, 512, 1024


def report(topology: str) -> dict[str, Any]:
    """Compiles the step in a process of its own; returns what it printed.

    The program is read from a dump: some of the operations that libtpu puts into it,
    `Compiled.as_text` cannot print.
    """
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        flags += " --xla_dump_hlo_module_re=.*train_step.*"
        done = subprocess.run(
            [sys.executable, "-m", "tests.aot.train_step", topology],
            env=os.environ
            | gpu.ENVIRONMENT
            | tpu.ENVIRONMENT
            | {"XLA_FLAGS": flags, "AOT_DUMP": dump, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def compile_step(topology: str) -> jax.stages.Compiled:
    """The training step of an LRU language model, compiled for a topology."""
    from experiments import config, distributed, program

    sizes = TOPOLOGIES[topology]
    if topology in gpu.CHIPS:
        description = topologies.get_topology_desc(
            topology,
            "cuda",
            topology=f"1x1x{math.prod(sizes.values())}",
            target_config=Path(__file__).with_name(f"{topology}.txtpb").read_text(),
        )
    else:
        description = topologies.get_topology_desc(topology, "tpu")
    settings = {
        "task.delay": LENGTH - 20,
        "model.d_model": WIDTH,
        "model.n_layers": 2,
        "model.scan_layers": True,  # compiles one of them
        "model.mixer.d_state": STATES,
        "train.batch_size": BATCH,
        "evaluate.batch_size": BATCH,
    } | {f"mesh.{axis}": size for axis, size in sizes.items()}
    command = config.parse(
        ["main", "--config=configs/copying/delayed.py:lru", "--workdir=unused"]
        + [f"--config.{key}={value}" for key, value in settings.items()]
    )
    built = program.build(command.config, description.devices)
    whole = distributed.replicated(built.mesh)
    by_batch = distributed.by_batch(built.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=by_batch)
        for name, array in built.task.train_batch(0, 0, BATCH).items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    with jax.set_mesh(built.mesh):
        return built.train_step.lower(built.target, batch, key).compile()


def exchanges(hlo: str) -> Iterator[tuple[str, int]]:
    """The kind of every collective of a program, and the elements of its results."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", hlo):
        for dims in re.findall(r"\w+\[([\d,]*)\]", result):
            yield kind, math.prod(int(n) for n in dims.split(",") if n)


def main(topology: str) -> None:
    """Does what the command line asks for."""
    memory = compile_step(topology).memory_analysis()
    assert memory is not None
    (program,) = Path(os.environ["AOT_DUMP"]).glob("*train_step*after_opt*ations.txt")
    hlo = program.read_text()
    largest: dict[str, int] = {}
    for kind, elements in exchanges(hlo):
        largest[kind] = max(elements, largest.get(kind, 0))
    print(
        json.dumps(
            {
                "topology": topology,
                "kernels": len(re.findall(KERNEL, hlo)),
                "largest_exchange": largest,
                "temporary_bytes": memory.temp_size_in_bytes,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
