"""Convolution and recurrence of the state-space layers on a TPU, by what they move.

    python -m tests.aot.forms      prints a table: megabytes by the compiler's own count

Forward with gradients on a v5e, each layer whole in time. Needs libtpu.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.state_spaces import FORMS
from ssm.layers import channel_states
from tests.aot.tpu import CHIPS, ENVIRONMENT

SHAPES = [(32, 128, 128), (8, 1024, 128), (2, 4096, 128), (1, 16384, 128)]
CHIP, BANDWIDTH = "v5e", 819e9  # bytes a second


def megabytes(kind: Any, states: int, mode: str, shape: tuple[int, ...]) -> float:
    """What the compiler says that the gradient reads and writes."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(CHIPS[CHIP].topology, "tpu")
    mesh = jax.sharding.Mesh(np.array(description.devices[:1]), ("data",))
    placed = jax.NamedSharding(mesh, jax.P())

    def on_device(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
            tree,
        )

    layer = nnx.eval_shape(lambda: kind(shape[2], states, mode=mode, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(layer)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)[0]))

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1)))
        compiled = step.lower(*on_device((nnx.to_pure_dict(params), x))).compile()
    return compiled.cost_analysis()["bytes accessed"] / 1e6


def rows() -> None:
    """Prints the table."""
    channel_states.MOST_STATES["tpu"] = 2**40  # the count takes a loop for one turn
    print("| layer | (B, T, D) | convolution MB | recurrent MB | ms at 819 GB/s |")
    print("|---|---|---|---|---|", flush=True)
    for name, (kind, states) in FORMS.items():
        for shape in SHAPES:
            moved = [
                megabytes(kind, states, mode, shape)
                for mode in ("convolution", "recurrent")
            ]
            times = " / ".join(f"{1e9 * mb / BANDWIDTH:.2f}" for mb in moved)
            cells = [f"{mb:,.0f}" for mb in moved]
            print("|", " | ".join([name, str(shape), *cells, times]), "|", flush=True)


def main(*arguments: str) -> None:
    """Prints the table, in a process with the compiler's environment."""
    if arguments == ("rows",):
        return rows()
    subprocess.run(
        [sys.executable, "-m", "tests.aot.forms", "rows"],
        env=os.environ | ENVIRONMENT,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
