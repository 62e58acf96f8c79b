"""Families of models: what `config.model` holds for each, at any size.

    config = base.get_config(task=..., model=families.griffin(d_model=512, ...))

A function here names every argument of its family's mixer and block; those that one may
want to choose are arguments of its own.
"""

import math
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
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "final_norm": final_norm,
        "mixer": mixer,
        "block": _s4_block(norm),
    }


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


def _s4_block(norm: str) -> dict[str, Any]:
    return {
        "name": "s4",
        "norm": norm,  # "layer" | "batch" | "rms" | "gemma"
        "prenorm": True,
        "glu": "full",  # "full" | "half" | "none"
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
            "norm": "gemma",  # "gemma" | "layer" | "batch" | "rms"
            "d_ff": d_ff,  # width inside the MLP
            "dropout": 0.0,  # probability of dropping
        },
    }
