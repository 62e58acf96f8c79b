"""Families of models: what `config.model` holds for each, at any size.

    config = base.get_config(task=..., model=families.griffin(d_model=512, ...))

A function here names every argument of its family's mixer and block; those that one may
want to choose are arguments of its own.
"""

import math
from collections.abc import Mapping
from typing import Any

Model = dict[str, Any]


def lru(
    *,
    d_model: int,
    n_layers: int,
    d_state: int,
    r_min: float = 0.0,
    r_max: float = 0.999,
    bidirectional: bool = False,
    norm: str = "layer",
    final_norm: str = "none",
) -> Model:
    """LRU in residual blocks of S4 (2303.06349)."""
    mixer = {
        "name": "lru",
        "d_state": d_state,
        "r_min": r_min,  # ring on which the eigenvalues are drawn
        "r_max": r_max,
        "max_phase": math.tau,  # radians
        "bidirectional": bidirectional,
    }
    return _in_s4_blocks(d_model, n_layers, mixer, norm, final_norm)


def hawk(
    *,
    d_model: int,
    n_layers: int,
    lru_width: int,
    n_blocks: int,
    d_ff: int,
    bidirectional: bool = False,
) -> Model:
    """Hawk: a short convolution and an RG-LRU in every block (2402.19427)."""
    mixer = {
        "name": "hawk",
        "lru_width": lru_width,
        "n_blocks": n_blocks,  # of the gates
        "conv_width": 4,  # time steps
        "bidirectional": bidirectional,
    }
    return _gated(d_model, n_layers, mixer, d_ff)


def griffin(
    *,
    d_model: int,
    n_layers: int,
    lru_width: int,
    n_blocks: int,
    n_heads: int,
    window: int,
    d_ff: int,
    bidirectional: bool = False,
) -> Model:
    """Griffin: Hawk with local attention in every third block (2402.19427)."""
    mixer = {
        "name": "griffin",
        "lru_width": lru_width,
        "n_blocks": n_blocks,  # of the gates
        "conv_width": 4,  # time steps
        "n_heads": n_heads,
        "n_kv_heads": 1,
        "window": window,  # keys that a query sees, its own included
        "bidirectional": bidirectional,
    }
    return _gated(d_model, n_layers, mixer, d_ff)


def transformer(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    bidirectional: bool = False,
) -> Model:
    """A Transformer with rotary positions, in the blocks of Griffin."""
    mixer = {
        "name": "transformer",
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "positional": "rope",  # "rope" | "none"
        "bidirectional": bidirectional,
    }
    return _gated(d_model, n_layers, mixer, d_ff)


def hgrn(
    *,
    d_model: int,
    n_layers: int,
    d_ff: int,
    convention: str,
    activation: str,
    norm: str,
    bidirectional: bool = False,
    grid: bool = False,
) -> Model:
    """HGRN: a complex gated recurrence, bounded from below by the depth (2311.04823).

    Its code has "exclusive", "silu" and mostly batch norm for Long Range Arena, and
    "shifted", "identity" and layer norm for WikiText-103.
    """
    mixer = {
        "name": "hgrn",
        "convention": convention,  # "exclusive" | "shifted": of the bounds
        "bidirectional": bidirectional,
        "grid": grid,  # four scans over a square image, if bidirectional
    }
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "tied": True,
        "embedding_scale": math.sqrt(d_model),
        "final_norm": "layer_1e-5",
        "mixer": mixer,
        "block": _glu_block(norm, d_ff, activation, bias=True),
    }


def hgrn2(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    bidirectional: bool = False,
) -> Model:
    """HGRN2: the same with a matrix for each head as its state (2404.07904)."""
    mixer = {"name": "hgrn2", "n_heads": n_heads, "bidirectional": bidirectional}
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "head": "plain",
        "final_norm": "rms",
        "mixer": mixer,
        "block": _glu_block("rms", d_ff, "silu", bias=False),
    }


def transnormer(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    bidirectional: bool = False,
) -> Model:
    """TransNormerLLM: lightning attention in every block (2307.14995)."""
    mixer = {
        "name": "transnormer",
        "n_heads": n_heads,
        "turned": True,  # rotary positions in the lowest layer
        "bidirectional": bidirectional,
    }
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "tied": True,
        "embedding_scale": math.sqrt(d_model),
        "final_norm": "simple_rms",
        "mixer": mixer,
        "block": _glu_block("simple_rms", d_ff, "identity", bias=False),
    }


