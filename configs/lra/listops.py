"""ListOps of Long Range Arena: ten classes, 500 to 2,000 tokens.

    python -m experiments.main --config=configs/lra/listops.py:lru --workdir=DIR
    python -m experiments.main --config=configs/lra/listops.py:lru,tiny --workdir=DIR

The rows are drawn anew ("regenerated"). With `--config.data.source=FOLDER` those of the
archive's files are read; `--mode=prepare --config.task.write_tsv=FOLDER` writes such
files.

`lru`: the hyper-parameters of Orvieto et al. 2023 (2303.06349), tables 8 and 9, who
report 60.2 % test accuracy. They do not give the learning rate; ours is a choice.
`tiny`: 10 to 128 tokens, a smaller bidirectional model, minutes on two cores. It is a
stand-in, not to be compared with any published number. Measured: 0.480 test accuracy
(seed 0) in two minutes on two CPU cores. `lru` itself was not trained to its end.
"""

import math

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "lru") -> ConfigDict:
    """Return the config of a variant: `lru`, or `lru,tiny`."""
    _, modifiers = base.parse_variant(variant, families=("lru",), modifiers=("tiny",))
    config = base.get_config(
        task={
            "name": "listops",
            "train_size": 96_000,
            "validation_size": 2_000,
            "test_size": 2_000,
            "min_length": 500,  # tokens, exclusive
            "max_length": 2_000,  # tokens, exclusive; the width of a batch
            "max_depth": 10,
            "max_args": 10,
            "end_token": True,
            "data_seed": 0,
            "write_tsv": "",  # folder that --mode=prepare writes to
        },
        mixer={
            "name": "lru",
            "d_state": 256,
            "r_min": 0.0,
            "r_max": 0.99,
            "max_phase": math.tau,
            "bidirectional": False,
        },
    )
    config.model.d_model = 128
    config.model.n_layers = 6
    config.model.block.norm = "batch"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.recurrence_factor = 0.5
    config.train.steps = 80_000
    config.train.batch_size = 32
    config.evaluate.every_steps = 3_000  # an epoch
    config.checkpoint.every_steps = 1_000
    if "tiny" in modifiers:
        _make_tiny(config)
    return config


def _make_tiny(config: ConfigDict) -> None:
    """Shrink data and model."""
    config.task.train_size = 20_000
    config.task.min_length = 10
    config.task.max_length = 128
    config.task.max_depth = 6
    config.task.max_args = 5
    config.model.d_model = 64
    config.model.n_layers = 2
    config.model.mixer.d_state = 64
    config.model.mixer.bidirectional = True
    config.model.block.norm = "layer"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.recurrence_factor = 0.25
    config.train.steps = 1_500
    config.train.batch_size = 64
    config.evaluate.every_steps = 250
    config.evaluate.batch_size = 256
    config.checkpoint.every_steps = 250
