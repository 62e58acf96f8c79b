"""Small models of every family, 66 to 94 thousand parameters, for two CPU cores.

All look both ways: `transformer` by itself, `lru`, the state spaces and `hgrn` by a
second scan, the others by a second mixer that runs backwards in every block.
"""

import functools
from typing import Any

from configs import families
from configs.families import Model
from configs.lra.recipes import Recipe


def recipes(
    *,
    l_max: int,
    steps: int,
    batch_size: int,
    learning_rate: float = 4e-3,
    ring: tuple[float, float] = (0.0, 0.99),
    grid: bool = False,
) -> dict[str, Recipe]:
    """Return the recipe of each family; they differ in their models alone.

    Args:
      l_max: the longest sequence.
      steps, batch_size, learning_rate: see `Recipe`; recurrences have a quarter of it.
      ring: where the LRU draws its eigenvalues.
      grid: whether sequences are square images.
    """
    return {
        family: Recipe(
            model,
            batch_size=batch_size,
            steps=steps,
            learning_rate=learning_rate,
            recurrence_rate=learning_rate / 4,
            warmup_steps=steps // 10,
        )
        for family, model in _models(l_max, ring, grid).items()
    }


def _models(l_max: int, ring: tuple[float, float], grid: bool) -> dict[str, Model]:
    sizes: dict[str, Any] = {"d_model": 64, "n_layers": 2}
    ways: dict[str, Any] = {"bidirectional": True}
    liquid = functools.partial(
        families.liquid_s4, d_model=116, n_layers=2, d_state=8, order=3, **ways
    )
    r_min, r_max = ring
    return {
        "lru": families.lru(**sizes, d_state=64, r_min=r_min, r_max=r_max, **ways),
        "hawk": families.hawk(**sizes, lru_width=64, n_blocks=4, d_ff=64, **ways),
        "griffin": families.griffin(
            d_model=64,
            n_layers=3,
            lru_width=32,
            n_blocks=4,
            n_heads=4,
            window=33,
            d_ff=64,
            **ways,
        ),
        "transformer": families.transformer(**sizes, n_heads=4, d_ff=128, **ways),
        "hgrn": families.hgrn(
            **sizes,
            d_ff=64,
            convention="exclusive",
            activation="silu",
            norm="batch_0.9",
            grid=grid,
            **ways,
        ),
        "hgrn2": families.hgrn2(**sizes, n_heads=4, d_ff=32, **ways),
        "transnormer": families.transnormer(**sizes, n_heads=4, d_ff=16, **ways),
        "minimax": families.minimax(
            **sizes,
            n_heads=4,
            head_dim=16,
            n_kv_heads=1,
            every=2,
            d_ff=16,
            n_experts=4,
            **ways,
        ),
        "lstm": families.lstm(d_model=44, n_layers=2, d_ff=64, **ways),
        "gru": families.gru(d_model=48, n_layers=2, d_ff=96, **ways),
        "linear_rnn": families.linear_rnn(**sizes, d_state=64, radius=0.9, **ways),
        "s4": families.s4(d_model=120, n_layers=2, d_state=32, l_max=l_max, **ways),
        "s4d": families.s4d(d_model=108, n_layers=2, d_state=32, **ways),
        "s5": families.s5(**sizes, d_state=128, **ways),
        "liquid_s4": liquid(liquid="exact"),
        "liquid_s4_kb": liquid(liquid="kb"),
        "liquid_s4_pb": liquid(liquid="pb"),
    }
