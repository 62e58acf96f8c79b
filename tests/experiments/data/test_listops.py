import pytest

from experiments.data.listops import (
    CLOSE,
    EOS,
    MAX,
    MED,
    MIN,
    PAD,
    SM,
    SYMBOLS,
    ZERO,
    Grammar,
    evaluate,
)


def expression(operator, *arguments):
    """Tokens of one operator on digits."""
    return [operator, *(ZERO + a for a in arguments), CLOSE]


def test_the_vocabulary_has_17_symbols():
    assert len(SYMBOLS) == 17
    assert SYMBOLS[PAD] == "<pad>"
    assert SYMBOLS[EOS] == "<eos>"
    assert SYMBOLS[ZERO:] == tuple("0123456789")


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        ([ZERO + 5], 5),
        (expression(MIN, 3, 7), 3),
        (expression(MAX, 3, 7, 2), 7),
        (expression(MED, 3, 4), 3),
        (expression(MED, 9, 0, 1), 1),
        (expression(MED, 9, 0, 1, 4), 2),
        (expression(SM, 9, 9), 8),
        ([MAX, ZERO, *expression(MIN, 4, 6), *expression(SM, 9, 8), CLOSE], 7),
    ],
)
def test_evaluate(tokens, value):
    assert evaluate(tokens) == value


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "0 expressions"),
        ([ZERO, ZERO], "2 expressions"),
        ([MIN, ZERO, ZERO], "1 operators are not closed"),
        ([MIN, CLOSE], "token 2"),
        ([ZERO, CLOSE], "token 2"),
        ([MIN, ZERO, PAD, CLOSE], "token 3, '<pad>'"),
    ],
)
def test_evaluate_refuses_what_is_no_expression(tokens, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate(tokens)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_depth": 1},
        {"max_args": 1},
        {"min_length": 0},
        {"min_length": 50, "max_length": 51},
        {"max_depth": 2, "max_args": 3, "min_length": 5},  # 5 tokens at most
    ],
)
def test_an_impossible_grammar_is_refused(wrong):
    with pytest.raises(ValueError, match="Grammar"):
        Grammar(**wrong)
