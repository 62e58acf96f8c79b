"""Lightning attention beside softmax attention: the time of a token, by length.

Forward and causal, float32; the softmax is `jax.nn.dot_product_attention`.
"""

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

Seconds = dict[str, float]


def measure(length: int, repeats: int = 9) -> Seconds:
    """Check lightning attention at a length, then time it and softmax attention."""
    case = lightning_case((BATCH, length, HEADS, WIDTH), "float32", quadratic=False)
    lightning = jax.jit(case.ours)
    timed: dict[str, Callable[[], Any]] = {
        "lightning": lambda: lightning(*case.arguments)
    }
    truth = jax.jit(case.truth)(*case.arguments)
    check_close("lightning", timed["lightning"](), truth, TOLERANCES["float32"])
    if length <= LONGEST_SOFTMAX:
        softmax = jax.jit(
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
        )
        timed["softmax"] = lambda: softmax(*case.arguments)
    return interleaved(timed, repeats)


def crossover(measured: Mapping[int, Seconds]) -> str:
    """Return from where on lightning attention is the faster one."""
    both = {length: of for length, of in measured.items() if "softmax" in of}
    slower = [n for n, of in both.items() if of["lightning"] > of["softmax"]]
    faster = [n for n in both if not slower or n > max(slower)]
    if not faster:
        return f"Lightning attention is not the faster one up to {max(both)} steps."
    return f"Lightning attention is the faster one from {min(faster)} steps on."


def draw(measured: Mapping[int, Seconds], path: Path) -> None:
    """Draw the time of a token over the length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in ("softmax", "lightning"):
        lengths = [length for length, of in measured.items() if name in of]
        micros = [1e6 * measured[n][name] / (BATCH * n) for n in lengths]
        axes.loglog(lengths, micros, marker="o", base=2, label=f"{name} attention")
    axes.set(
        xlabel="steps",
        ylabel="microseconds a token",
        title=f"forward, {HEADS} heads of {WIDTH}, batch {BATCH}, float32",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(out: Path, lengths: Sequence[int] = LENGTHS) -> str:
    """Return the table, and draw it in a file beside the results."""
    measured = {length: measure(length) for length in lengths}
    picture = out / f"linear_attention-{jax.default_backend()}.png"
    draw(measured, picture)
    rows = [
        [
            str(length),
            *(
                f"{1e6 * of[name] / (BATCH * length):.2f}" if name in of else ""
                for name in ("lightning", "softmax")
            ),
        ]
        for length, of in measured.items()
    ]
    tokens = [of["lightning"] / n for n, of in measured.items() if n >= FLAT_FROM]
    spread = at_most(100 * (max(tokens) / min(tokens) - 1), 25, "%") if tokens else "-"
    header = ["steps", "lightning, us a token", "softmax, us a token"]
    return (
        f"Forward, causal, (B, T, H, K) = ({BATCH}, T, {HEADS}, {WIDTH}), float32. "
        f"{crossover(measured)}\nIts slowest token over its fastest from {FLAT_FROM} "
        f"steps on: {spread} more.\n\n{table(header, rows)}\n\n"
        f"![the same as a picture]({picture.name})"
    )
