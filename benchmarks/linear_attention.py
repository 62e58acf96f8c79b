"""Lightning attention beside softmax attention: the time of a token, by length.

Forward and causal, float32; the softmax is `jax.nn.dot_product_attention`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.harness import at_most, check_close, interleaved, table
from benchmarks.ops import TOLERANCES, lightning_case

BATCH, HEADS, WIDTH = 2, 4, 64
LENGTHS = tuple(2**n for n in range(8, 17))
LONGEST_SOFTMAX = 2**13  # its weights fill 2 GB there
FLAT_FROM = 2**12

Seconds = dict[int, float]  # at each length
Timed = Callable[[], Any]


def lightning_at(length: int) -> Timed:
    """Check lightning attention at a length and return what is timed."""
    case = lightning_case((BATCH, length, HEADS, WIDTH), "float32", quadratic=False)
    lightning = jax.jit(case.ours)
    truth = jax.jit(case.truth)(*case.arguments)
    check_close("lightning", lightning(*case.arguments), truth, TOLERANCES["float32"])
    return lambda: lightning(*case.arguments)


def softmax_at(length: int) -> Timed:
    """Return JAX's attention at a length, on the same arrays."""
    case = lightning_case((BATCH, length, HEADS, WIDTH), "float32", quadratic=False)
    softmax = jax.jit(functools.partial(jax.nn.dot_product_attention, is_causal=True))
    return lambda: softmax(*case.arguments)


def measure(
    at: Callable[[int], Timed], lengths: Sequence[int], repeats: int = 9
) -> Seconds:
    """Time one kind of attention at all lengths, in turns.

    The two kinds apart: one moves so much memory that the other would feel it.
    """
    seconds = interleaved({str(n): at(n) for n in lengths}, repeats)
    return {n: seconds[str(n)] for n in lengths}


def crossover(lightning: Seconds, softmax: Seconds) -> str:
    """Return from where on lightning attention is the faster one."""
    slower = [n for n in softmax if lightning[n] > softmax[n]]
    faster = [n for n in softmax if not slower or n > max(slower)]
    if not faster:
        return f"Lightning attention is not the faster one up to {max(softmax)} steps."
    return f"Lightning attention is the faster one from {min(faster)} steps on."


def draw(measured: Mapping[str, Seconds], path: Path) -> None:
    """Draw the time of a token over the length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, seconds in measured.items():
        micros = [1e6 * of / (BATCH * n) for n, of in seconds.items()]
        axes.loglog(list(seconds), micros, marker="o", base=2, label=name)
    axes.set(
        xlabel="steps",
        ylabel="microseconds a token",
        title=f"causal attention, {HEADS} heads of {WIDTH}, batch {BATCH}, float32",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(out: Path, lengths: Sequence[int] = LENGTHS) -> str:
    """Return the table, and draw it in a file beside the results."""
    lightning = measure(lightning_at, lengths)
    softmax = measure(softmax_at, [n for n in lengths if n <= LONGEST_SOFTMAX])
    picture = out / f"linear_attention-{jax.default_backend()}.png"
    draw({"softmax": softmax, "lightning": lightning}, picture)
    rows = [
        [
            str(n),
            *(
                f"{1e6 * of[n] / (BATCH * n):.2f}" if n in of else ""
                for of in (lightning, softmax)
            ),
        ]
        for n in lengths
    ]
    tokens = [of / n for n, of in lightning.items() if n >= FLAT_FROM]
    spread = at_most(100 * (max(tokens) / min(tokens) - 1), 25, "%") if tokens else "-"
    header = ["steps", "lightning, us a token", "softmax, us a token"]
    return (
        f"Forward, causal, (B, T, H, K) = ({BATCH}, T, {HEADS}, {WIDTH}), float32. "
        f"{crossover(lightning, softmax)}\nIts slowest token over its fastest from "
        f"{FLAT_FROM} steps on: {spread} more.\n\n{table(header, rows)}\n\n"
        f"![the same as a picture]({picture.name})"
    )
