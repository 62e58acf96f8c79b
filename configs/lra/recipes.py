"""What the configs of Long Range Arena share: recipes, and models of like sizes.

A recipe is a model and its training. Each task names those that were published for it;
the other families have models of the size of the LRU's, and its number of steps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base, families
from configs.families import Model


class Recipe(NamedTuple):
    """A model, and how it is trained: AdamW, a linear warm-up, a cosine to zero.

    Attributes:
      model: keys of `config.model`.
      batch_size: examples a step.
      steps: of training.
      learning_rate: at its peak.
      recurrence_rate: that of the parameters of recurrences, at its peak.
      weight_decay: of all parameters but those.
      warmup_steps: of the steps, the first ones.
      wave_steps: where the cosine ends and rises again; 0: with the last step.
      regroup: see `config.optimizer`.
    """

    model: Model
    batch_size: int
    steps: int
    learning_rate: float
    recurrence_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 0
    wave_steps: int = 0
    regroup: str = ""


def configure(
    recipe: Recipe,
    *,
    task: Mapping[str, Any],
    epoch_rows: int,
    data: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """Return the config of a recipe; it is evaluated once in `epoch_rows` examples."""
    config = base.get_config(task=task, model=recipe.model, data=data)
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.recurrence_factor = recipe.recurrence_rate / recipe.learning_rate
    config.optimizer.weight_decay = recipe.weight_decay
    config.optimizer.warmup_fraction = recipe.warmup_steps / recipe.steps
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.regroup = recipe.regroup
    if recipe.wave_steps:
        config.optimizer.schedule = "waves"
        config.optimizer.wave_steps = recipe.wave_steps
    config.train.steps = recipe.steps
    config.train.batch_size = recipe.batch_size
    config.evaluate.every_steps = min(epoch_rows // recipe.batch_size, recipe.steps)
    config.checkpoint.every_steps = min(1_000, recipe.steps)
    return config


def epochs(count: int, rows: int, batch_size: int) -> int:
    """Return how many steps so many epochs take, whose last batch is not full."""
    return count * -(-rows // batch_size)


def lru(
    model: Model,
    *,
    factor: float,
    steps: int,
    batch_size: int,
    dropout: float = 0.0,
    glu: str = "full",
) -> Recipe:
    """LRU, as in tables 8 and 9 of Orvieto et al. 2023 (2303.06349).

    They give the rate of the recurrence as a factor of the others', which they do not
    give; here it is 1e-3.
    """
    return Recipe(
        families.changed(model, block={"dropout": dropout, "glu": glu}),
        batch_size=batch_size,
        steps=steps,
        learning_rate=1e-3 / factor,
        recurrence_rate=1e-3,
        warmup_steps=steps // 10,
    )


def s5(
    *,
    n_layers: int,
    d_model: int,
    d_state: int,
    n_blocks: int,
    c_init: str,
    glu: str,
    rate: float,
    factor: float,
    weight_decay: float,
    dropout: float,
    batch_size: int,
    n_epochs: int,
    rows: int,
    warmup_epochs: int = 1,
    momentum: str = "0.95",
    dt_min: float = 1e-3,
    clip_eigenvalues: bool = False,
    regroup: str = "",
) -> Recipe:
    """S5, as in the scripts of its code (2208.04933): both ways, batch norm.

    `rate` is that of the recurrence, and `factor` times it that of the others.
    """
    model = families.s5(
        d_model=d_model,
        n_layers=n_layers,
        d_state=d_state,
        n_blocks=n_blocks,
        steps=(dt_min, 0.1),
        bidirectional=True,
        norm=f"batch_{momentum}",
    )
    return Recipe(
        families.changed(
            model,
            mixer={"c_init": c_init, "clip_eigenvalues": clip_eigenvalues},
            block={"glu": glu, "dropout": dropout},
        ),
        batch_size=batch_size,
        steps=epochs(n_epochs, rows, batch_size),
        learning_rate=factor * rate,
        recurrence_rate=rate,
        weight_decay=weight_decay,
        warmup_steps=epochs(warmup_epochs, rows, batch_size),
        regroup=regroup,
    )


def s4(
    model: Model,
    *,
    learning_rate: float,
    batch_size: int,
    n_epochs: int,
    rows: int,
    cosine_steps: int,
    warmup_steps: int,
    recurrence_rate: float = 1e-3,
    weight_decay: float = 0.05,
    dropout: float = 0.0,
    prenorm: bool = True,
    slow_steps: bool = False,
    pooling: str = "mean",
) -> Recipe:
    """A layer of the S4 family, as in the experiment files of its code.

    Their cosine has a number of steps of its own, and rises again where training goes
    on. With `slow_steps` dt has the rate of the recurrence, otherwise that of the
    others, undecayed.
    """
    steps = epochs(n_epochs, rows, batch_size)
    block = {"dropout": dropout, "prenorm": prenorm}
    return Recipe(
        families.changed(model, block=block, pooling=pooling),
        batch_size=batch_size,
        steps=steps,
        learning_rate=learning_rate,
        recurrence_rate=recurrence_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        wave_steps=cosine_steps,
        regroup="" if slow_steps else "log_dt=undecayed",
    )


def hgrn(
    *,
    d_model: int,
    n_layers: int,
    d_ff: int,
    learning_rate: float,
    batch_size: int,
    steps: int,
    warmup_steps: int,
    weight_decay: float = 0.0,
    dropout: float = 0.0,
    grid: bool = False,
) -> Recipe:
    """HGRN, as in its authors' launch script (2311.04823), which says more than files.

    Bounds and phases have the rate of all, but no decay. Tokens have no sinusoidal
    positions here, and no dropout of 0.1 on them; padding is neither read nor pooled.
    """
    model = families.hgrn(
        d_model=d_model,
        n_layers=n_layers,
        d_ff=d_ff,
        convention="exclusive",
        activation="silu",
        norm="batch_0.9",
        bidirectional=True,
        grid=grid,
    )
    return Recipe(
        families.changed(model, block={"dropout": dropout}),
        batch_size=batch_size,
        steps=steps,
        learning_rate=learning_rate,
        recurrence_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
    )


def of_like_size(
    *,
    width: int,
    d_ff: int,
    steps: int,
    batch_size: int,
    window: int = 257,
    bidirectional: bool = False,
) -> dict[str, Recipe]:
    """Return the families without published settings, at a width of the task's.

    Attention of `transformer` is over everything both ways; the others look back only,
    or with `bidirectional` both ways, by a second mixer that runs backwards in every
    block; `transformer` then has MLPs twice as wide instead.
    """
    sizes: dict[str, Any] = {"d_model": width, "n_layers": 6}
    gates: dict[str, Any] = {"lru_width": width, "n_blocks": 4}
    ways: dict[str, Any] = {"bidirectional": bidirectional}
    attention: dict[str, Any] = {"n_heads": 4, "window": window}
    models = {
        "hawk": families.hawk(**sizes, **gates, d_ff=d_ff, **ways),
        "griffin": families.griffin(**sizes, **gates, **attention, d_ff=d_ff, **ways),
        "hgrn2": families.hgrn2(**sizes, n_heads=4, d_ff=d_ff, **ways),
        "transnormer": families.transnormer(
            **sizes, n_heads=4, d_ff=d_ff * 13 // 16, **ways
        ),
        "transformer": families.transformer(
            **sizes,
            n_heads=4,
            d_ff=2 * d_ff if bidirectional else d_ff,
            bidirectional=True,
        ),
    }
    return {
        family: Recipe(
            model,
            batch_size=batch_size,
            steps=steps,
            learning_rate=1e-3,
            recurrence_rate=5e-4,
            warmup_steps=steps // 10,
        )
        for family, model in models.items()
    }


def liquid_s4(
    *,
    n_layers: int,
    d_model: int,
    d_state: int,
    order: int,
    norm: str,
    dt_range: tuple[float, float],
    bidirectional: bool = False,
    **training: Any,
) -> dict[str, Recipe]:
    """Return Liquid-S4 with its PB kernel, as published, its KB kernel, and exactly.

    Sizes are those of table S1 of the paper (2209.12951), direction, steps dt and rates
    those of the experiment files of its code, whose computed model is another one: see
    `ssm.layers.LiquidS4Released`. `training` is that of `s4`.
    """

    def recipe(liquid: str) -> Recipe:
        model = families.liquid_s4(
            d_model=d_model,
            n_layers=n_layers,
            d_state=d_state,
            liquid=liquid,
            order=order,
            init="legs",
            steps=dt_range,
            bidirectional=bidirectional,
            norm=norm,
        )
        return s4(model, **training)

    kinds = {"liquid_s4": "exact", "liquid_s4_kb": "kb", "liquid_s4_pb": "pb"}
    return {family: recipe(liquid) for family, liquid in kinds.items()}
