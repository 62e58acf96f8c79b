"""What each layer hands from one step of a sequence to the next, in bytes.

    python examples/carry_sizes.py [WIDTH]

Prints a table for one sequence and computation in bfloat16. Recurrent states are
float32 even so; keys and values are not. Only full attention's grows with what is read.
"""

import functools
import sys
from collections.abc import Callable

import jax
from flax import nnx

import ssm

HEADS, WINDOW = 16, 1024
MakeLayer = Callable[..., ssm.layers.SequenceLayer]


def layers(width: int) -> dict[str, MakeLayer]:
    """Every layer that has a carry, by what the table says of it."""
    local = functools.partial(ssm.LocalAttention, width, HEADS, window=WINDOW)
    makes: dict[str, MakeLayer] = {
        f"`LRU`, {width} complex states": functools.partial(ssm.LRU, width, width),
        "`RGLRU`": functools.partial(ssm.RGLRU, width, HEADS),
        "`S4`, `S4D`, `LiquidS4`, N 64": functools.partial(ssm.S4D, width, 64),
        f"`S5`, N {width}": functools.partial(
            ssm.S5, width, width, n_blocks=width // 64
        ),
        "`LSTM`": functools.partial(ssm.LSTM, width),
        "`GRU`": functools.partial(ssm.GRU, width),
        f"`LinearRNN`, N {width}": functools.partial(ssm.LinearRNN, width, width),
        "`CausalConv1D`, 4 steps": functools.partial(ssm.CausalConv1D, width, 4),
        "`HGRU`, complex": functools.partial(ssm.HGRU, width),
        "`HGRU`, real": functools.partial(ssm.HGRU, width, real=True),
        "`HGRN2`": functools.partial(ssm.HGRN2, width, HEADS),
        "`LightningAttention`": functools.partial(ssm.LightningAttention, width, HEADS),
        f"`LocalAttention`, window of {WINDOW}, one head of keys": local,
        f"`LocalAttention`, window of {WINDOW}": functools.partial(
            local, n_kv_heads=HEADS
        ),
        "`Attention`, for each step that it has room for": functools.partial(
            ssm.Attention, width, HEADS
        ),
    }
    return makes


def carry_bytes(make_layer: MakeLayer, steps: int) -> int:
    """How large the carry of one sequence is that has room for so many steps."""

    def init_carry() -> ssm.layers.base.Carry:
        layer = make_layer(dtype="bfloat16", rngs=nnx.Rngs(0))
        return layer.init_carry(1, max_length=steps)

    leaves = jax.tree.leaves(jax.eval_shape(init_carry))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def table(width: int) -> str:
    """The carry of every layer; of one that grows, what a step adds."""
    rows = [f"| layer, {width} wide, {HEADS} heads | bytes a sequence |", "|---|---|"]
    for name, make_layer in layers(width).items():
        one, two = (carry_bytes(make_layer, steps) for steps in (1, 2))
        rows.append(f"| {name} | {one if one == two else two - one:,} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else 2048))
