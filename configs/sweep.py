"""Several runs under one name: what a config file's `sweep` returns.

    def sweep(variant="lru"):
        return [
            Point(f"rate-{rate}", f"digits.py:{variant}", {"optimizer.beta1": rate})
            for rate in (0.8, 0.9)
        ]

`python -m experiments.main --config=FILE.py:VARIANT --workdir=DIR` runs them all.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One run.

    Attributes:
      name: its directory inside --workdir.
      config: FILE:VARIANT, the file as seen from that of the sweep.
      overrides: values of keys, `{"optimizer.learning_rate": 1e-3}`.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = {}
