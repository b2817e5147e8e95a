"""Every string becomes text in NFC; encoding errors are mended, and meaning stays."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.normalise import has_encoding_error, normalise

anything = st.text(st.characters(exclude_categories=[]))
garbled = st.text().map(lambda text: text.encode().decode("latin-1"))


@given(st.one_of(anything, garbled))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert unicodedata.is_normalized("NFC", once)
    assert normalise(once) == once
    once.encode()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_read_in_the_wrong_encoding_is_mended(encoding: str) -> None:
    text = "Überall schäumte die müde See.\nNothing is wrong here."
    assert normalise(text.encode().decode(encoding)) == text


KEPT = [
    "می‌خواهم",
    "👨‍👩‍👧",
    "ភាសា\u200bខ្មែរ",
    "« É… »",
    "ﬁne",
    "“quotes”",
    "10\u00a0km",
    "&amp;",
    "Ａ",
]


@pytest.mark.parametrize("text", KEPT)
def test_what_carries_meaning_stays(text: str) -> None:
    assert normalise(text) == text


def test_controls_breaks_and_empty_space_go() -> None:
    assert normalise("\ufeffa\0b\x07 \t\r\nc\u2028\n\n\nd\ud800\U0001ffff co\xadop \n") == (
        "ab\nc\n\nd coop"
    )


def test_ordinary_text_is_not_flagged() -> None:
    assert not has_encoding_error("Çok güzel, déjà vu, größer, naïve, ñandú, Ελληνικά, 海")
