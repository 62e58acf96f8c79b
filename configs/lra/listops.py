"""ListOps of Long Range Arena: ten classes, 500 to 2,000 tokens.

    python -m experiments.main --config=configs/lra/listops.py:lru --workdir=DIR
    python -m experiments.main --config=configs/lra/listops.py:lru,tiny --workdir=DIR

The rows are drawn anew ("regenerated"). With `--config.data.source=FOLDER` those of the
archive's files are read; `--mode=prepare --config.task.write_tsv=FOLDER` writes such
files.

With published settings, and test accuracy as published, %:

    lru             60.2    Orvieto et al. 2023 (2303.06349), tables 8 and 9; looks back
    s4              59.6    experiment file of S4's code, version 4; both ways
    s4d             60.5    that of version 3, "legs"; both ways
    s5              62.15   script of S5's code; both ways
    liquid_s4_pb    62.75   on validation; Hasani et al. 2023 (2209.12951), table S1
    hgrn            59.95   its authors' launch script (2311.04823); both ways

What these leave open, or have otherwise, `configs/lra/recipes.py` says. `liquid_s4` is
`liquid_s4_pb` with the exact recurrence, `liquid_s4_kb` that with its KB kernel. The
states of Liquid-S4 are 6, where the paper has 7: they come in pairs.

Without published settings, of the LRU's size, 0.92 to 0.99 million parameters, and with
its number of steps: `hawk`, `griffin` (attention over 257 tokens), `hgrn2`,
`transnormer` (lightning attention) and `minimax` look back only, `transformer` both
ways. So are `lstm`, `gru` and `linear_rnn`, the dense baseline of the LRU's paper, who
report 50.4 % for it; they step through time, and are slow. `linear_rnn` starts with its
eigenvalues in a disk of radius 0.95, since with 1 states grow as far as 1e23 over 2,000
steps.

`tiny`: 10 to 128 tokens, a small model that looks both ways, minutes on two cores. It
is a stand-in, not to be compared with any published number. Measured: 0.480 test
accuracy of `lru,tiny` (seed 0) in two minutes on two CPU cores.

None of the full size was trained to its end.
"""

from ml_collections import ConfigDict

from configs import base, families
from configs.lra import recipes, tiny

ROWS = 96_000  # to train on
OURS = recipes.of_like_size(width=128, d_ff=256, steps=80_000, batch_size=32)
RECIPES = {
    "lru": recipes.lru(
        families.lru(d_model=128, n_layers=6, d_state=256, r_max=0.99, norm="batch"),
        factor=0.5,
        steps=80_000,
        batch_size=32,
    ),
    "s4": recipes.s4(
        families.s4(
            d_model=256,
            n_layers=6,
            d_state=4,
            l_max=2_000,
            bidirectional=True,
            norm="batch_0.9",
        ),
        learning_rate=0.01,
        prenorm=False,
        batch_size=32,
        n_epochs=40,
        rows=ROWS,
        cosine_steps=120_000,
        warmup_steps=12_000,
    ),
    "s4d": recipes.s4(
        families.s4d(
            d_model=128,
            n_layers=8,
            d_state=64,
            init="legs",
            bidirectional=True,
            norm="batch_0.9",
        ),
        learning_rate=0.01,
        prenorm=False,
        batch_size=50,
        n_epochs=40,
        rows=ROWS,
        cosine_steps=80_000,
        warmup_steps=1_000,
    ),
    "s5": recipes.s5(
        n_layers=8,
        d_model=128,
        d_state=16,
        n_blocks=8,
        c_init="lecun_normal",
        glu="half2",
        rate=1e-3,
        factor=3,
        weight_decay=0.04,
        dropout=0.0,
        batch_size=50,
        n_epochs=40,
        rows=ROWS,
        regroup="b_re=regular b_im=regular",
    ),
    **recipes.liquid_s4(
        n_layers=9,
        d_model=128,
        d_state=6,
        order=5,
        norm="batch_0.9",
        dt_range=(0.002, 0.2),
        learning_rate=2e-3,
        recurrence_rate=9e-4,
        weight_decay=0.03,
        dropout=0.01,
        batch_size=12,
        n_epochs=40,
        rows=ROWS,
        cosine_steps=80_000,
        warmup_steps=1_000,
    ),
    "hgrn": recipes.hgrn(
        d_model=32,
        n_layers=6,
        d_ff=32,
        learning_rate=5e-4,
        weight_decay=0.01,
        batch_size=128,
        steps=50_000,
        warmup_steps=5_000,
    ),
    **OURS,
    "minimax": OURS["hawk"]._replace(
        model=families.minimax(
            d_model=128,
            n_layers=6,
            n_heads=4,
            head_dim=32,
            n_kv_heads=1,
            every=3,
            d_ff=60,
            n_experts=4,
        )
    ),
    "lstm": OURS["hawk"]._replace(
        model=families.lstm(d_model=116, n_layers=6, d_ff=150)
    ),
    "gru": OURS["hawk"]._replace(model=families.gru(d_model=128, n_layers=6, d_ff=160)),
    "linear_rnn": OURS["hawk"]._replace(
        model=families.linear_rnn(
            d_model=128, n_layers=6, d_state=256, radius=0.95, norm="batch"
        )
    ),
}
TINY = tiny.recipes(l_max=128, steps=1_500, batch_size=64)


def get_config(variant: str = "lru") -> ConfigDict:
    """Return the config of a variant: a family, or `FAMILY,tiny`."""
    family, words = base.parse_variant(variant, RECIPES, modifiers=("tiny",))
    task = {
        "name": "listops",
        "train_size": ROWS,
        "validation_size": 2_000,
        "test_size": 2_000,
        "min_length": 500,  # tokens, exclusive
        "max_length": 2_000,  # tokens, exclusive; the width of a batch
        "max_depth": 10,
        "max_args": 10,
        "end_token": True,
        "data_seed": 0,
        "write_tsv": "",  # folder that --mode=prepare writes to
    }
    if "tiny" not in words:
        return recipes.configure(RECIPES[family], task=task, epoch_rows=ROWS)
    task |= {"train_size": 20_000, "min_length": 10, "max_length": 128}
    task |= {"max_depth": 6, "max_args": 5}
    config = recipes.configure(TINY[family], task=task, epoch_rows=16_000)
    config.evaluate.batch_size = 256
    config.checkpoint.every_steps = 250
    return config
