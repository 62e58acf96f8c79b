"""A training step of a small Griffin, beside the plain scan and beside no scan at all.

The model is that of `configs/lm/bytes.py:griffin,tiny`.
"""

from typing import Any
from unittest import mock

import jax
from flax import nnx

from benchmarks.harness import at_least, check_close, interleaved, table
from benchmarks.train_step import Contender, stepper
from ssm import LanguageModel
from ssm.models import griffin

SIZE = griffin.Size(128, 3, 4, lru_width=128, d_ff=256)
VOCABULARY, WINDOW = 257, 128
BATCH, LENGTH = 8, 512  # of a training step
# Sums over BATCH * LENGTH rows in another order: 4096 * 6e-8 at the very worst.
TOLERANCE = 3e-4


def make(implementation: str | None = None) -> LanguageModel:
    """Return the model, the same for every implementation."""
    return griffin.griffin(
        SIZE,
        vocab_size=VOCABULARY,
        window=WINDOW,
        implementation=implementation,
        rngs=nnx.Rngs(0),
    )


def tokens_of(batch: int, length: int) -> jax.Array:
    """Return random tokens (B, T)."""
    return jax.random.randint(jax.random.key(0), (batch, length), 0, VOCABULARY)


def without_scan(
    x: jax.Array, r: jax.Array, i: jax.Array, a_param: jax.Array, **_: Any
) -> tuple[jax.Array, jax.Array]:
    """Take the arguments of `rg_lru_scan` and hardly any time."""
    out = x + r * i + a_param[None, None]
    return out, out[:, -1]


def run(batch: int = BATCH, length: int = LENGTH, repeats: int = 9) -> str:
    """Return the table of a step of AdamW."""
    tokens = tokens_of(batch, length + 1)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]

    def contender(implementation: str | None) -> Contender:
        graphdef, params = nnx.split(make(implementation))

        def apply(params: Any, tokens: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(tokens)[0]

        return Contender(nnx.to_pure_dict(params), inputs, apply)

    models = {"ours": contender(None), "associative_scan": contender("associative")}
    got, wanted = (
        jax.jit(jax.grad(model.loss))(model.params, inputs, labels)
        for model in models.values()
    )
    check_close("gradient", got, wanted, TOLERANCE)
    steps = {name: stepper(model, labels) for name, model in models.items()}
    steps["without a scan"] = stepper(contender(None), labels)
    with mock.patch("ssm.ops.rg_lru_scan", without_scan):
        steps["without a scan"]()
    seconds = interleaved(steps, repeats)
    ratio = seconds["associative_scan"] / seconds["ours"]
    most = seconds["associative_scan"] / seconds["without a scan"]
    rows = [[name, f"{1e3 * value:.0f}"] for name, value in seconds.items()]
    return (
        f"Griffin of {SIZE.n_layers} layers, d_model {SIZE.d_model}, window {WINDOW}, "
        f"float32; {batch} x {length} tokens, AdamW.\n\n{table(['scan', 'ms'], rows)}"
        f"\n\nTimes faster than on associative_scan: {at_least(ratio, 1.5)}. With a "
        f"scan that takes no time it would be {most:.1f}x."
    )
