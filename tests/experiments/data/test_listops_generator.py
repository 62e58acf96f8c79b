import hashlib

import numpy as np
import pytest

from experiments.data.listops import (
    CLOSE,
    MIN,
    SM,
    SYMBOLS,
    ZERO,
    Grammar,
    apply,
    evaluate,
)
from experiments.data.listops_generator import draw

OFFICIAL = Grammar()
TINY = Grammar(min_length=10, max_length=128, max_depth=6, max_args=5)


def first_attempts(grammar, n_rows, seed=0):
    return draw(grammar, seed, np.arange(n_rows), np.zeros(n_rows, np.int64))


@pytest.fixture(scope="module")
def official():
    return first_attempts(OFFICIAL, 2_000)


def digest(tokens):
    return hashlib.sha256(np.concatenate(tokens).tobytes()).hexdigest()


def test_rows_are_the_same_for_ever():
    # Whoever changes these raises listops_generator.VERSION.
    first = first_attempts(TINY, 1).tokens[0]
    assert " ".join(SYMBOLS[token] for token in first) == (
        "[MED [MED [MED 4 4 5 4 ] [MIN 8 [SM [MIN 4 2 ] 8 ] "
        "[MED [MED 5 6 ] 7 3 2 ] ] ] 7 5 ]"
    )
    tiny = first_attempts(TINY, 100).tokens
    assert digest(tiny).startswith("f328f0735a52092e")
    official = first_attempts(OFFICIAL, 10, seed=2**64 - 1).tokens
    assert digest(official).startswith("f832eaa7e89c2b2e")


@pytest.mark.parametrize("grammar", [TINY, OFFICIAL])
def test_a_row_does_not_depend_on_the_rows_beside_it(grammar):
    together = first_attempts(grammar, 30)
    for row in (0, 7, 29):
        alone = draw(grammar, 0, np.array([row]), np.array([0]))
        assert np.array_equal(alone.tokens[0], together.tokens[row])
        assert alone.values[0] == together.values[row]
        assert alone.attempts[0] == together.attempts[row]


def test_an_accepted_attempt_is_drawn_again_and_the_next_one_differs():
    rows = np.arange(20)
    drawn = first_attempts(TINY, 20)
    again = draw(TINY, 0, rows, drawn.attempts)
    assert np.array_equal(again.attempts, drawn.attempts)
    assert digest(again.tokens) == digest(drawn.tokens)
    later = draw(TINY, 0, rows, drawn.attempts + 1)
    assert np.all(later.attempts > drawn.attempts)
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(later.tokens, drawn.tokens, strict=True)
    )


def test_seeds_give_other_rows():
    first, second = (first_attempts(TINY, 50, seed=seed).tokens for seed in (0, 1))
    assert sum(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) < 3


@pytest.mark.parametrize("grammar", [TINY, OFFICIAL, Grammar(1, 9, 2, 3)])
def test_values_are_those_of_the_evaluator(grammar):
    drawn = first_attempts(grammar, 200)
    for tokens, value in zip(drawn.tokens, drawn.values, strict=True):
        assert grammar.min_length < len(tokens) < grammar.max_length
        assert evaluate(tokens.tolist()) == value


def length_distribution(grammar):
    """The exact probability of every length, by recursion from the leaves up."""
    node = np.zeros(grammar.max_length)
    node[1] = 1.0  # at max_depth: a digit
    for _ in range(grammar.max_depth - 1):
        operator = np.zeros_like(node)
        arguments = node
        for _ in range(2, grammar.max_args + 1):
            arguments = np.convolve(arguments, node)[: len(node)]
            operator[2:] += arguments[:-2] / (grammar.max_args - 1)
        node = operator / 4
        node[1] += 3 / 4
    operator[: grammar.min_length + 1] = 0
    return operator / operator.sum()


