"""Families of models: from the names in a config to the blocks of a stack.

A mixer is what mixes time, a block what surrounds it. `configs/families.py` says what a
config holds for each, `experiments/builders.py` what they are called: a name stands for
a layer, to be had in every block, or for a function here of layers that take turns,
which may be coupled: the blocks around them then are as well.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from flax import nnx

import ssm
from ssm.blocks import Glu, Norm, S4Block
from ssm.layers.attention import Positional
from ssm.layers.base import SequenceLayer
from ssm.layers.hgru import LayerNorm
from ssm.layers.lightning_attention import SimpleRMSNorm
from ssm.layers.lower_bounds import Convention
from ssm.models import griffin, hgrn, minimax, transformer, transnormer
from ssm.models.around import around_each
from ssm.models.stack import MakeBlock, MakeLayer, Pattern

NORMS: dict[str, Norm] = {
    "batch": "batch",
    "batch_0.9": functools.partial(nnx.BatchNorm, momentum=0.9),
    "batch_0.95": functools.partial(nnx.BatchNorm, momentum=0.95),
    "gemma": "gemma",
    "layer": "layer",
    "layer_1e-5": LayerNorm,
    "rms": "rms",
    "rms_1e-5": minimax.RMSNorm,
    "simple_rms": SimpleRMSNorm,
}
"""Norms by their names in a config.

The number after "batch_" is the momentum of its statistics, 0.99 without one, and its
epsilon 1e-5; that after the others their epsilon, 1e-6 without one.
"""

T = TypeVar("T")

ACTIVATIONS = {"identity": nnx.identity, "silu": nnx.silu}


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
) -> Pattern:
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
) -> Pattern:
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
) -> Pattern:
    """Return an attention for every block."""
    size = transformer.Size(shared.d_model, shared.n_layers, n_heads, n_kv_heads)
    return transformer.transformer_mixers(
        size, positional=positional, causal=not bidirectional, **shared.types()
    )


def hgrn_mixers(
    shared: Shared, *, convention: Convention, bidirectional: bool, grid: bool
) -> Pattern:
    """Return a complex HGRU for every block, with the bounds of all."""
    return hgrn.hgrn_mixers(
        shared.d_model,
        convention=convention,
        bidirectional=bidirectional,
        grid=grid,
        **shared.of_recurrence(),
    )


def hgrn2_mixers(shared: Shared, *, n_heads: int, bidirectional: bool) -> Pattern:
    """Return an HGRN2 for every block, with the bounds of all."""
    mixers = hgrn.hgrn2_mixers(shared.d_model, n_heads, **shared.of_recurrence())
    return _both_ways(mixers) if bidirectional else mixers


def transnormer_mixers(
    shared: Shared, *, n_heads: int, turned: bool, bidirectional: bool
) -> Pattern:
    """Return a lightning attention for every block, with the slopes of all."""
    mixers = transnormer.transnormer_mixers(
        shared.d_model,
        shared.n_layers,
        n_heads,
        turned=turned,
        **shared.of_recurrence(),
    )
    return _both_ways(mixers) if bidirectional else mixers


def minimax_mixers(
    shared: Shared,
    *,
    n_heads: int,
    head_dim: int,
    n_kv_heads: int,
    every: int,
    rope_fraction: float,
    rope_theta: float,
    bidirectional: bool,
) -> Pattern:
    """Return lightning attentions and a softmax attention, with the slopes of all."""
    mixers = minimax.minimax_mixers(
        shared.d_model,
        n_heads,
        head_dim=head_dim,
        n_kv_heads=n_kv_heads,
        every=every,
        rope_fraction=rope_fraction,
        rope_theta=rope_theta,
        **shared.of_recurrence(),
    )
    return _both_ways(mixers) if bidirectional else mixers


def lstm_mixers(
    shared: Shared,
    *,
    chrono: float,
    zoneout_h: float,
    zoneout_c: float,
    bidirectional: bool,
) -> Pattern:
    """Return an LSTM for every block."""
    make = functools.partial(
        ssm.LSTM,
        shared.d_model,
        chrono=chrono or None,
        zoneout_h=zoneout_h,
        zoneout_c=zoneout_c,
        **shared.types(),
    )
    return _everywhere(make, bidirectional)


def gru_mixers(
    shared: Shared, *, chrono: float, zoneout_h: float, bidirectional: bool
) -> Pattern:
    """Return a GRU for every block."""
    make = functools.partial(
        ssm.GRU,
        shared.d_model,
        chrono=chrono or None,
        zoneout_h=zoneout_h,
        **shared.types(),
    )
    return _everywhere(make, bidirectional)


def linear_rnn_mixers(
    shared: Shared, *, d_state: int, radius: float, bidirectional: bool
) -> Pattern:
    """Return a dense linear RNN for every block."""
    make = functools.partial(
        ssm.LinearRNN, shared.d_model, d_state, radius=radius, **shared.types()
    )
    return _everywhere(make, bidirectional)


def s4_blocks(
    mixers: Pattern,
    shared: Shared,
    *,
    norm: str,
    prenorm: bool,
    glu: Glu,
    dropout: float,
) -> Pattern:
    """Return residual blocks with a gate over channels."""

    def around(make_mixer: MakeLayer) -> MakeBlock:
        return lambda rngs: S4Block(
            make_mixer(rngs),
            shared.d_model,
            norm=named("norm", norm, NORMS),
            prenorm=prenorm,
            glu=glu,
            dropout=dropout,
            rngs=rngs,
            **shared.types(),
        )

    return around_each(mixers, around)


def gated_blocks(
    mixers: Pattern,
    shared: Shared,
    *,
    norm: str,
    d_ff: int,
    dropout: float,
) -> Pattern:
    """Return residual blocks with Griffin's gated MLP."""
    return griffin.gated_blocks(
        mixers,
        shared.d_model,
        shared.n_layers,
        norm=named("norm", norm, NORMS),
        d_ff=d_ff,
        dropout=dropout,
        **shared.types(),
    )


