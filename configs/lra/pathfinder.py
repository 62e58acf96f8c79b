"""Pathfinder of Long Range Arena: do two discs lie on the same dashed contour?

    python -m experiments.main --config=configs/lra/pathfinder.py:lru --workdir=DIR
    python -m experiments.main --config=configs/lra/pathfinder.py:lru,tiny --workdir=DIR

32 x 32 pixels, one a step, and the hard form: contours of 14 dashes. The images are
drawn anew ("regenerated") by the published description; with
`--config.data.source=PATH` those of the archive are read, packed or not.

With published settings, and test accuracy as published, %:

    lru             95.1    Orvieto et al. 2023 (2303.06349), tables 8 and 9; both ways
    s4              94.0    experiment file of S4's code, version 4; both ways
    s4d             93.1    that of version 3, "legs"; both ways, its last step is read
    s5              95.33   script of S5's code; both ways
    liquid_s4_pb    94.8    on validation; Hasani et al. 2023 (2209.12951), table S1
    hgrn            92.92   its authors' launch script (2311.04823), rows and columns

What these leave open, or have otherwise, `configs/lra/recipes.py` says. `liquid_s4` is
`liquid_s4_pb` with the exact recurrence, `liquid_s4_kb` that with its KB kernel; its
rate is that of its code, ten times that of the paper.

Without published settings, of the LRU's size and with its number of steps: `hawk`,
`griffin` (attention over 257 pixels), `hgrn2`, `transnormer` (lightning attention) and
`transformer`, all both ways.

`tiny` is `pathfinder32_gen`, a stand-in: 20,000 images with contours of 6 dashes, a
small model that looks both ways. Measured: `lru,tiny` is at chance (50.5 %, seed 0)
after its five minutes on two cores.

None of the full size was trained.
"""

from ml_collections import ConfigDict

from configs import base, families
from configs.lra import recipes, tiny

ROWS = 160_000  # to train on
RECIPES = {
    "lru": recipes.lru(
        families.lru(
            d_model=192,
            n_layers=6,
            d_state=256,
            r_min=0.9,
            r_max=0.999,
            bidirectional=True,
            norm="batch",
        ),
        factor=0.25,
        steps=500_000,
        batch_size=64,
    ),
    "s4": recipes.s4(
        families.changed(
            families.s4(
                d_model=256,
                n_layers=6,
                d_state=64,
                l_max=1_024,
                bidirectional=True,
                norm="batch_0.9",
            ),
            mixer={"n_ssm": 256},
        ),
        learning_rate=4e-3,
        slow_steps=True,
        batch_size=64,
        n_epochs=200,
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
            bidirectional=True,
            norm="batch_0.9",
        ),
        learning_rate=4e-3,
        weight_decay=0.03,
        slow_steps=True,
        pooling="last",
        batch_size=64,
        n_epochs=200,
        rows=ROWS,
        cosine_steps=500_000,
        warmup_steps=2_500,
    ),
    "s5": recipes.s5(
        n_layers=6,
        d_model=192,
        d_state=256,
        n_blocks=8,
        c_init="trunc_standard_normal",
        glu="half",
        momentum="0.9",
        rate=9e-4,
        factor=5,
        weight_decay=0.03,
        dropout=0.05,
        batch_size=64,
        n_epochs=200,
        rows=ROWS,
    ),
    **recipes.liquid_s4(
        n_layers=6,
        d_model=256,
        d_state=64,
        order=2,
        norm="batch_0.9",
        dt_range=(0.001, 0.1),
        learning_rate=4e-3,
        weight_decay=0.03,
        slow_steps=True,
        pooling="last",
        batch_size=4,
        n_epochs=200,
        rows=ROWS,
        cosine_steps=500_000,
        warmup_steps=2_500,
    ),
    "hgrn": recipes.hgrn(
        d_model=128,
        n_layers=6,
        d_ff=128,
        grid=True,
        learning_rate=2e-3,
        batch_size=128,
        steps=500_000,
        warmup_steps=50_000,
    ),
    **recipes.of_like_size(
        width=176, d_ff=272, steps=500_000, batch_size=64, bidirectional=True
    ),
}
TINY = tiny.recipes(
    l_max=1_024, steps=1_000, batch_size=32, ring=(0.9, 0.999), grid=True
)


def get_config(variant: str = "lru") -> ConfigDict:
    """Return the config of a variant: a family, or `FAMILY,tiny`."""
    family, words = base.parse_variant(variant, RECIPES, modifiers=("tiny",))
    task = {
        "name": "pathfinder",
        "resolution": 32,  # 32 | 64: pixels a side
        "contour_length": 14,  # 14 | 9 | 6: dashes of a contour
        "n_images": 200_000,  # 80 % to train on, 10 % to choose by
        "split": "permuted",  # "permuted" | "tail": which of them
        "data_seed": 0,
    }
    if "tiny" not in words:
        return recipes.configure(RECIPES[family], task=task, epoch_rows=ROWS)
    task |= {"contour_length": 6, "n_images": 20_000}
    return recipes.configure(TINY[family], task=task, epoch_rows=8_000)
