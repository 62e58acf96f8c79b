"""Pairs of windows of Python's own sources: are the two from the same file?

The files of the standard library are cut into splits as wholes. A pair is a window of
the first half of a file and one of the second half, of the same file (label 1) or of
another one of the same split (label 0). Other versions of Python have other sources.
"""

import platform
from collections.abc import Mapping

import numpy as np

from experiments.data import splits, text
from experiments.data.rows import Rows

VERSION = 1  # to be raised when the same seed gives other rows
PYTHON = platform.python_version()


def generate(
    seed: int, sizes: Mapping[str, int], window_length: int
) -> dict[str, Rows]:
    """Draw the pairs of each split, as rows `text1 TAB text2`; every other is a match.

    Args:
      seed: of the pairs.
      sizes: how many of each split.
      window_length: in bytes; files shorter than four windows are left out.

    Raises ValueError if fewer than two files a split are long enough.
    """
    files = _files(window_length)
    pairs = {}
    for place, (split, size) in enumerate(sizes.items()):
        rng = np.random.Generator(np.random.PCG64([seed, place]))
        labels = np.arange(size, dtype=np.uint8) % 2
        rows = [_pair(rng, files[split], window_length, match) for match in labels == 1]
        pairs[split] = Rows.of(rows, labels)
    return pairs


def _files(window_length: int) -> dict[str, list[bytes]]:
    """Cut the files into splits: eight tenths, one and one."""
    contents = [
        document.content.replace(b"\t", b" ")  # a tab is between the texts of a pair
        for document in text.standard_library()
        if len(document.content) >= 4 * window_length
    ]
    n_test = len(contents) // 10
    if n_test < 2:
        raise ValueError(
            f"window_length={window_length}: Python {PYTHON} has {len(contents)} "
            f"source files of at least {4 * window_length} bytes, wanted 20: choose a "
            "shorter window, or another Python, with its sources"
        )
    n_files = len(contents)
    sizes = {"train": n_files - 2 * n_test, "validation": n_test, "test": n_test}
    cut = splits.cut(sizes, "permuted")
    return {split: [contents[i] for i in files] for split, files in cut.items()}


def _pair(
    rng: np.random.Generator, files: list[bytes], window_length: int, match: bool
) -> np.ndarray:
    first, other = rng.choice(len(files), size=2, replace=False)
    second = first if match else other
    half1 = files[first][: len(files[first]) // 2]
    half2 = files[second][len(files[second]) // 2 :]
    windows = [_window(rng, half, window_length) for half in (half1, half2)]
    return np.frombuffer(b"\t".join(windows), np.uint8)


def _window(rng: np.random.Generator, content: bytes, length: int) -> bytes:
    start = rng.integers(len(content) - length + 1)
    # Without what is cut off of characters at both ends.
    return content[start : start + length].decode(errors="ignore").encode()
