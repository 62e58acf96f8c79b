"""Reference outputs of other implementations, where a checkout has them beside it."""

from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file; the calling test is left out where there is none."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
