"""Compiles a whole sharded training step with the real compiler, without the devices.

    python -m tests.aot.train_step STEP TOPOLOGY     prints what the compiler says: JSON

The steps are those of the experiment runner: `lru`, a language model whose batch is
sharded over `data`, parameters over `fsdp` as well, and sequences over `time`;
`griffin`, `hgrn`, `hgrn2`, `transnormer` and `minimax`, the tiny ones of
configs/lm/bytes.py, the last two also with the kernel that a GPU runs by name alone;
`s5` and `liquid_s4`, those of configs/copying/delayed.py; `pathx lru` and `pathx s5`,
of Long Range Arena;
`recurrent_gemma_2b`, at its full size, on sequences of 2048 tokens, one a device, in
bfloat16 with parameters and moments in float32. TOPOLOGY is one that the step names in
STEPS; the compiler of its platform must be installed.
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
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from tests.aot import gpu, tpu

ROOT = Path(__file__).parents[2]
KERNEL = r'custom_call_target="(?:tpu_custom_call|mosaic_gpu\w*)"'
BATCH, LENGTH, WIDTH, STATES = 32, 4096, 512, 1024  # of the LRU
Mesh = dict[str, int]


class Step(NamedTuple):
    """A training step: its config, what is set in it, and meshes on devices.

    Topologies are in each platform's own naming.
    """

    config: str
    settings: dict[str, Any]
    meshes: dict[str, Mesh]
    vocabulary: int | None = None  # instead of the task's own


# What the kernel of lightning attention for GPUs takes.
BY_NAME = {
    "model.dtype": "bfloat16",
    "model.implementation": "mosaic_gpu",
    "model.mixer.n_heads": 2,
}

STEPS = {
    "lru": Step(
        "configs/copying/delayed.py:lru",
        {
            "task.delay": LENGTH - 20,
            "model.d_model": WIDTH,
            "model.n_layers": 2,
            "model.scan_layers": True,  # compiles one of them
            "model.mixer.d_state": STATES,
            "train.batch_size": BATCH,
            "evaluate.batch_size": BATCH,
        },
        {
            "v5e:4x4": {"data": 2, "fsdp": 2, "time": 4},
            "v5p:2x2x1": {"data": 1, "fsdp": 2, "time": 2},
            "v6e:2x2": {"data": 1, "fsdp": 2, "time": 2},
            "tpu7x:2x2x1": {"data": 2, "fsdp": 2, "time": 2},  # two devices a chip
            "h100": {"data": 2, "fsdp": 2, "time": 2},
        },
    ),
    "griffin": Step(
        "configs/lm/bytes.py:griffin,tiny",
        {},
        {"v5e:2x2": {"data": 4}, "h100": {"data": 4}},
    ),
    "hgrn": Step(
        "configs/lm/bytes.py:hgrn,tiny",
        {},
        {"v5e:2x2": {"data": 4}, "h100": {"data": 4}},
    ),
    "hgrn2": Step(
        "configs/lm/bytes.py:hgrn2,tiny",
        {},
        {"v5e:2x2": {"data": 4}},
    ),
    "transnormer": Step(
        "configs/lm/bytes.py:transnormer,tiny",
        {"model.mixer.turned": False},  # with it keys are twice as wide as values
        {"v5e:2x2": {"data": 4}},
    ),
    "minimax": Step(
        "configs/lm/bytes.py:minimax,tiny",
        {},
        {"v5e:2x2": {"data": 4}},
    ),
    "s5": Step(
        "configs/copying/delayed.py:s5",
        {},
        {"v5e:2x2": {"data": 4}, "h100": {"data": 4}},
    ),
    "liquid_s4": Step(
        "configs/copying/delayed.py:liquid_s4",
        {},
        {"v5e:2x2": {"data": 4}, "h100": {"data": 4}},
    ),
    # Path-X, 32 sequences of 16,384 pixels a device or, cut over time, in all.
    **{
        f"pathx {family}": Step(
            f"configs/lra/pathx.py:{family}",
            {"task.n_images": 100, "train.batch_size": 128},
            {"v5e:2x2": {"data": 4}, "h100": {"data": 4}},
        )
        for family in ("lru", "s5")
    },
    **{
        f"pathx {family}, over time": Step(
            f"configs/lra/pathx.py:{family}",
            {"task.n_images": 100, "train.batch_size": 32},
            {"v5e:2x2": {"time": 4}, "h100": {"time": 4}},
        )
        for family in ("lru", "s5")
    },
    "transnormer, by name": Step(
        "configs/lm/bytes.py:transnormer,tiny",
        {"model.d_model": 256, "model.mixer.turned": False} | BY_NAME,
        {"h100": {"data": 4}},
    ),
    "minimax, by name": Step(
        "configs/lm/bytes.py:minimax,tiny",
        {
            "model.d_model": 256,
            "model.mixer.head_dim": 128,
            "model.mixer.every": 4,  # of three layers: no softmax attention
        }
        | BY_NAME,
        {"h100": {"data": 4}},
    ),
    "recurrent_gemma_2b": Step(
        "configs/lm/bytes.py:griffin",
        {
            "task.length": 2048,
            "model.d_model": 2560,
            "model.n_layers": 26,
            "model.scan_layers": True,
            "model.remat": True,
            "model.dtype": "bfloat16",
            "model.embedding_scale": 50.5,
            "model.soft_cap": 30.0,
            "model.mixer.lru_width": 2560,
            "model.mixer.n_blocks": 10,
            "model.mixer.n_heads": 10,
            "model.mixer.window": 2049,
            "model.block.d_ff": 7680,
            "train.batch_size": 16,
            "evaluate.batch_size": 16,
        },
        {"v5e:4x4": {"fsdp": 16}, "v5p:2x2x2": {"fsdp": 8}},
        vocabulary=256_000,
    ),
}


def report(step: str, topology: str) -> dict[str, Any]:
    """Compiles the step in a process of its own; returns what it printed.

    The program is read from a dump: some of the operations that libtpu puts into it,
    `Compiled.as_text` cannot print.
    """
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        flags += " --xla_dump_hlo_module_re=.*train_step.*"
        done = subprocess.run(
            [sys.executable, "-m", "tests.aot.train_step", step, topology],
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


def compile_step(step: Step, topology: str) -> tuple[jax.stages.Compiled, int, int]:
    """The training step, compiled; its parameters, and a device's activations."""
    from experiments import builders, config, distributed, program

    sizes = step.meshes[topology]
    if topology in gpu.CHIPS:
        description = topologies.get_topology_desc(
            topology,
            "cuda",
            topology=f"1x1x{math.prod(sizes.values())}",
            target_config=Path(__file__).with_name(f"{topology}.txtpb").read_text(),
        )
    else:
        description = topologies.get_topology_desc(topology, "tpu")
    settings = step.settings | {f"mesh.{axis}": size for axis, size in sizes.items()}
    command = config.parse(
        ["main", f"--config={step.config}", "--workdir=unused"]
        + [f"--config.{key}={value}" for key, value in settings.items()]
    )
    task = builders.build_task(command.config)
    if step.vocabulary:
        task.model_kwargs |= {"vocab_size": step.vocabulary}
    built = program.build(command.config, description.devices, task)
    whole = distributed.replicated(built.mesh)
    by_batch = distributed.by_batch(built.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=by_batch)
        for name, array in task.train_batch(
            0, 0, command.config.train.batch_size
        ).items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    with jax.set_mesh(built.mesh):
        compiled = built.train_step.lower(built.target, batch, key).compile()
    tokens = max(array.size for array in batch.values()) // math.prod(sizes.values())
    return compiled, built.parameter_count(), tokens * command.config.model.d_model


