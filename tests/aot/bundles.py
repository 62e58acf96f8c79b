"""Static cycles of a TPU kernel, from the instruction bundles that libtpu writes down.

A core issues one bundle a cycle. The count of a kernel is therefore the number of its
bundles, those of a loop as often as the loop turns. It knows nothing of waiting for
memory: what it is good for is to compare two versions of a kernel, and to say whether
arithmetic or memory will be the limit.
"""

import re
from typing import NamedTuple

ADDRESS = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s[^{]*\{")
# The test for leaving a loop, on its counter and the number of turns.
EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder (%s\w+), (\d+) /\* loop exit test")


class Loop(NamedTuple):
    """The bundles `first` to `last` of a loop, both included, and its turns."""

    first: int
    last: int
    turns: int


def bundles(text: str) -> list[str]:
    """Splits a file of final bundles; a bundle may have several lines."""
    found: list[str] = []
    for line in text.splitlines():
        if ADDRESS.match(line):
            found.append(line)
        elif found:
            found[-1] += "\n" + line
    return found


def loops(program: list[str]) -> list[Loop]:
    """Finds the loops: a body that opens regions and a branch back to one of them."""
    spans = []
    for first, bundle in enumerate(program):
        if " LB:" not in bundle.partition("{")[0]:
            continue
        opened = re.findall(r"Start region (\d+)", bundle)
        last, region = next(
            (i, target)
            for i in range(first, len(program))
            for target in re.findall(r"sbr\.rel .*?target = \$region(\d+)", program[i])
            if target in opened
        )
        # The branch takes effect some bundles later, where its region ends.
        ends = [
            i
            for i in range(last, len(program))
            if re.search(rf"End (?:empty )?region {region}\b", program[i])
        ]
        spans.append((first, max([last, *ends[:1]])))
    found = []
    for first, last in spans:
        inner = [s for s in spans if first < s[0] and s[1] <= last]
        own = "\n".join(
            program[i]
            for i in range(first, last + 1)
            if not any(low <= i <= high for low, high in inner)
        )
        ((counter, limit),) = EXIT.findall(own)
        step = re.search(rf"{re.escape(counter)} = sadd\.s32 (\d+), ", own)
        assert step is not None, counter
        found.append(Loop(first, last, int(limit) // int(step[1])))
    return found


def cycles(text: str) -> int:
    """The number of bundles that one call of a kernel issues."""
    program = bundles(text)
    found = loops(program)
    total = 0
    for i in range(len(program)):
        turns = 1
        for loop in found:
            if loop.first <= i <= loop.last:
                turns *= loop.turns
        total += turns
    return total
