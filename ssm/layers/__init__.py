"""Sequence layers, one a file: `y, carry = layer(x, carry=None, *, reset=None)`."""

from ssm.layers.base import SequenceLayer
from ssm.layers.bidirectional import Bidirectional
from ssm.layers.lru import LRU

__all__ = ["LRU", "Bidirectional", "SequenceLayer"]