def minimax(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    head_dim: int,
    n_kv_heads: int,
    every: int,
    d_ff: int,
    n_experts: int,
    bidirectional: bool = False,
) -> Model:
    """MiniMax: lightning and softmax attention, and experts (2501.08313)."""
    mixer = {
        "name": "minimax",
        "n_heads": n_heads,
        "head_dim": head_dim,
        "n_kv_heads": n_kv_heads,  # of the softmax attention
        "every": every,  # of so many layers the last has softmax attention
        "rope_fraction": 0.5,  # of a head's channels
        "rope_theta": 1e7,
        "bidirectional": bidirectional,
    }
    block = {
        "name": "experts",
        "d_ff": d_ff,  # width inside an expert
        "n_experts": n_experts,
        "top_k": 2,  # experts of a token
        "balance_weight": 0.01,  # of the experts' auxiliary loss; 0: off
    }
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "head": "plain",
        "final_norm": "rms_1e-5",
        "mixer": mixer,
        "block": block,
    }


def lstm(
    *, d_model: int, n_layers: int, d_ff: int, bidirectional: bool = False
) -> Model:
    """LSTM (Hochreiter and Schmidhuber 1997), in the blocks of Griffin."""
    mixer = {
        "name": "lstm",
        "chrono": 0.0,  # longest memory at the start, in steps; 0: off
        "zoneout_h": 0.0,  # probability of keeping an output's old value
        "zoneout_c": 0.0,  # probability of keeping a cell's old value
        "bidirectional": bidirectional,
    }
    return _gated(d_model, n_layers, mixer, d_ff)


def gru(
    *, d_model: int, n_layers: int, d_ff: int, bidirectional: bool = False
) -> Model:
    """GRU (1406.1078), in the blocks of Griffin."""
    mixer = {
        "name": "gru",
        "chrono": 0.0,  # longest memory at the start, in steps; 0: off
        "zoneout_h": 0.0,  # probability of keeping an output's old value
        "bidirectional": bidirectional,
    }
    return _gated(d_model, n_layers, mixer, d_ff)


def linear_rnn(
    *,
    d_model: int,
    n_layers: int,
    d_state: int,
    radius: float = 1.0,
    bidirectional: bool = False,
    norm: str = "layer",
    final_norm: str = "none",
) -> Model:
    """Dense linear RNN, in residual blocks of S4: the baseline of LRU (2303.06349)."""
    mixer = {
        "name": "linear_rnn",
        "d_state": d_state,
        "radius": radius,  # of the disk of eigenvalues
        "bidirectional": bidirectional,
    }
    return _in_s4_blocks(d_model, n_layers, mixer, norm, final_norm)


def s4(
    *,
    d_model: int,
    n_layers: int,
    d_state: int,
    l_max: int,
    steps: tuple[float, float] = (1e-3, 1e-1),
    bidirectional: bool = False,
    norm: str = "layer",
    final_norm: str = "none",
) -> Model:
    """S4: HiPPO-LegS, diagonal plus low rank (2111.00396)."""
    mixer = {
        "name": "s4",
        "d_state": d_state,  # of a channel, both of each conjugate pair
        "l_max": l_max,  # the longest sequence
        "n_ssm": 1,  # channels take so many state matrices in turns
        **_step_sizes(steps),
        **_forms(bidirectional),
    }
    return _in_s4_blocks(d_model, n_layers, mixer, norm, final_norm)


def s4d(
    *,
    d_model: int,
    n_layers: int,
    d_state: int,
    init: str = "lin",
    steps: tuple[float, float] = (1e-3, 1e-1),
    bidirectional: bool = False,
    norm: str = "layer",
    final_norm: str = "none",
) -> Model:
    """S4D: a diagonal state space for each channel (2206.11893)."""
    mixer = {"name": "s4d"} | _diagonal(d_state, init, steps, bidirectional)
    return _in_s4_blocks(d_model, n_layers, mixer, norm, final_norm)


