"""A run of the fake task: 40 steps of 16 rows, validated every 10."""

from configs import base


def get_config(variant="plain"):
    _, modifiers = base.parse_variant(variant, ("plain",), ("dropout", "ema"))
    config = base.get_config(
        task={
            "name": "fake",
            "validation_size": 37,
            "poison_step": -1,
            "delay": 0.0,
        },
        model={
            "d_model": 8,
            "mixer": {"name": "none"},
            "block": {"norm": "layer", "dropout": 0.0},
        },
    )
    config.optimizer.learning_rate = 0.03
    config.train.steps = 40
    config.train.batch_size = 16
    config.evaluate.every_steps = 10
    config.evaluate.batch_size = 16
    config.checkpoint.every_steps = 4
    config.log.every_steps = 3
    if "dropout" in modifiers:
        config.model.block.dropout = 0.2
    if "ema" in modifiers:
        config.optimizer.ema_decay = 0.9
    return config
