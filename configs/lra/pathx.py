"""Path-X of Long Range Arena: Pathfinder with 128 x 128 pixels, 16,384 steps.

    python -m experiments.main --config=configs/lra/pathx.py:lru --workdir=DIR
    python -m experiments.main --config=configs/lra/pathx.py:lru,tiny --workdir=DIR

The images are drawn anew ("regenerated") by the published description; with
`--config.data.source=PATH` those of the archive are read, packed or not. A loss of
0.693 is chance; everybody's runs stay there for long, and some seeds for ever.

With published settings, and test accuracy as published, %:

    lru             94.2    Orvieto et al. 2023 (2303.06349), tables 8 and 9; both ways
    s4              96.0    experiment file of S4's code, version 4; both ways
    s4d             91.95   that of version 3, "legs"; both ways
    s5              98.58   script of S5's code; both ways
    liquid_s4_pb    96.66   on validation; Hasani et al. 2023 (2209.12951), table S1
    hgrn            97.50   its authors' launch script (2311.04823), rows and columns

What these leave open, or have otherwise, `configs/lra/recipes.py` says. `liquid_s4` is
`liquid_s4_pb` with the exact recurrence, `liquid_s4_kb` that with its KB kernel.

Without published settings, of the LRU's size and with its number of steps: `hawk`,
`griffin` (attention over 257 pixels), `hgrn2`, `transnormer` (lightning attention) and
`transformer`, all both ways.

`tiny` is `pathfinder64_gen`, a stand-in: 4,096 steps, contours of 6 dashes, a small
model that looks both ways. Measured: `lru,tiny` is at chance (51.0 %, seed 0) after its
minute on two cores.

None of the full size was trained to its end.
"""

import math

from ml_collections import ConfigDict

from configs import base, families
from configs.lra import recipes, tiny

ROWS = 160_000  # to train on
STEPS_DT = (1e-4, 0.1)
RECIPES = {
    "lru": recipes.lru(
        families.changed(
            families.lru(
                d_model=128,
                n_layers=6,
                d_state=256,
                r_min=0.999,
                r_max=0.9999,
                bidirectional=True,
                norm="batch",
            ),
            mixer={"max_phase": math.pi / 10},
        ),
        factor=0.25,
        steps=250_000,
        batch_size=32,
        glu="half",
    ),
    "s4": recipes.s4(
        families.changed(
            families.s4(
                d_model=256,
                n_layers=6,
                d_state=64,
                l_max=16_384,
                steps=STEPS_DT,
                bidirectional=True,
                norm="batch_0.9",
            ),
            mixer={"n_ssm": 256},
        ),
        learning_rate=1e-3,
        slow_steps=True,
        batch_size=16,
        n_epochs=50,
        rows=ROWS,
        cosine_steps=500_000,
        warmup_steps=50_000,
    ),
    "s4d": recipes.s4(
        families.s4d(
            d_model=256,
            n_layers=6,
            d_state=64,
            init="legs",
            steps=STEPS_DT,
            bidirectional=True,
            norm="batch_0.9",
        ),
        learning_rate=1e-3,
        recurrence_rate=5e-4,
        slow_steps=True,
        batch_size=16,
        n_epochs=50,
        rows=ROWS,
        cosine_steps=500_000,
        warmup_steps=50_000,
    ),
    "s5": recipes.s5(
        n_layers=6,
        d_model=128,
        d_state=256,
        n_blocks=16,
        c_init="complex_normal",
        dt_min=1e-4,
        glu="half",
        momentum="0.9",
        rate=6e-4,
        factor=3,
        weight_decay=0.06,
        dropout=0.0,
        batch_size=32,
        n_epochs=75,
        rows=ROWS,
        regroup="b_re=slow b_im=slow",
    ),
    **recipes.liquid_s4(
        n_layers=6,
        d_model=320,
        d_state=64,
        order=2,
        norm="batch_0.9",
        dt_range=STEPS_DT,
        learning_rate=1e-3,
        recurrence_rate=5e-4,
        slow_steps=True,
        batch_size=8,
        n_epochs=60,
        rows=ROWS,
        cosine_steps=500_000,
        warmup_steps=10_000,
    ),
    "hgrn": recipes.hgrn(
        d_model=64,
        n_layers=6,
        d_ff=64,
        grid=True,
        learning_rate=7.5e-4,
        batch_size=16,
        steps=500_000,
        warmup_steps=150_000,
    ),
    **recipes.of_like_size(
        width=128, d_ff=248, steps=250_000, batch_size=32, bidirectional=True
    ),
}
TINY = tiny.recipes(
    l_max=4_096, steps=200, batch_size=8, ring=(0.99, 0.9999), grid=True
)


def get_config(variant: str = "lru") -> ConfigDict:
    """Return the config of a variant: a family, or `FAMILY,tiny`."""
    family, words = base.parse_variant(variant, RECIPES, modifiers=("tiny",))
    task = {
        "name": "pathx",
        "resolution": 128,  # 128 | 64: pixels a side
        "contour_length": 14,  # 14 | 9 | 6: dashes of a contour
        "n_images": 200_000,  # 80 % to train on, 10 % to choose by
        "split": "permuted",  # "permuted" | "tail": which of them
        "data_seed": 0,
    }
    if "tiny" not in words:
        config = recipes.configure(RECIPES[family], task=task, epoch_rows=ROWS)
        config.model.matmul_precision = "highest"  # without it seeds fail more often
        config.model.scan_layers = True
        config.model.remat = True  # the states of a layer take gigabytes
        return config
    task |= {"resolution": 64, "contour_length": 6, "n_images": 2_000}
    return recipes.configure(TINY[family], task=task, epoch_rows=400)
