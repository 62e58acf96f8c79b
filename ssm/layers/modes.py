"""Convolution or recurrence: two forms of a layer that does not change with time."""

import difflib
from collections.abc import Iterable
from typing import Literal

from flax import nnx

Mode = Literal["convolution", "recurrent"]
MODES: tuple[Mode | None, ...] = (None, "convolution", "recurrent")


def check_choice(
    layer: nnx.Module, argument: str, value: str | None, known: Iterable[str | None]
) -> None:
    """Raises ValueError unless the value is known, naming the closest one."""
    known = tuple(known)
    if value in known:
        return
    names = [name for name in known if name is not None]
    close = difflib.get_close_matches(str(value), names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"{type(layer).__name__}: {argument}={value!r} is unknown, wanted one of "
        f"{', '.join(map(repr, known))}{hint}"
    )


def check_convolves(layer: nnx.Module, mode: Mode | None, **given: object) -> None:
    """Raises ValueError if a convolution was named and these arguments forbid it."""
    names = [name for name, value in given.items() if value is not None]
    if mode == "convolution" and names:
        raise ValueError(
            f"{type(layer).__name__}: with {' and '.join(names)} the steps differ, "
            "which no convolution can do: leave mode=None, or take mode='recurrent'"
        )
