import numpy as np
import pytest

from experiments.data import encoding
from experiments.data.encoding import Bytes, Characters, alphabet, beginning, padded

MIXED = "a é€ 𝄞!".encode()  # characters of one, two, three and four bytes


def test_bytes():
    tokens = Bytes().tokens(MIXED, 5)
    assert tokens.tolist() == [byte + 2 for byte in MIXED[:5]]
    assert Bytes().size == 258 and Bytes().tokens(b"\xff", 1).tolist() == [257]


def test_characters():
    encoding = Characters("ea€")
    assert encoding.tokens(MIXED, 5).tolist() == [4, 1, 1, 5, 1]
    assert encoding.size == 6 and encoding.tokens(MIXED, 5).dtype == np.uint8
    many = Characters("".join(map(chr, range(300, 600))))
    assert many.tokens(chr(599).encode(), 9).tolist() == [302]


@pytest.mark.parametrize("limit", range(9))
def test_a_beginning_is_whole_characters(limit):
    assert beginning(MIXED, limit) == MIXED.decode()[:limit]
    assert beginning(5 * MIXED, limit) == (5 * MIXED.decode())[:limit]


def test_what_is_not_utf8_is_refused():
    for text in (b"ab\xff", b"ab\xc3", b"\xffabcdefgh"):
        with pytest.raises(UnicodeDecodeError):
            beginning(text, 3)


def test_the_alphabet_is_by_frequency_then_code_point():
    texts = [b"bbbaaaccx", "ééz".encode(), b"bbb"] * 5
    assert alphabet(texts, 100, min_frequency=10) == "bacé"
    assert alphabet(iter(texts), 100, min_frequency=1) == "bacéxz"
    # Of what follows the first five characters nothing counts.
    assert alphabet(texts, 5, min_frequency=10) == "baé"
    assert alphabet([b"a"] * 2_500 + [b"b"], 1, min_frequency=2_500) == "a"


def test_the_end_token_is_always_there():
    texts = [b"", b"ab", b"abc", b"abcdefgh"]
    tokens, lengths = padded(Bytes(), texts, 4)
    a, b, c = (2 + byte for byte in b"abc")
    assert tokens.tolist() == [[1, 0, 0, 0], [a, b, 1, 0], [a, b, c, 1], [a, b, c, 1]]
    assert lengths.tolist() == [1, 3, 4, 4] and lengths.dtype == np.int32
    tokens, lengths = padded(Characters("ab"), texts, 4)
    assert tokens.tolist() == [[2, 0, 0, 0], [3, 4, 2, 0], [3, 4, 1, 2], [3, 4, 1, 2]]
    assert lengths.tolist() == [1, 3, 4, 4]


def test_shares_of_what_is_cut():
    texts = [b"abc", b"abcd", "aéé".encode(), "aéée".encode()]
    assert encoding.shares_cut({"test": iter(texts)}, 4) == {
        "share_longer_than_3": {"test": {"byte": 0.75, "char": 0.5}}
    }


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="unit='word', wanted one of"):
        encoding.check("word", 9)
    with pytest.raises(ValueError, match="max_length=1, wanted 2 at least"):
        encoding.check("byte", 1)
