"""Which parameter of ours is which tensor of somebody else's."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Path = tuple[Any, ...]
"""Of a parameter in `nnx.to_pure_dict(nnx.state(model))`."""


def _same(array: Any) -> Any:
    return array


class Name(NamedTuple):
    """A tensor of theirs, and how to go from it to ours and back.

    Attributes:
      name: of the tensor.
      ours: makes our parameter of it; by views where it can, so that nothing is read.
      theirs: the inverse. Where they keep several of our parameters in one tensor it
        takes all of these, in the order of the table; None if that is not written.
    """

    name: str
    ours: Callable[[Any], Any] = _same
    theirs: Callable[[Any], Any] | None = _same


Table = dict[Path, Name | list[Name]]
"""The path of every parameter of ours -> what it is called elsewhere.

A list has the tensors that are its entries along the leading axis.
"""


class Piece(NamedTuple):
    """What a tensor of theirs has of a parameter of ours: all of it, or one entry."""

    path: Path
    entry: int | None

    def of(self, params: Mapping[Path, Any]) -> Any:
        """This piece of the parameters at all paths."""
        whole = params[self.path]
        return whole if self.entry is None else whole[self.entry]


def by_tensor(table: Table) -> dict[str, tuple[Callable[..., Any] | None, list[Piece]]]:
    """The name of every tensor of theirs -> what makes it, and of which pieces."""
    found: dict[str, tuple[Callable[..., Any] | None, list[Piece]]] = {}
    for path, names in table.items():
        if isinstance(names, list):
            held = [(Piece(path, entry), name) for entry, name in enumerate(names)]
        else:
            held = [(Piece(path, None), names)]
        for piece, name in held:
            _, pieces = found.setdefault(name.name, (name.theirs, []))
            pieces.append(piece)
    return found


def transposed(name: str) -> Name:
    """A matrix that maps from its last axis: `weight` in torch, `kernel` in Flax."""
    return Name(name, lambda weight: weight.T, lambda kernel: kernel.T)


def linear(ours: str, theirs: str, bias: bool = True) -> Table:
    """A linear map of torch, with or without a bias."""
    table: Table = {(ours, "kernel"): transposed(f"{theirs}.weight")}
    return table | ({(ours, "bias"): Name(f"{theirs}.bias")} if bias else {})


def part_of(name: str, *index: int) -> Name:
    """A tensor of theirs of which ours is one entry along its leading axes."""
    return Name(name, lambda array: array[index], None)


def prefixed(ours: Path, theirs: str, table: Table) -> Table:
    """The table of a module inside another one."""

    def longer(name: Name) -> Name:
        return name._replace(name=theirs + name.name)

    return {
        (*ours, *path): [*map(longer, name)] if isinstance(name, list) else longer(name)
        for path, name in table.items()
    }
