"""Delayed copy: ten symbols, said again after 200 blanks.

    python -m experiments.main --config=configs/copying/delayed.py:lru --workdir=DIR

The form is that of Arjovsky et al. 2016 (1511.06464), with fresh sequences at every
step; `--config.task.form=` takes the others (urnn, tcn, s4, s4_reverse, s4_lag), which
experiments/tasks/delayed_copy.py describes. Accuracy counts the ten answers alone:
0.125 by chance.

Families `lru`, `hawk`, `griffin` (attention over 64 positions, less than the delay) and
`transformer`, with 76 to 84 thousand parameters.

Measured with `lru` on two CPU cores, validation accuracy: 0.766 at step 100 (17 s),
0.984 at step 150 (26 s), 1.000 at step 200 (35 s); one seed, compiling and evaluating
included. The threshold of 0.995 falls between the last two.
"""

from ml_collections import ConfigDict

from configs import base, families

MODELS = {
    "lru": families.lru(d_model=64, n_layers=1, d_state=256, r_min=0.99, r_max=0.9999),
    "hawk": families.hawk(d_model=64, n_layers=2, lru_width=64, n_blocks=4, d_ff=128),
    "griffin": families.griffin(
        d_model=64, n_layers=3, lru_width=64, n_blocks=4, n_heads=4, window=64, d_ff=64
    ),
    "transformer": families.transformer(d_model=64, n_layers=2, n_heads=4, d_ff=128),
}


def get_config(variant: str = "lru") -> ConfigDict:
    """Return the config of a variant: one of the families in `MODELS`."""
    family, _ = base.parse_variant(variant, MODELS)
    config = base.get_config(
        task={
            "name": "delayed_copy",
            "form": "urnn",
            "n_data": 10,  # symbols to remember
            "delay": 200,  # positions
            "n_symbols": 8,  # kinds
            "eval_size": 2_048,  # rows of the validation and of the test set
        },
        model=MODELS[family],
    )
    config.model.tied = False  # the inputs have a symbol more than the answers
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_fraction = 0.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.recurrence_factor = 1.0
    config.optimizer.weight_decay = 0.0
    config.train.steps = 500
    config.train.batch_size = 64
    config.evaluate.every_steps = 100
    config.evaluate.batch_size = 256
    config.checkpoint.every_steps = 100
    return config
