"""Compiles `pallas_kernels.lightning_gpu` with the real compiler.

python -m tests.aot.gpu_lightning       prints a JSON line for each case
"""

import functools
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
import jax.numpy as jnp
import numpy as np

from pallas_kernels import lightning_gpu
from ssm.ops.lightning_chunked import attention_chunked
from tests.aot import gpu

CHIP = "h100"


class Case(NamedTuple):
    """The arrays (B, T, H K) of a call, and its decay."""

    shape: tuple[int, int, int]
    changing: bool = False
    gradients: bool = False


LARGE = (4, 4096, 2048)
CASES = {
    "decay of each head": Case(LARGE),
    "decay of each head, with gradients": Case(LARGE, gradients=True),
    "decay of each step": Case(LARGE, changing=True),
    "decay of each step, with gradients": Case(LARGE, changing=True, gradients=True),
    "one chunk": Case((1, 64, 128)),
}


def compile_kernels(dump: Path) -> Iterator[dict[str, Any]]:
    """Compiles every case and yields what the compiler says."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(
        platform="cuda",
        topology_name=CHIP,
        topology="1x1x1",
        target_config=Path(__file__).with_name(f"{CHIP}.txtpb").read_text(),
    )
    mesh = jax.sharding.Mesh(np.array(description.devices[:1]), ("device",))
    on_device = jax.NamedSharding(mesh, jax.P())

    def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=on_device)

    def program(case: Case) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
        batch, time, lanes = case.shape
        heads = lanes // lightning_gpu.WIDTH
        array = shaped((batch, time, heads, lightning_gpu.WIDTH), jnp.bfloat16)
        state = shaped((batch, heads, 128, 128), jnp.float32)
        of_decay = (batch, time, heads) if case.changing else (heads,)
        decay = shaped(of_decay, jnp.float32)

        def run(decay: Any, *arguments: Any) -> Any:
            *qkv, s0 = arguments
            return lightning_gpu.lightning_attention(
                *qkv, decay, s0, None, composed=attention_chunked
            )

        def with_gradients(decay: Any, d_o: Any, d_last: Any, *arguments: Any) -> Any:
            """Of a decay that is no parameter."""
            out, vjp = jax.vjp(functools.partial(run, decay), *arguments)
            return out, vjp((d_o, d_last))

        arguments = array, array, array, state
        if case.gradients:
            return with_gradients, (decay, array, state, *arguments)
        return run, (decay, *arguments)

    with jax.set_mesh(mesh):
        for name, case in CASES.items():
            function, arguments = program(case)
            compiled = jax.jit(function).lower(*arguments).compile()
            hlo = compiled.as_text()
            kernels = [gpu.read_kernel(path) for path in gpu.in_order(dump)]
            yield {
                "kernel": name,
                "compiled": kernels,
                "calls": len(re.findall(r"= .* custom-call\(", hlo)),
                "products": sum(
                    path.read_text().count("wgmma.mma_async")
                    for path in dump.glob("*.ptx")
                ),
                "moved": gpu.moved_planes(hlo, math.prod(case.shape)),
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                "array_bytes": 2 * math.prod(case.shape),
            }
            for path in dump.iterdir():
                path.unlink()


def reports() -> list[dict[str, Any]]:
    """Runs this file in a process of its own."""
    with tempfile.TemporaryDirectory() as dump:
        done = subprocess.run(
            [sys.executable, "-m", "tests.aot.gpu_lightning"],
            env=os.environ
            | gpu.ENVIRONMENT
            | {"MOSAIC_GPU_DUMP_TO": dump, "PYTHONPATH": str(gpu.ROOT)},
            cwd=gpu.ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


if __name__ == "__main__":
    for report in compile_kernels(Path(os.environ["MOSAIC_GPU_DUMP_TO"])):
        print(json.dumps(report), flush=True)