def exchanges(hlo: str) -> Iterator[tuple[str, int]]:
    """The kind of every collective of a program, and the elements of its results."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", hlo):
        for dims in re.findall(r"\w+\[([\d,]*)\]", result):
            yield kind, math.prod(int(n) for n in dims.split(",") if n)


def moved(hlo: str, elements: int) -> list[str]:
    """The copies and transposes whose result has half of `elements`, or more."""
    inside = set(re.findall(r"calls=%?([\w.-]+)", hlo))
    found, computation = [], ""
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = header[1]
        moves = re.match(
            r"\s+(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\].*? "
            r"(copy|transpose|fusion)\(",
            line,
        )
        if moves is None or computation in inside:
            continue
        name, dims, kind = moves.groups()
        size = math.prod(int(n) for n in dims.split(",") if n)
        of_kind = kind != "fusion" or re.search("copy|transpose", name)
        if of_kind and size >= elements // 2:
            found.append(f"{name}[{dims}]")
    return found


def main(name: str, topology: str) -> None:
    """Does what the command line asks for."""
    compiled, parameters, activations = compile_step(STEPS[name], topology)
    memory = compiled.memory_analysis()
    assert memory is not None
    (program,) = Path(os.environ["AOT_DUMP"]).glob("*train_step*after_opt*ations.txt")
    hlo = program.read_text()
    largest: dict[str, int] = {}
    for kind, elements in exchanges(hlo):
        largest[kind] = max(elements, largest.get(kind, 0))
    print(
        json.dumps(
            {
                "step": name,
                "topology": topology,
                "parameters": parameters,
                "kernels": len(re.findall(KERNEL, hlo)),
                "largest_exchange": largest,
                "moved": moved(hlo, activations),
                "bytes_per_device": {
                    "arguments": memory.argument_size_in_bytes,
                    "temporary": memory.temp_size_in_bytes,
                },
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