def liquid_s4(
    *,
    d_model: int,
    n_layers: int,
    d_state: int,
    liquid: str,
    order: int = 2,
    init: str = "lin",
    steps: tuple[float, float] = (1e-3, 1e-1),
    bidirectional: bool = False,
    norm: str = "layer",
    final_norm: str = "none",
) -> Model:
    """Liquid-S4: S4D to whose decay the input is added (2209.12951)."""
    mixer = {
        "name": "liquid_s4",
        "liquid": liquid,  # "exact" | "order" | "kb" | "pb" | "none"
        "order": order,  # most inputs in a product, for "order", "kb" and "pb"
        "window": 1,  # steps that "pb" sums products over; 0: all before
        "bound": "safe",  # "safe" | "tanh" | "none": of what is added, "exact", "order"
    } | _diagonal(d_state, init, steps, bidirectional)
    return _in_s4_blocks(d_model, n_layers, mixer, norm, final_norm)


def s5(
    *,
    d_model: int,
    n_layers: int,
    d_state: int,
    n_blocks: int = 1,
    steps: tuple[float, float] = (1e-3, 1e-1),
    bidirectional: bool = False,
    norm: str = "layer",
    final_norm: str = "none",
) -> Model:
    """S5: one diagonal state space for all channels (2208.04933)."""
    mixer = {
        "name": "s5",
        "d_state": d_state,  # both of each conjugate pair
        "n_blocks": n_blocks,  # of the first state matrix
        "discretization": "zoh",  # "zoh" | "bilinear"
        "c_init": "trunc_standard_normal",  # | "lecun_normal" | "complex_normal"
        "clip_eigenvalues": False,  # real parts at -1e-4
        **_step_sizes(steps),
        **_forms(bidirectional),
    }
    return _in_s4_blocks(d_model, n_layers, mixer, norm, final_norm)


def changed(
    model: Model,
    *,
    mixer: Mapping[str, Any] | None = None,
    block: Mapping[str, Any] | None = None,
    **values: Any,
) -> Model:
    """A model with other values, here or in its mixer or its block.

    Raises KeyError if a mixer or a block has no such argument.
    """
    new = model | values
    for part, changes in (("mixer", mixer or {}), ("block", block or {})):
        if unknown := set(changes) - set(model[part]):
            raise KeyError(f"{part} {model[part]['name']} has no {sorted(unknown)}")
        new[part] = model[part] | changes
    return new


def _diagonal(
    d_state: int, init: str, steps: tuple[float, float], bidirectional: bool
) -> dict[str, Any]:
    return {
        "d_state": d_state,  # of a channel, both of each conjugate pair
        "init": init,  # "lin" | "inv" | "legs" | "real": the first eigenvalues
        "discretization": "zoh",  # "zoh" | "bilinear"
        "n_ssm": 0,  # channels take so many state matrices in turns; 0: one for each
        **_step_sizes(steps),
        **_forms(bidirectional),
    }


def _step_sizes(steps: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("dt_min", "dt_max"), steps, strict=True))  # the first ones


def _forms(bidirectional: bool) -> dict[str, Any]:
    return {
        "bidirectional": bidirectional,
        "rate": 1.0,  # length of a step compared with those of training
        "mode": "",  # "convolution" | "recurrent"; "": the faster
    }


def _in_s4_blocks(
    d_model: int, n_layers: int, mixer: dict[str, Any], norm: str, final_norm: str
) -> Model:
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "final_norm": final_norm,
        "mixer": mixer,
        "block": {
            "name": "s4",
            "norm": norm,  # one of NORMS, experiments/families.py
            "prenorm": True,
            "glu": "full",  # "full" | "half" | "half2" | "none"
            "dropout": 0.0,  # probability of dropping
        },
    }


def _glu_block(norm: str, d_ff: int, activation: str, *, bias: bool) -> dict[str, Any]:
    return {
        "name": "glu",
        "norm": norm,  # one of NORMS, experiments/families.py
        "d_ff": d_ff,  # width inside the GLU
        "activation": activation,  # "silu" | "identity"
        "bias": bias,  # False: drawn with the deviation 0.02 of released models
        "dropout": 0.0,  # probability of dropping
    }


def _gated(d_model: int, n_layers: int, mixer: dict[str, Any], d_ff: int) -> Model:
    """A mixer in blocks of Griffin, with Griffin's norms and output map."""
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "tied": True,
        "final_norm": "gemma",
        "mixer": mixer,
        "block": {
            "name": "gated",
            "norm": "gemma",  # one of NORMS, experiments/families.py
            "d_ff": d_ff,  # width inside the MLP
            "dropout": 0.0,  # probability of dropping
        },
    }
