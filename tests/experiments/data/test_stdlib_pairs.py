import numpy as np
import pytest

from experiments.data import stdlib_pairs, text
from experiments.data.stdlib_pairs import generate

SIZES = {"train": 60, "validation": 20, "test": 20}
LENGTH = 256


@pytest.fixture(scope="module")
def splits():
    return generate(0, SIZES, LENGTH)


@pytest.fixture(scope="module")
def files():
    """Names of the files that are long enough, by content."""
    return {
        document.content.replace(b"\t", b" "): document.name
        for document in text.standard_library()
        if len(document.content) >= 4 * LENGTH
    }


def windows(rows, row):
    first, second = rows[row].tobytes().split(b"\t")
    return first, second


def holders(window, files, half):
    """Files that have the window in their first half, 0, or their second one, 1."""
    found = set()
    for content, name in files.items():
        middle = len(content) // 2
        if window in (content[middle:] if half else content[:middle]):
            found.add(name)
    return found


def test_matches_are_of_one_file_and_splits_share_none(splits, files):
    of_split = {}
    for split, rows in splits.items():
        assert len(rows) == SIZES[split]
        assert np.array_equal(rows.labels, np.arange(len(rows)) % 2)
        names = of_split[split] = set()
        for row in range(len(rows)):
            first, second = windows(rows, row)
            firsts, seconds = holders(first, files, 0), holders(second, files, 1)
            assert firsts and seconds
            if rows.labels[row]:
                assert firsts & seconds
            elif len(firsts) == len(seconds) == 1:
                assert firsts != seconds
            if len(firsts) == 1:  # the others are a licence, or blanks
                names |= firsts
    assert not of_split["train"] & (of_split["validation"] | of_split["test"])
    assert not of_split["validation"] & of_split["test"]


def test_windows_are_text_of_their_length(splits):
    for row in range(60):
        for window in windows(splits["train"], row):
            window.decode()
            assert LENGTH - 6 <= len(window) <= LENGTH


def test_cut_characters_are_left_out():
    rng = np.random.default_rng(0)
    for _ in range(20):
        window = stdlib_pairs._window(rng, "aé€𝄞".encode() * 9, 10)
        assert 4 <= len(window) <= 10 and window.decode() in "aé€𝄞" * 9


def test_the_pairs_depend_on_the_seed(splits):
    again, other = generate(0, SIZES, LENGTH), generate(1, SIZES, LENGTH)
    for split, rows in splits.items():
        assert np.array_equal(again[split].values, rows.values)
        assert not np.array_equal(other[split].values, rows.values)


def test_a_python_without_long_sources_is_named():
    with pytest.raises(ValueError, match="Python 3.* at least 4000000000 bytes"):
        generate(0, SIZES, 1_000_000_000)


@pytest.mark.slow
def test_byte_counts_tell_files_apart():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits = generate(0, {"train": 4_000, "validation": 1, "test": 2_000}, 1_024)

    def features(rows):
        counts = np.array(
            [
                [np.bincount([*w], minlength=256) for w in windows(rows, row)]
                for row in range(len(rows))
            ]
        )
        first, second = counts.transpose(1, 0, 2)
        return np.concatenate([first + second, abs(first - second)], axis=1)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=3_000))
    model.fit(features(splits["train"]), splits["train"].labels)
    assert model.score(features(splits["test"]), splits["test"].labels) > 0.55
