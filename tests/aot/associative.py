"""What `lax.associative_scan` moves on a TPU, by the real compiler's own count.

    python -m tests.aot.associative      prints a table: bytes over the ideal ones

Forward, and forward with gradients, of h_t = a_t h_{t-1} + x_t at (32, 2048, 1024): an
array that is too large to stay in the chip's own memory. Needs libtpu.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ops import associative_scan
from tests.aot.tpu import CHIPS, ENVIRONMENT

SHAPE = (32, 2048, 1024)


def ratios(chip: str) -> list[str]:
    """Bytes accessed over those of arrays that are touched once, as cells of a row."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(CHIPS[chip].topology, "tpu")
    mesh = jax.sharding.Mesh(np.array(description.devices[:1]), ("device",))
    sharding = jax.NamedSharding(mesh, jax.P())

    def both(x, a, cotangent):
        return jax.vjp(associative_scan, x, a)[1](cotangent)

    cells = []
    for dtype in ("float32", "bfloat16"):
        array = jax.ShapeDtypeStruct(SHAPE, dtype, sharding=sharding)
        for function, inputs, planes in ((associative_scan, 2, 3), (both, 3, 8)):
            compiled = jax.jit(function).lower(*[array] * inputs).compile()
            ideal = planes * np.prod(SHAPE) * jnp.dtype(dtype).itemsize
            cells.append(f"{compiled.cost_analysis()['bytes accessed'] / ideal:.1f}x")
    return cells


def main(*chips: str) -> None:
    """Prints the row of a chip; without one the table, each chip in a process."""
    if chips:
        print(f"| {chips[0]} |", " | ".join(ratios(chips[0])), "|")
        return
    print("| chip | float32 forward | with gradients | bfloat16 | with gradients |")
    print("|---|---|---|---|---|", flush=True)
    for chip in CHIPS:
        subprocess.run(
            [sys.executable, "-m", "tests.aot.associative", chip],
            env=os.environ | ENVIRONMENT,
            cwd=Path(__file__).parents[2],
            check=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
