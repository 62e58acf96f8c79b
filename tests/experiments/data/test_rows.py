import numpy as np

from experiments.data.rows import Rows

ROWS = Rows.of(
    [np.array(row, np.uint8) for row in ([1, 2, 3], [], [4], [5, 6])], np.arange(4)
)


def test_rows_lie_end_to_end():
    assert len(ROWS) == 4
    assert ROWS.lengths.tolist() == [3, 0, 1, 2]
    assert ROWS[3].tolist() == [5, 6]


def test_a_table_is_not_copied():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    rows = Rows.table(images, np.array([1, 0]))
    assert len(rows) == 2 and rows.lengths.tolist() == [12, 12]
    assert np.array_equal(rows[1], images[1].ravel())
    assert np.shares_memory(rows.values, images)


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


def test_rows_taken():
    taken = ROWS.take(np.array([3, 1, 3]))
    assert [taken[row].tolist() for row in range(3)] == [[5, 6], [], [5, 6]]
    assert taken.labels.tolist() == [3, 1, 3]
