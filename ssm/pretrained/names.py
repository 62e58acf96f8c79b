"""Which parameter of ours is which tensor of somebody else's."""

from collections.abc import Callable
from typing import Any, NamedTuple

Path = tuple[Any, ...]
"""Of a parameter in `nnx.to_pure_dict(nnx.state(model))`."""


def _same(array: Any) -> Any:
    return array


class Name(NamedTuple):
    """A tensor of theirs, and how to go from it to ours and back.

    Attributes:
      name: of the tensor.
      ours: makes our parameter of it; by views alone, so that nothing is read.
      theirs: the inverse; None where they keep several of our parameters in one tensor,
        which can then be read but not written.
    """

    name: str
    ours: Callable[[Any], Any] = _same
    theirs: Callable[[Any], Any] | None = _same


Table = dict[Path, Name]
"""The path of every parameter of ours -> what it is called elsewhere."""


def transposed(name: str) -> Name:
    """A matrix that maps from its last axis: `weight` in torch, `kernel` in Flax."""
    return Name(name, lambda weight: weight.T, lambda kernel: kernel.T)


def part_of(name: str, *index: int) -> Name:
    """A tensor of theirs of which ours is one entry along its leading axes."""
    return Name(name, lambda array: array[index], None)


def prefixed(ours: Path, theirs: str, table: Table) -> Table:
    """The table of a module inside another one."""
    return {
        (*ours, *path): name._replace(name=theirs + name.name)
        for path, name in table.items()
    }
