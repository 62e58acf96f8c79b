import numpy as np
import pytest

from experiments.data import listops_rows
from experiments.data.listops import Grammar
from experiments.data.listops_generator import draw
from experiments.data.listops_rows import generate

TINY = Grammar(min_length=10, max_length=128, max_depth=6, max_args=5)
FEW = Grammar(min_length=3, max_length=5, max_depth=2, max_args=2)  # 400 expressions


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(listops_rows, "_CHUNK", 50)


def same(a, b):
    return np.array_equal(a.values, b.values) and np.array_equal(a.labels, b.labels)


def test_any_number_of_workers_gives_the_same_rows():
    one, two, seven = (generate(TINY, 3, 400, n_workers=n) for n in (1, 2, 7))
    assert same(one, two) and same(one, seven)
    alone = draw(TINY, 3, np.array([123]), np.array([0]))
    assert np.array_equal(one[123], alone.tokens[0])


def test_no_two_rows_are_equal():
    rows = generate(FEW, 0, 350, n_workers=2)
    assert len({rows[i].tobytes() for i in range(350)}) == 350
    assert same(rows, generate(FEW, 0, 350, n_workers=1))


def test_more_rows_begin_with_the_same_ones():
    assert same(generate(FEW, 0, 120), generate(FEW, 0, 300).part(0, 120))


def test_it_says_how_far_it_is():
    done = []
    generate(TINY, 0, 120, n_workers=2, report=done.append)
    assert done == [50, 100, 120]


def test_a_grammar_of_nearly_nothing_is_refused():
    # 46 tokens, the most there are: 14 nodes must become operators.
    with pytest.raises(ValueError, match="2000 attempts drew nothing"):
        generate(Grammar(45, 47, 5, 2), 0, 1, n_workers=1)
