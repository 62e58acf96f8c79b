"""Made-up film reviews: are more opinions in a text good, or bad?

A text is words of an invented language with a space between. Most mean nothing; 5 to
15, an odd number, are opinions: each is one of eight good or of eight bad words, and a
negation before it turns its meaning round. Every opinion is good or bad with equal
chances, and the label, 0 bad or 1 good, is what most of them are.
"""

from dataclasses import dataclass

import numpy as np

from experiments.data.rows import Rows

VERSION = 1  # to be raised when the same seed gives other rows

_SYLLABLES = [first + then for first in "bdfgklmnprstvz" for then in "aeiou"]


def _word(index: int) -> str:
    """Two syllables, other ones for each index below 4,900; often a third one."""
    pair = 1_471 * index % 4_900
    third = _SYLLABLES[index % 70] if index % 2 else ""
    return _SYLLABLES[pair // 70] + _SYLLABLES[pair % 70] + third


BAD, GOOD = [_word(i) for i in range(8)], [_word(i) for i in range(8, 16)]
NEGATION = _word(16)
FILLER = [_word(i) for i in range(17, 217)]
LONGEST = 15 * len(f"{NEGATION} {max(GOOD + BAD, key=len)} ") - 1  # bytes of opinions


@dataclass(frozen=True)
class Settings:
    """How hard the texts are.

    Attributes:
      negation: the share of opinions that are expressed as the opposite, negated.
      min_bytes, max_bytes: the bounds of lengths, drawn with equal chances. Where the
        opinions alone are longer than what is drawn, nothing is put between them.

    Raises ValueError if there cannot be such texts.
    """

    negation: float
    min_bytes: int
    max_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.negation <= 1:
            raise ValueError(f"negation={self.negation}, wanted a share from 0 to 1")
        if not 0 < self.min_bytes <= self.max_bytes or self.max_bytes < LONGEST:
            raise ValueError(
                f"min_bytes={self.min_bytes}, max_bytes={self.max_bytes}: wanted an "
                f"interval that ends at {LONGEST} or above: opinions can be as long"
            )


def generate(seed: int, n_rows: int, settings: Settings) -> Rows:
    """Draw rows 0 to n_rows - 1, each a function of (seed, row) and the settings."""
    texts, labels = [], np.empty(n_rows, np.uint8)
    for row in range(n_rows):
        rng = np.random.Generator(np.random.Philox(key=[seed, row]))
        text, labels[row] = _draw(rng, settings)
        texts.append(np.frombuffer(text.encode(), np.uint8))
    return Rows.of(texts, labels)


def _draw(rng: np.random.Generator, settings: Settings) -> tuple[str, bool]:
    n_opinions = 5 + 2 * rng.integers(6)
    are_good = rng.random(n_opinions) < 0.5
    negated = rng.random(n_opinions) < settings.negation
    which = rng.integers(8, size=n_opinions)
    pieces = []
    for is_good, is_negated, word in zip(are_good, negated, which, strict=True):
        said = (GOOD if is_good != is_negated else BAD)[word]
        pieces.append(f"{NEGATION} {said}" if is_negated else said)
    length = rng.integers(settings.min_bytes, settings.max_bytes + 1)
    room = length - len(" ".join(pieces))
    for word in rng.integers(len(FILLER), size=settings.max_bytes // 5):
        room -= len(FILLER[word]) + 1
        if room < 0:
            break
        pieces.append(FILLER[word])
    order = rng.permutation(len(pieces))
    return " ".join(pieces[i] for i in order), are_good.sum() > n_opinions / 2
