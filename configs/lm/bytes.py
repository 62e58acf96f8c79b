"""Language modelling of bytes: any text, by default Python's standard library.

    python -m experiments.main --config=configs/lm/bytes.py:lru,tiny --workdir=DIR
    python -m experiments.main --config=configs/lm/bytes.py:lru --workdir=DIR \
        --config.data.path=FOLDER

`data.path` is a UTF-8 text file, or a folder of which each file is a document: 90 % to
train on, 5 % to choose by, 5 % to test on, by file. Documents are packed into windows
and do not see each other; `--config.task.separate_documents=False` lets them.
"""

import math

from ml_collections import ConfigDict

from configs import base

FAMILIES = ("lru",)


def get_config(variant: str = "lru") -> ConfigDict:
    """Return the config of a variant: a family, or `FAMILY,tiny`."""
    _, modifiers = base.parse_variant(variant, FAMILIES, modifiers=("tiny",))
    config = base.get_config(
        task={"name": "byte_text", "length": 2_048, "separate_documents": True},
        data={"path": ""},
        mixer={
            "name": "lru",
            "d_state": 1_024,
            "r_min": 0.0,
            "r_max": 0.999,
            "max_phase": math.tau,
            "bidirectional": False,
        },
    )
    config.model.d_model = 512
    config.model.n_layers = 12
    config.model.final_norm = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.train.steps = 20_000
    config.train.batch_size = 32
    config.evaluate.every_steps = 1_000
    config.evaluate.batch_size = 32
    if "tiny" in modifiers:
        config.task.length = 512
        config.model.d_model = 128
        config.model.n_layers = 4
        config.model.mixer.d_state = 128
        config.optimizer.learning_rate = 4e-3
        config.train.steps = 1_500
        config.train.batch_size = 16
        config.evaluate.every_steps = 500
    return config
