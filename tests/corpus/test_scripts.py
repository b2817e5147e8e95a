"""Words and scripts of every kind of writing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.scripts import UNKNOWN, dominant_script, split_words

anything = st.text(st.characters(exclude_categories=[]))

WORDS = {
    "Latn": ("The sea, deep.", ["The", "sea,", "deep."]),
    "Deva": ("समुद्र गहरा है।", ["समुद्र", "गहरा", "है।"]),
    "Hani": ("海很深。", ["海", "很", "深", "。"]),
    "Thai": ("ที่นี่", ["ที่", "นี่"]),
    "Tibt": ("རྒྱ་མཚོ", ["རྒྱ", "མཚོ"]),
    "Ethi": ("ባሕሩ፡ጥልቅ", ["ባሕሩ", "ጥልቅ"]),
    "Hang": ("바다는 깊다", ["바다는", "깊다"]),
}


@pytest.mark.parametrize(("script", "text", "words"), [(s, *w) for s, w in WORDS.items()])
def test_words_follow_the_script(script: str, text: str, words: list[str]) -> None:
    assert dominant_script(text) == script
    assert split_words(text) == words


@given(anything)
def test_words_hold_all_that_is_not_space(text: str) -> None:
    kept = "".join("".join(split_words(text)).split())
    spaces = {"\u0f0b", "\u0f0c", "\u1361", "\u200b"}
    assert kept.translate(dict.fromkeys(map(ord, spaces))) == "".join(
        character for character in "".join(text.split()) if character not in spaces
    )


@given(anything)
def test_every_text_has_a_script(text: str) -> None:
    assert len(dominant_script(text)) == 4


def test_what_has_no_letters_has_no_script() -> None:
    assert dominant_script("12 + 3 …") == dominant_script("") == UNKNOWN
