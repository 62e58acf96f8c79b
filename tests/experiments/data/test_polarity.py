import numpy as np
import pytest

from experiments.data.polarity import (
    BAD,
    FILLER,
    GOOD,
    LONGEST,
    NEGATION,
    Settings,
    generate,
)

SETTINGS = Settings(negation=0.5, min_bytes=200, max_bytes=1_000)


def words_of(rows, row):
    return rows[row].tobytes().decode("ascii").split(" ")


def judge(words):
    """The opinions of a text, 1 good and 0 bad, and how many are negated."""
    opinions, negated = [], 0
    for i, word in enumerate(words):
        if word in GOOD + BAD:
            turned = i > 0 and words[i - 1] == NEGATION
            opinions.append((word in GOOD) != turned)
            negated += turned
    return opinions, negated


def test_all_words_differ():
    assert len({*GOOD, *BAD, *FILLER, NEGATION}) == 217


def test_labels_are_what_most_opinions_say():
    rows = generate(0, 500, SETTINGS)
    counts, n_negated = [], 0
    for row in range(500):
        words = words_of(rows, row)
        opinions, negated = judge(words)
        assert rows.labels[row] == (np.mean(opinions) > 0.5)
        assert words.count(NEGATION) == negated
        assert set(words) <= {*GOOD, *BAD, *FILLER, NEGATION}
        counts.append(len(opinions))
        n_negated += negated
    assert set(counts) == {5, 7, 9, 11, 13, 15}
    # Both within four standard errors of a half.
    assert abs(n_negated / sum(counts) - 0.5) < 2 / np.sqrt(sum(counts))
    assert abs(rows.labels.mean() - 0.5) < 2 / np.sqrt(500)


def test_lengths():
    lengths = generate(0, 500, SETTINGS).lengths
    longest_word = 6
    assert 200 - longest_word <= lengths.min() < 230 and 970 < lengths.max() <= 1_000
    shortest = Settings(negation=1.0, min_bytes=1, max_bytes=LONGEST)
    assert generate(0, 500, shortest).lengths.max() <= LONGEST


@pytest.mark.parametrize("negation", [0, 1])
def test_negation(negation):
    rows = generate(0, 50, Settings(negation, 200, 300))
    for row in range(50):
        opinions, negated = judge(words_of(rows, row))
        assert negated == negation * len(opinions)


def test_a_row_is_a_function_of_seed_and_row():
    few, many, others = (
        generate(seed, n, SETTINGS) for seed, n in ((0, 3), (0, 9), (1, 3))
    )
    assert few[2].tobytes() == many[2].tobytes() != others[2].tobytes()
    assert len({many[row].tobytes() for row in range(9)}) == 9


def test_the_rows_are_the_same_for_ever():
    # A release of numpy that changes this changes every run.
    text = generate(0, 1, SETTINGS)[0].tobytes()
    assert text.startswith(b"kekeke nezaza sedudu tege rududu nazaza bapa pifi nodada")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ((1.5, 200, 1_000), "negation=1.5"),
        ((0.5, 0, 1_000), "min_bytes=0"),
        ((0.5, 300, 200), "max_bytes=200"),
        ((0.5, 100, LONGEST - 1), f"ends at {LONGEST}"),
    ],
)
def test_wrong_settings_are_named(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(*wrong)


@pytest.mark.slow
def test_what_linear_models_see():
    """The figures that a result is put beside, see `experiments.tasks.text`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    from experiments.tasks.text import _LINEAR

    kinds = {
        "byte counts": CountVectorizer(analyzer="char"),
        "word counts": CountVectorizer(),
        "word pair counts": CountVectorizer(ngram_range=(1, 2)),
    }
    for settings, figures in _LINEAR.items():
        rows = generate(0, 6_000, settings)
        texts = [rows[row].tobytes().decode() for row in range(6_000)]
        for kind, figure in figures.items():
            counts = kinds[kind].fit_transform(texts).astype(float)
            model = LogisticRegression(C=0.1, max_iter=5_000)
            model.fit(counts[:4_000], rows.labels[:4_000])
            found = model.score(counts[4_000:], rows.labels[4_000:])
            # Two standard errors of 2,000 reviews.
            assert found == pytest.approx(figure, abs=0.022), (settings, kind)
