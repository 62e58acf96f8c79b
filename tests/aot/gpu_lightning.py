"""Compiles `pallas_kernels.lightning_gpu`, of which only the forward pass is a kernel.

python -m tests.aot.gpu_lightning       prints a JSON line for each case
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
import jax.numpy as jnp
import numpy as np

from pallas_kernels import lightning_gpu
from ssm.ops.lightning_chunked import attention_chunked
from tests.aot import gpu

CHIP = "h100"


class Case(NamedTuple):
    """The arrays (B, T, H K) of a call."""

    shape: tuple[int, int, int]


CASES = {"B 4, T 4096, H 16": Case((4, 4096, 2048)), "one chunk": Case((1, 64, 128))}


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

    def run(q: Any, k: Any, v: Any, log_decay: Any, s0: Any) -> Any:
        heads = log_decay.shape[0]
        split = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        o, last = lightning_gpu.lightning_attention(
            *split, log_decay, s0, None, composed=attention_chunked
        )
        return o.reshape(q.shape), last

    with jax.set_mesh(mesh):
        for name, case in CASES.items():
            batch, _, lanes = case.shape
            heads = lanes // lightning_gpu.WIDTH
            array = shaped(case.shape, jnp.bfloat16)
            state = shaped((batch, heads, 128, 128), jnp.float32)
            decay = shaped((heads,), jnp.float32)
            compiled = jax.jit(run).lower(array, array, array, decay, state).compile()
            hlo = compiled.as_text()
            yield {
                "kernel": name,
                "compiled": [gpu.read_kernel(path) for path in gpu.in_order(dump)],
                "custom_calls": len(re.findall(r"= .* custom-call\(", hlo)),
                "products": sum(
                    path.read_text().count("wgmma.mma_async")
                    for path in dump.glob("*.ptx")
                ),
                "moved": gpu.moved_planes(hlo, math.prod(case.shape)),
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
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
