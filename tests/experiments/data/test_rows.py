import numpy as np

from experiments.data.rows import Rows

ROWS = Rows.of(
    [np.array(row, np.uint8) for row in ([1, 2, 3], [], [4], [5, 6])], np.arange(4)
)


def test_rows_lie_end_to_end():
    assert len(ROWS) == 4
    assert ROWS.lengths.tolist() == [3, 0, 1, 2]
    assert ROWS[3].tolist() == [5, 6]


def test_a_part_stands_alone():
    part = ROWS.part(1, 4)
    assert part.starts.tolist() == [0, 0, 1, 3]
    assert part.values.tolist() == [4, 5, 6]
    assert part.labels.tolist() == [1, 2, 3]


def test_padded_rows():
    padded, lengths = ROWS.padded(np.array([3, 0, 3, 1]), 4)
    assert padded.tolist() == [[5, 6, 0, 0], [1, 2, 3, 0], [5, 6, 0, 0], [0, 0, 0, 0]]
    assert padded.dtype == np.uint8
    assert lengths.tolist() == [2, 3, 2, 0]
