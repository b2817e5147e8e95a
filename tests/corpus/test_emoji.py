"""Emoji and their names in 20 languages, the pairs of `make vision-demo`, read as for a corpus."""

import io
from pathlib import Path

import numpy as np
import pytest
from emoji import (
    LANGUAGES,
    SQUARES,
    Emoji,
    folder,
    prompt_of,
    read_emoji,
    split,
    varied,
    write_pairs,
)
from PIL import Image

from panthalassa.corpus.documents import Document
from panthalassa.corpus.sources import list_files, read_documents

SOME = 20
LARGEST = 1 << 20


@pytest.fixture(scope="module")
def emoji() -> list[Emoji]:
    return read_emoji(folder())


def test_every_language_has_a_name_of_every_emoji(emoji: list[Emoji]) -> None:
    assert len(emoji) > 1500
    assert len({each.code for each in emoji}) == len(emoji)
    names = {language: {each.names[language] for each in emoji} for language in LANGUAGES}
    assert {len(each) for each in names.values()} == {len(emoji)}, "a name tells one emoji"


def test_near_pictures_are_on_one_side(emoji: list[Emoji]) -> None:
    learned, held_out = split(emoji)
    assert {each.code for each in learned}.isdisjoint(each.code for each in held_out)
    assert len(learned) + len(held_out) == len(emoji)
    assert 0.05 < len(held_out) / len(emoji) < 0.15
    for near in (("1f550", "1f551"), ("1f9b8", "1f9b8-200d-2642-fe0f")):  # clocks, superheroes
        sides = {
            number
            for number, side in enumerate((learned, held_out))
            for each in side
            if each.code in near
        }
        assert len(sides) == 1


@pytest.mark.parametrize("looks", [{}, {"en": 3, "de": 2, "fr": 1}])
def test_files_of_each_kind_say_the_same(
    emoji: list[Emoji], tmp_path: Path, looks: dict[str, int]
) -> None:
    write_pairs(emoji[:SOME], tmp_path, looks)
    found = {language: list[Document]() for language in LANGUAGES}
    for file in list_files([str(tmp_path)], images=True).files:
        for document in read_documents(file, LARGEST):
            assert isinstance(document, Document), document
            found[document.domain or ""].append(document)
    for language, documents in found.items():
        expected = [
            (f"{prompt_of(language)} {each.names[language]}", seen.picture)
            for each in emoji[:SOME]
            for seen in (
                [varied(each, f"{language}{number}") for number in range(looks.get(language, 0))]
                or [each]
            )
        ]
        assert [(each.text, each.image) for each in documents] == expected


def test_an_emoji_has_many_looks_and_each_is_always_the_same(emoji: list[Emoji]) -> None:
    seen = {look: varied(emoji[0], look) for look in ("en0", "en1", "de0")}
    assert seen["en1"] == varied(emoji[0], "en1")
    pictures = [np.asarray(Image.open(io.BytesIO(each.picture))) for each in seen.values()]
    assert {picture.shape for picture in pictures} == {(SQUARES, SQUARES, 4)}
    assert len({picture.tobytes() for picture in pictures}) == len(seen)
    assert {each.code for each in seen.values()} == {f"{emoji[0].code}-{look}" for look in seen}
