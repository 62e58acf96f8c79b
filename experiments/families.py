"""Families of models: from the names in a config to the blocks of a stack.

A mixer is what mixes time, a block what surrounds it. `configs/families.py` says what a
config holds for each, `experiments/builders.py` what they are called: a name stands for
a layer, to be had in every block, or for a function here of layers that take turns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ssm
from ssm.blocks import Glu, Norm, S4Block
from ssm.layers.attention import Positional
from ssm.models import griffin, transformer
from ssm.models.stack import MakeBlock, MakeLayer, Pattern


class Shared(NamedTuple):
    """What every mixer and block of a model has in common."""

    d_model: int
    n_layers: int
    dtype: str
    param_dtype: str
    implementation: str | None  # of the recurrences

    def types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def of_recurrence(self) -> dict[str, Any]:
        return self.types() | {"implementation": self.implementation}


def hawk_mixers(
    shared: Shared,
    *,
    lru_width: int,
    n_blocks: int,
    conv_width: int,
    bidirectional: bool,
) -> Sequence[MakeLayer]:
    """Return a recurrence for every block."""
    size = griffin.Size(
        shared.d_model,
        shared.n_layers,
        n_heads=1,  # Hawk has no attention
        lru_width=lru_width,
        n_blocks=n_blocks,
    )
    mixers = griffin.hawk_mixers(size, conv_width=conv_width, **shared.of_recurrence())
    return _both_ways(mixers) if bidirectional else mixers


def griffin_mixers(
    shared: Shared,
    *,
    lru_width: int,
    n_blocks: int,
    conv_width: int,
    n_heads: int,
    n_kv_heads: int,
    window: int,
    bidirectional: bool,
) -> Sequence[MakeLayer]:
    """Return two recurrences and a local attention."""
    size = griffin.Size(
        shared.d_model,
        shared.n_layers,
        n_heads,
        lru_width=lru_width,
        n_kv_heads=n_kv_heads,
        n_blocks=n_blocks,
    )
    mixers = griffin.griffin_mixers(
        size, window=window, conv_width=conv_width, **shared.of_recurrence()
    )
    return _both_ways(mixers) if bidirectional else mixers


def transformer_mixers(
    shared: Shared,
    *,
    n_heads: int,
    n_kv_heads: int,
    positional: Positional,
    bidirectional: bool,
) -> Sequence[MakeLayer]:
    """Return an attention for every block."""
    size = transformer.Size(shared.d_model, shared.n_layers, n_heads, n_kv_heads)
    return transformer.transformer_mixers(
        size, positional=positional, causal=not bidirectional, **shared.types()
    )


def s4_blocks(
    mixers: Sequence[MakeLayer],
    shared: Shared,
    *,
    norm: Norm,
    prenorm: bool,
    glu: Glu,
    dropout: float,
) -> Pattern:
    """Return residual blocks with a gate over channels."""

    def around(make_mixer: MakeLayer) -> MakeBlock:
        return lambda rngs: S4Block(
            make_mixer(rngs),
            shared.d_model,
            norm=norm,
            prenorm=prenorm,
            glu=glu,
            dropout=dropout,
            rngs=rngs,
            **shared.types(),
        )

    return [around(make_mixer) for make_mixer in mixers]


def gated_blocks(
    mixers: Sequence[MakeLayer],
    shared: Shared,
    *,
    norm: Norm,
    d_ff: int,
    dropout: float,
) -> Pattern:
    """Return residual blocks with a gated MLP."""
    return griffin.gated_blocks(
        mixers,
        shared.d_model,
        shared.n_layers,
        norm=norm,
        d_ff=d_ff,
        dropout=dropout,
        **shared.types(),
    )


def _both_ways(mixers: Sequence[MakeLayer]) -> Sequence[MakeLayer]:
    """Return each as the sum of two of them, one run backwards."""

    def around(make: MakeLayer) -> MakeLayer:
        return lambda rngs: ssm.Bidirectional(make(rngs), make(rngs))

    return [around(make) for make in mixers]