@pytest.mark.parametrize(
    ("grammar", "n_rows"),
    [(TINY, 5_000), (OFFICIAL, 2_000), (Grammar(1, 30, 3, 4), 5_000)],
)
def test_lengths_have_their_exact_distribution(grammar, n_rows):
    lengths = [len(tokens) for tokens in first_attempts(grammar, n_rows).tokens]
    found = np.bincount(lengths, minlength=grammar.max_length)
    expected = n_rows * length_distribution(grammar)
    # About 20 bins of equal probability.
    bins = (np.cumsum(expected) / n_rows * 20 - 1e-9).astype(int)
    found, expected = (np.bincount(bins, counts) for counts in (found, expected))
    used = expected > 0
    chi2 = np.sum((found - expected)[used] ** 2 / expected[used])
    degrees = used.sum() - 1
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5


def test_all_nine_levels_are_there(official):
    for tokens in official.tokens:
        steps = (tokens >= MIN) & (tokens <= SM)
        depth = np.cumsum(steps.astype(int) - (tokens == CLOSE))
        assert depth.max() == 9
        assert depth[-1] == 0 and depth[:-1].min() == 1


def test_frequencies(official):
    n = len(official.values)
    expected = np.array(
        [0.169, 0.092, 0.074, 0.081, 0.089, 0.087, 0.079, 0.074, 0.086, 0.170]
    )
    found = np.bincount(official.values, minlength=10) / n
    # The expected ones come from 30,000 rows.
    error = np.sqrt(expected * (1 - expected) * (1 / n + 1 / 30_000))
    assert np.all(np.abs(found - expected) < 4 * error)

    roots = np.bincount([tokens[0] for tokens in official.tokens])[MIN : SM + 1]
    assert roots.sum() == n
    assert np.sum((roots - n / 4) ** 2 / (n / 4)) < 21.1  # chi2(3), p = 1e-4

    shares = np.bincount(np.concatenate(official.tokens), minlength=17)
    shares = shares / shares.sum()
    assert shares[CLOSE] == pytest.approx(0.142, abs=1e-3)
    assert shares[MIN : SM + 1] == pytest.approx(0.0356, abs=5e-4)
    assert shares[ZERO:] == pytest.approx(0.0715, abs=5e-4)


def test_numbers_of_arguments_are_uniform():
    # Of depth 2 nothing is refused, so the choice shows as it was made.
    drawn = first_attempts(Grammar(1, 100, 2, 10), 9_000)
    counts = np.bincount([len(tokens) - 2 for tokens in drawn.tokens])[2:11]
    assert counts.sum() == 9_000
    assert np.sum((counts - 1_000) ** 2 / 1_000) < 31.8  # chi2(8), p = 1e-4


def evaluate_upper(tokens, levels):
    """The value to who sees `levels` of operators below the root's and no deeper ones.

    A deeper operator is left out; an operator without arguments is worth 9.
    """
    enclosing, arguments = [], []
    for token in tokens:
        if token >= ZERO:
            arguments.append(token - ZERO)
        elif token >= MIN:
            enclosing.append((token, arguments))
            arguments = []
        else:
            operator, outer = enclosing.pop()
            if len(enclosing) <= levels:
                outer.append(apply(operator, arguments) if arguments else 9)
            arguments = outer
    return arguments[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grammar", "majority", "accuracies"),
    [
        (OFFICIAL, 0.170, [0.483, 0.676, 0.799, 0.874]),
        # From 250,000 rows (40,000 for the last two) of a recursive program.
        (TINY, 0.116, [0.428, 0.685, 0.856, 0.933]),
    ],
)
def test_partial_strategies_are_as_good_as_they_should_be(
    grammar, majority, accuracies
):
    drawn = first_attempts(grammar, 5_000)
    assert np.bincount(drawn.values).max() / 5_000 == pytest.approx(majority, abs=0.01)
    for levels, accuracy in enumerate(accuracies):
        right = [
            evaluate_upper(tokens.tolist(), levels) == value
            for tokens, value in zip(drawn.tokens, drawn.values, strict=True)
        ]
        # The standard error is .007 here, and .004 or less in what is expected.
        assert np.mean(right) == pytest.approx(accuracy, abs=0.01), levels