def glu_blocks(
    mixers: Pattern,
    shared: Shared,
    *,
    norm: str,
    d_ff: int,
    activation: str,
    bias: bool,
    dropout: float,
) -> Pattern:
    """Return residual blocks with the GLU of HGRN, HGRN2 and TransNormerLLM."""
    return hgrn.glu_blocks(
        mixers,
        shared.d_model,
        d_ff,
        activation=named("activation", activation, ACTIVATIONS),
        bias=bias,
        norm=named("norm", norm, NORMS),
        dropout=dropout,
        **shared.types(),
    )


def expert_blocks(
    mixers: Pattern,
    shared: Shared,
    *,
    d_ff: int,
    n_experts: int,
    top_k: int,
    balance_weight: float,
) -> Pattern:
    """Return MiniMax's residual blocks with experts."""
    return minimax.expert_blocks(
        mixers,
        shared.d_model,
        d_ff,
        n_experts=n_experts,
        top_k=top_k,
        alpha=(2 * shared.n_layers) ** 0.25,
        balance_weight=balance_weight,
        **shared.types(),
    )


def named(key: str, name: str, known: Mapping[str, T]) -> T:
    """Return what a config calls so.

    Raises:
      ValueError: it is not known.
    """
    if name not in known:
        raise ValueError(f"{key}={name!r} is not one of: {', '.join(sorted(known))}")
    return known[name]


def _everywhere(make: Callable[..., SequenceLayer], bidirectional: bool) -> Pattern:
    """Return the layer that `make(rngs=)` builds, for every block."""
    mixers: Pattern = [lambda rngs: make(rngs=rngs)]
    return _both_ways(mixers) if bidirectional else mixers


def _both_ways(mixers: Pattern) -> Pattern:
    """Return each as the sum of two of them, one run backwards."""

    def around(make: MakeLayer) -> MakeLayer:
        return lambda rngs: ssm.Bidirectional(make(rngs), make(rngs))

    return around_each(mixers, around)
