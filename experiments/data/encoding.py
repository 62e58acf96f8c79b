"""From UTF-8 text to tokens: one a byte, or one a character, and an end token."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Literal, Protocol, get_args

import numpy as np

Unit = Literal["byte", "char"]

PAD = 0


class Encoding(Protocol):
    """Tokens of text, of which 0 is padding.

    Attributes:
      eos: the token that ends every text.
      size: how many tokens there are.
      dtype: the smallest that holds them.
    """

    eos: int
    size: int
    dtype: np.dtype

    def tokens(self, text: bytes, limit: int) -> np.ndarray:
        """Return the tokens of the first `limit` units of a text, without the end."""


class Bytes:
    """`<pad>` 0, `<eos>` 1, the byte b is b + 2."""

    eos, size, dtype = 1, 258, np.dtype(np.uint16)

    def tokens(self, text: bytes, limit: int) -> np.ndarray:
        return np.frombuffer(text[:limit], np.uint8).astype(self.dtype) + 2


class Characters:
    """`<pad>` 0, `<unk>` 1, `<eos>` 2, then the characters of an alphabet in its order.

    `<unk>` is every other character.
    """

    unk, eos = 1, 2

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.size = 3 + len(alphabet)
        self.dtype = np.min_scalar_type(self.size - 1)
        self._tokens = np.full(0x110000, self.unk, self.dtype)
        self._tokens[_code_points(alphabet)] = np.arange(3, self.size)

    def tokens(self, text: bytes, limit: int) -> np.ndarray:
        return self._tokens[_code_points(beginning(text, limit))]


def check(unit: Unit, width: int) -> None:
    """Raise ValueError if there is no such unit, or no width for a text and its end."""
    if unit not in get_args(Unit):
        raise ValueError(f"unit={unit!r}, wanted one of {get_args(Unit)}")
    if width < 2:
        raise ValueError(f"max_length={width}, wanted 2 at least")


def of_unit(
    unit: Unit, texts: Iterable[bytes], width: int, min_frequency: int
) -> Encoding:
    """Return the encoding of a unit; that of characters has those of these texts."""
    if unit == "byte":
        return Bytes()
    return Characters(alphabet(texts, width - 1, min_frequency))


def alphabet(texts: Iterable[bytes], limit: int, min_frequency: int) -> str:
    """Return the characters that the first `limit` of each text hold so often.

    The frequent ones come first, then those with the smaller code point.
    """
    counts = np.zeros(0x110000, np.int64)
    texts = iter(texts)
    while some := "".join(beginning(text, limit) for text in islice(texts, 1_000)):
        counts += np.bincount(_code_points(some), minlength=len(counts))
    found = np.flatnonzero(counts >= min_frequency)
    return "".join(map(chr, found[np.argsort(-counts[found], kind="stable")]))


def beginning(text: bytes, limit: int) -> str:
    """Return the first `limit` characters of UTF-8 text.

    Raises UnicodeDecodeError if it is not UTF-8 up to there.
    """
    enough = text[: 4 * limit]  # no character has more bytes
    is_whole = len(enough) == len(text)  # else its last character may be cut
    return codecs.utf_8_decode(enough, "strict", is_whole)[0][:limit]


def padded(
    encoding: Encoding, texts: Sequence[bytes], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens (n, width), zeros on the right, and their lengths (n,) int32.

    A text that does not fit loses its end; the end token is there in any case.
    """
    batch = np.full((len(texts), width), PAD, encoding.dtype)
    lengths = np.empty(len(texts), np.int32)
    for row, text in enumerate(texts):
        tokens = encoding.tokens(text, width - 1)
        batch[row, : len(tokens)] = tokens
        batch[row, len(tokens)] = encoding.eos
        lengths[row] = len(tokens) + 1
    return batch, lengths


def shares_cut(
    splits: Mapping[str, Iterable[bytes]], width: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the share of texts that lose their end, of each split and in each unit."""
    shares = {}
    for split, texts in splits.items():
        cut = [
            # No text has more characters than bytes.
            (len(text) >= width, len(text) >= width == len(beginning(text, width)))
            for text in texts
        ]
        in_bytes, in_chars = np.mean(cut, axis=0).tolist()
        shares[split] = {"byte": in_bytes, "char": in_chars}
    return {f"share_longer_than_{width - 1}": shares}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
