"""Random bits that are a pure function of their place: SplitMix64.

Every key has children, one for each position, as in the splittable generator of Steele,
Lea and Flood 2014. No release of a library changes them.
"""

import numpy as np


def child(key: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the keys of these children: outputs `position` of SplitMix64 from key."""
    z = key + (position.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> 30) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> 27) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> 31


def below(bound: int, key: np.ndarray) -> np.ndarray:
    """Return integers from 0 to bound - 1, uniform, from the low half of each key."""
    return (key & 0xFFFFFFFF) * np.uint64(bound) >> 32
