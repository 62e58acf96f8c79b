"""Published accuracies on Long Range Arena, in per cent, as their authors count them.

Code bases differ in what they call a result; the labels say what is known:

    selected on test   the test set chose the epoch (Text has no validation set)
    validation         on the validation set
    colour             Image in colour, where the task is grey
    augmented          Image in colour and with augmentation
"""

from typing import NamedTuple

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
_CHOSEN = {"text": "selected on test"}
_VALIDATION = dict.fromkeys(TASKS, "validation")


class Row(NamedTuple):
    """One model.

    Attributes:
      accuracies: as TASKS; None: not reported. Path-X may be "fail".
      average: as published; None: not reported.
      direction: "causal", "bidirectional", "mixed", or "" if unknown.
      labels: of single accuracies.
      source: where the numbers stand, and what to know of them.
    """

    model: str
    accuracies: tuple[float | str | None, ...]
    average: float | None
    direction: str
    labels: dict[str, str]
    source: str


_LIQUID = "table of Liquid-S4's paper (2209.12951)"

ROWS = (
    Row(
        "Transformer",
        (36.37, 64.27, 57.46, 42.44, 71.40, "fail"),
        54.39,
        "bidirectional",
        {},
        "the benchmark's own code, 2020; average of five, without Path-X; at the last "
        "step",
    ),
    Row(
        "BigBird",
        (36.05, 64.02, 59.29, 40.83, 74.87, "fail"),
        55.01,
        "bidirectional",
        {},
        "the same; the best of the benchmark's own",
    ),
    Row(
        "S4, first version",
        (58.35, 76.02, 87.09, 87.26, 86.05, 88.10),
        80.48,
        "causal",
        _CHOSEN,
        _LIQUID,
    ),
    Row("DSS", (57.6, 76.6, 87.6, 85.8, 84.1, 85.0), 79.45, "", _CHOSEN, _LIQUID),
    Row(
        "S4-LegS",
        (59.60, 86.82, 90.90, 88.65, 94.20, 96.35),
        86.09,
        "bidirectional",
        _CHOSEN,
        _LIQUID,
    ),
    Row(
        "S4D-LegS",
        (60.47, 86.18, 89.46, 88.19, 93.06, 91.95),
        84.89,
        "bidirectional",
        _CHOSEN,
        _LIQUID,
    ),
    Row(
        "S4D-Inv",
        (60.18, 87.34, 91.09, 87.83, 93.78, 92.80),
        85.50,
        "bidirectional",
        _CHOSEN,
        _LIQUID,
    ),
    Row(
        "S4D-Lin",
        (60.52, 86.97, 90.96, 87.93, 93.96, "fail"),
        78.39,
        "bidirectional",
        _CHOSEN,
        f"{_LIQUID}; its average counts Path-X as 50",
    ),
    Row(
        "S5",
        (62.15, 89.31, 91.40, 88.00, 95.33, 98.58),
        87.46,
        "bidirectional",
        _CHOSEN,
        "tables of later papers; the abstract (2208.04933) has 87.4 and 98.5",
    ),
    Row(
        "Liquid-S4",
        (62.75, 89.02, 91.20, 89.50, 94.8, 96.66),
        87.32,
        "mixed",
        _VALIDATION,
        "2209.12951; bidirectional on Image only",
    ),
    Row(
        "LRU",
        (60.2, 89.4, 89.9, 89.0, 95.1, 94.2),
        86.3,
        "mixed",
        _CHOSEN | {"image": "colour"},
        "2303.06349; bidirectional on Pathfinder and Path-X",
    ),
    Row(
        "S4D, in the LRU's paper",
        (60.2, 86.4, 89.5, 91.5, 94.2, 97.5),
        None,
        "",
        _CHOSEN | {"image": "colour"},
        "2303.06349",
    ),
    Row(
        "S5, in the LRU's paper",
        (58.5, 86.2, 88.9, 88.8, 95.7, 96.0),
        None,
        "",
        _CHOSEN | {"image": "colour"},
        "2303.06349",
    ),
    Row(
        "Dense linear RNN",
        (50.4, 89.1, 89.1, 72.2, "fail", "fail"),
        None,
        "",
        _CHOSEN | {"image": "colour"},
        "2303.06349",
    ),
    Row(
        "SGConv",
        (61.45, 89.20, 91.11, 87.97, 95.46, 97.83),
        87.17,
        "",
        _CHOSEN,
        "tables of later papers",
    ),
    Row(
        "TNN",
        (61.04, 87.90, 90.97, 88.24, 93.00, 96.10),
        86.21,
        "",
        _CHOSEN,
        "tables of later papers",
    ),
    Row(
        "HGRN",
        (59.95, 88.14, 94.23, 88.69, 92.92, 97.50),
        86.91,
        "bidirectional",
        _CHOSEN | {"image": "augmented"},
        "tables of later papers (2311.04823); Retrieval is an outlier, others reach at "
        "most 92.5",
    ),
    Row(
        "Mega, full attention",
        (63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
        88.21,
        "bidirectional",
        _CHOSEN,
        "tables of later papers",
    ),
    Row(
        "S4D with tuned frequency bias",
        (None,) * 6,
        88.26,
        "",
        {},
        "abstract of 2410.02035",
    ),
    Row(
        "Griffin, by others",
        (None, 71.75, 66.58, 61.15, 73.38, 69.53),
        None,
        "",
        {},
        "a table of others than its authors",
    ),
    Row(
        "Mamba, by others",
        (38.02, 82.98, 72.14, 69.82, 69.26, 67.32),
        66.59,
        "",
        {},
        "a table of others than its authors",
    ),
)
