"""Where the dashes of a Pathfinder image go: contours grown dash by dash.

Numba compiles this file if it is installed; plain Python runs the same lines otherwise,
15 to 90 times slower. All numbers are integers, so both give the same bits.

A point is its index in a flat window that reaches `pad` points beyond the image. A
direction is the index of a dash in the tables: 0 to 359 are those that a contour may
start with, in degrees from -180 on; the others lead to the points of the circle that
the next dash may end on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable)

FREE = 76  # a mask up to .3 of 255
FULL = 459  # where two masks add up to 1.8 of 255, dashes collide
ONE = 1 << 16  # the weight of going straight on
LEAST = ONE * 255 // 10_000  # a sum of weights that is as good as none
N_DEGREES = 360
_NOWHERE = -1

try:
    from numba import njit
except ImportError:
    COMPILED = False
else:
    COMPILED = True


def _compiled(function: F) -> F:
    """Compile the function, which is kept on disk if there is a folder for it."""
    if not COMPILED:
        return function
    # What only this file calls needs no entry from Python, half of the work.
    inner = function.__name__.startswith("_")
    options: Any = {"no_cpython_wrapper": inner, "no_cfunc_wrapper": True}
    compiled: Any
    try:
        compiled = njit(function, cache=True, **options)
    except RuntimeError:
        compiled = njit(function, **options)
    return compiled


class Lists(NamedTuple):
    """One list for each direction, end to end: list i is first[i] to first[i + 1]."""

    first: np.ndarray  # (directions + 1,)
    point: np.ndarray  # (total,) offsets, or indices
    value: np.ndarray  # (total,)


class Tables(NamedTuple):
    """All that follows from the settings; int64, but for the windows, int16."""

    row: int  # points in a row of the flat window
    pad: int  # points beyond the image, on each side
    outside: np.ndarray  # (points,) 1 outside the image
    border: np.ndarray  # (points,) the mask of an empty image
    line: Lists  # the image of a dash, from its start
    mask: Lists  # the room it needs, the largest first
    solid: Lists  # where it is 255, for starts; none where no contour may start
    centre: np.ndarray  # (360, 3) first free point, rows and columns for contour 1
    head: np.ndarray  # (360, 2, row) move from a contour's tail to its dash's end
    back: np.ndarray  # (360, 2, row) move from there to `margin` behind the tail
    apart: np.ndarray  # (360, 2, row) move from the tail of contour 1 to that of 2
    advance: np.ndarray  # (directions, 2, row) move from one pivot to the next
    turn: Lists  # indices in `circle` and weights of what may follow a direction
    circle: np.ndarray  # (ends,) from a pivot to where the next dash may end
    near: np.ndarray  # (n,) the points within `margin`


class Sheet(NamedTuple):
    """What is drawn on; int16, but for sums, directions and points, int64."""

    mask: np.ndarray  # (points,) room that is taken
    kept: np.ndarray  # (points,) the same, but for a contour that is still growing
    blocked: np.ndarray  # (points,)
    free: np.ndarray  # (points,) int64
    sums: np.ndarray  # (ends,)
    directions: np.ndarray  # (dashes,) of the dashes drawn so far
    points: np.ndarray  # (dashes,) where they start


def sheet(tables: Tables, n_dashes: int) -> Sheet:
    """Return an empty sheet for `n_dashes` at most."""
    border = np.array(tables.border)
    return native(
        Sheet(
            mask=border,
            kept=border.copy(),
            blocked=np.zeros_like(border),
            free=np.zeros(len(border), np.int64),
            sums=np.zeros(len(tables.circle), np.int64),
            directions=np.zeros(n_dashes, np.int64),
            points=np.zeros(n_dashes, np.int64),
        )
    )


def native(arrays: Any) -> Any:
    """Return the arrays of a named tuple in the form that this file runs on.

    Plain Python reads single numbers faster from a memoryview.
    """
    if isinstance(arrays, tuple):
        return type(arrays)(*map(native, arrays))
    return arrays if COMPILED or isinstance(arrays, int) else memoryview(arrays)


def n_target_words(length: int) -> int:
    """Return how many words an attempt at two contours of `length` dashes takes."""
    return 2 * 6 + 2 * (length - 1) * 3


def n_distractor_words(length: int) -> int:
    """Return how many words an attempt at a contour of `length` dashes takes."""
    return 6 + (length - 1) * 3


@_compiled
def draw_targets(tables: Tables, sheet: Sheet, length: int, words: np.ndarray) -> int:
    """Draw two contours of `length` dashes, the first one first on the sheet.

    Returns the attempts it took, one row of words (attempts, n_target_words) each, or
    -1 if all failed.
    """
    second = length
    for attempt in range(len(words)):
        n = _grown(tables, sheet, length, words, attempt)
        if n == length:
            # The last dash of contour 1 takes no room, as in the original program.
            _take_room(tables, sheet, second + length - 1)
            return attempt + 1
        _copy_room(tables, sheet, 0, n, sheet.kept, sheet.mask)
        _copy_room(tables, sheet, second, second + n, sheet.kept, sheet.mask)
    return -1


@_compiled
def _grown(tables, sheet, length, words, row):
    """Grow both contours in turns, and return the dashes before one found no room."""
    second = length
    pivot_1 = _central_start(tables, sheet, words, row)
    if pivot_1 == _NOWHERE:
        return 0
    pivot_2 = _start_apart(tables, sheet, second, words, row)
    if pivot_2 == _NOWHERE:
        return 0
    for i in range(length - 1):
        word = 12 + 6 * i
        pivot_1 = _extended(tables, sheet, i, pivot_1, words, row, word)
        if pivot_1 == _NOWHERE:
            return i + 1
        pivot_2 = _extended(tables, sheet, second + i, pivot_2, words, row, word + 3)
        if pivot_2 == _NOWHERE:
            return i + 1
    return length


@_compiled
def draw_distractors(
    tables: Tables,
    sheet: Sheet,
    first: int,
    wanted: int,
    length: int,
    words: np.ndarray,
) -> int:
    """Draw up to `wanted` contours of `length` dashes, as dashes `first` and on.

    Each takes the first successful one of its rows of words (wanted * attempts,
    n_distractor_words). Returns the number of all dashes on the sheet.
    """
    for point in range(len(sheet.mask)):
        sheet.kept[point] = sheet.mask[point]
    attempts = len(words) // wanted
    for distractor in range(wanted):
        for attempt in range(attempts):
            row = distractor * attempts + attempt
            if _distractor(tables, sheet, first, length, words, row):
                first += length
                break
    return first


@_compiled
def _distractor(tables, sheet, first, length, words, row):
    pivot = _free_start(tables, sheet, first, words, row)
    if pivot == _NOWHERE:
        return False
    for i in range(length - 1):
        pivot = _extended(tables, sheet, first + i, pivot, words, row, 6 + 3 * i)
        if pivot == _NOWHERE:
            _copy_room(tables, sheet, first, first + i, sheet.kept, sheet.mask)
            return False
    _take_room(tables, sheet, first + length - 1)
    _copy_room(tables, sheet, first, first + length, sheet.mask, sheet.kept)
    return True


@_compiled
def paint(
    tables: Tables,
    sheet: Sheet,
    first: int,
    last: int,
    contrast: int,
    image: np.ndarray,
) -> None:
    """Draw the dashes from `first` to before `last` into the flat image (points,)."""
    for i in range(first, last):
        line, start = sheet.directions[i], sheet.points[i]
        for k in range(tables.line.first[line], tables.line.first[line + 1]):
            point = start + tables.line.point[k]
            image[point] = max(image[point], contrast * tables.line.value[k])


@_compiled
def _central_start(tables, sheet, words, row):
    """Start contour 1 where it is far from the border, in three attempts."""
    for word in range(0, 6, 2):
        direction = _below(N_DEGREES, words[row, word])
        n_rows, n_columns = tables.centre[direction, 1], tables.centre[direction, 2]
        if n_rows * n_columns == 0:
            return _NOWHERE
        k = _below(n_rows * n_columns, words[row, word + 1])
        tail = k // n_columns * tables.row + k % n_columns
        tail += tables.centre[direction, 0]
        pivot = _started(tables, sheet, 0, direction, tail)
        if pivot != _NOWHERE:
            return pivot
    return _NOWHERE


@_compiled
def _start_apart(tables, sheet, dash, words, row):
    """Start contour 2 at its distance from the tail of contour 1."""
    for word in range(6, 12, 2):
        direction = _below(N_DEGREES, words[row, word])
        side = _below(N_DEGREES, words[row, word + 1])
        tail = _moved(tables, tables.apart, side, sheet.points[0])
        pivot = _started(tables, sheet, dash, direction, tail)
        if pivot != _NOWHERE:
            return pivot
    return _NOWHERE


@_compiled
def _free_start(tables, sheet, dash, words, row):
    """Start a distractor where there is room."""
    for word in range(0, 6, 2):
        direction = _below(N_DEGREES, words[row, word])
        n_free = _find_free(tables, sheet, direction)
        if n_free == 0:
            return _NOWHERE
        tail = sheet.free[_below(n_free, words[row, word + 1])]
        pivot = _started(tables, sheet, dash, direction, tail)
        if pivot != _NOWHERE:
            return pivot
    return _NOWHERE


@_compiled
def _started(tables, sheet, dash, direction, tail):
    """Put down the first dash of a contour and return its pivot."""
    head = _moved(tables, tables.head, direction, tail)
    pivot = _moved(tables, tables.back, direction, head)
    if tables.outside[head] or tables.outside[pivot]:
        return _NOWHERE
    sheet.directions[dash] = direction
    sheet.points[dash] = tail
    return pivot


@_compiled
def _find_free(tables, sheet, direction):
    """List the tails from which a dash touches no mask, and return how many there are.

    The border of the mask stands for the border that a distractor keeps free.
    """
    first, last = tables.solid.first[direction], tables.solid.first[direction + 1]
    if first == last:
        return 0
    for point in range(len(sheet.mask)):
        sheet.blocked[point] = tables.outside[point]
    for point in range(len(sheet.mask)):
        if sheet.mask[point] > FREE:
            for k in range(first, last):
                sheet.blocked[point - tables.solid.point[k]] = 1
    n_free = 0
    for point in range(len(sheet.mask)):
        if not sheet.blocked[point]:
            sheet.free[n_free] = point
            n_free += 1
    return n_free


@_compiled
def _extended(tables, sheet, dash, pivot, words, row, word):
    """Put down the dash after `dash` and return the pivot that it turns about.

    It ends on a circle around the pivot, at a point of a probability proportional to
    (weight of the turn) (255 - highest mask near the point).
    Only now does `dash` itself take its room.
    """
    direction = sheet.directions[dash]
    pivot = _moved(tables, tables.advance, direction, pivot)
    first, last = tables.turn.first[direction], tables.turn.first[direction + 1]
    total = 0
    for k in range(first, last):
        end = pivot + tables.circle[tables.turn.point[k]]
        if not tables.outside[end]:
            total += tables.turn.value[k] * (255 - _highest_near(tables, sheet, end))
        sheet.sums[k - first] = total
    if total < LEAST:
        return _NOWHERE
    for draw in range(3):
        chosen = _below(total, words[row, word + draw])
        k = 0
        while sheet.sums[k] <= chosen:
            k += 1
        end = tables.turn.point[first + k]
        if _fits(tables, sheet, N_DEGREES + end, pivot + tables.circle[end]):
            _take_room(tables, sheet, dash)
            sheet.directions[dash + 1] = N_DEGREES + end
            sheet.points[dash + 1] = pivot + tables.circle[end]
            return pivot
    return _NOWHERE


@_compiled
def _moved(tables, moves, direction, point):
    """Return the end of a move: how far it goes depends on the row and the column."""
    row, column = point // tables.row, point % tables.row
    return point + moves[direction, 0, row] + moves[direction, 1, column]


@_compiled
def _highest_near(tables, sheet, point):
    highest = 0
    for k in range(len(tables.near)):
        highest = max(highest, sheet.mask[point + tables.near[k]])
    return highest


@_compiled
def _fits(tables, sheet, direction, start):
    for k in range(tables.mask.first[direction], tables.mask.first[direction + 1]):
        value = tables.mask.value[k]
        if value < FULL - 255:
            return True
        if sheet.mask[start + tables.mask.point[k]] + value >= FULL:
            return False
    return True


@_compiled
def _take_room(tables, sheet, dash):
    direction, start = sheet.directions[dash], sheet.points[dash]
    for k in range(tables.mask.first[direction], tables.mask.first[direction + 1]):
        point = start + tables.mask.point[k]
        if not tables.outside[point]:
            sheet.mask[point] = max(sheet.mask[point], tables.mask.value[k])


@_compiled
def _copy_room(tables, sheet, first, last, source, target):
    """Copy the room of the dashes from `first` to before `last` between masks."""
    for dash in range(first, last):
        direction, start = sheet.directions[dash], sheet.points[dash]
        for k in range(tables.mask.first[direction], tables.mask.first[direction + 1]):
            point = start + tables.mask.point[k]
            target[point] = source[point]


@_compiled
def _below(bound, word):
    """Return an integer from 0 to bound - 1 from 32 random bits."""
    return word * bound >> 32
