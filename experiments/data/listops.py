"""The ListOps language: its tokens, its grammar, and what an expression is worth.

An expression is a digit, or an operator with arguments, `[OP a_1 ... a_k ]`. The
operators are MIN, MAX, MED (the median, truncated) and SM (the sum modulo 10), so every
value is a digit. Source: Nangia and Bowman 2018 (1804.06028); lengths and depth as in
Long Range Arena, Tay et al. 2020 (2011.04006).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SYMBOLS = ("<pad>", "<eos>", "]", "[MIN", "[MAX", "[MED", "[SM", *"0123456789")
PAD, EOS, CLOSE, MIN, MAX, MED, SM, ZERO = range(8)  # the digit d is ZERO + d


@dataclass(frozen=True)
class Grammar:
    """Which expressions are drawn; the defaults are Long Range Arena's.

    Raises ValueError if no expression can be like that.
    """

    min_length: int = 500  # tokens, exclusive
    max_length: int = 2_000  # tokens, exclusive
    max_depth: int = 10  # levels; the deepest holds digits only
    max_args: int = 10

    def __post_init__(self) -> None:
        if self.min_length < 1 or self.max_depth < 2 or self.max_args < 2:
            raise ValueError(
                "a grammar needs min_length >= 1, max_depth >= 2 and max_args >= 2, "
                f"got {self}"
            )
        shortest, longest = 4, 1  # [MIN 0 0 ]; a digit
        for _ in range(1, self.max_depth):
            longest = 2 + self.max_args * longest
        if max(shortest, self.min_length + 1) > min(longest, self.max_length - 1):
            raise ValueError(f"no expression is as {self} wants it")


def evaluate(tokens: Iterable[int]) -> int:
    """Return the value of an expression, found with an explicit stack.

    Raises ValueError, saying what is wrong, if the tokens are not one expression.
    """
    enclosing: list[tuple[int, list[int]]] = []
    arguments: list[int] = []  # of the innermost open operator
    for position, token in enumerate(tokens, start=1):
        if token >= ZERO:
            arguments.append(token - ZERO)
        elif token >= MIN:
            enclosing.append((token, arguments))
            arguments = []
        elif token == CLOSE and enclosing and arguments:
            operator, outer = enclosing.pop()
            outer.append(apply(operator, arguments))
            arguments = outer
        else:
            raise ValueError(f"token {position}, {SYMBOLS[token]!r}, is out of place")
    if enclosing:
        raise ValueError(f"{len(enclosing)} operators are not closed")
    if len(arguments) != 1:
        raise ValueError(f"{len(arguments)} expressions where one is wanted")
    return arguments[0]


def apply(operator: int, arguments: Sequence[int]) -> int:
    """Return the value of an operator on digits."""
    if operator == MIN:
        return min(arguments)
    if operator == MAX:
        return max(arguments)
    if operator == SM:
        return sum(arguments) % 10
    ordered = sorted(arguments)
    last = len(ordered) - 1
    return (ordered[last // 2] + ordered[(last + 1) // 2]) // 2
