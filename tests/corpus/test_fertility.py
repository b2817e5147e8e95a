"""Fertility and parity: ratios of counts, and on which text they stand."""

from pathlib import Path

import pytest
import udhr

from panthalassa.corpus.documents import Document
from panthalassa.corpus.fertility import (
    TextCounts,
    counts_of,
    fertilities,
    worst_parity,
)
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.sources import find_files, read_documents
from panthalassa.corpus.tokenizer import Tokenizer, read_tokenizer
from panthalassa.storage import Storage

COUNTS = {
    "th": TextCounts(tokens=300, characters=600, text_bytes=1800),
    "en": TextCounts(tokens=100, characters=400, text_bytes=400),
    "zh": TextCounts(tokens=160, characters=200, text_bytes=600),
    "none": TextCounts(tokens=0, characters=0, text_bytes=0),
}


def test_without_parallel_text_parity_is_that_of_tokens_a_character_and_says_so() -> None:
    en, th, zh = fertilities(COUNTS)
    assert (en.domain, en.per_character, en.per_byte, en.parity) == ("en", 0.25, 0.25, 1)
    assert (th.domain, th.per_character, th.per_byte, th.parity) == ("th", 0.5, 1 / 6, 2)
    assert (zh.domain, zh.tokens, zh.parity) == ("zh", 160, pytest.approx(3.2))
    assert {row.basis for row in (en, th, zh)} == {"tokens a character"}
    assert worst_parity([en, th, zh]) == zh


def test_parallel_text_decides_where_it_has_both_sides() -> None:
    """Chinese says the same in fewer characters: what looked worst is not."""
    en, th, zh = fertilities(COUNTS, parallel={"en": 10, "th": 25})
    assert (en.parity, th.parity, zh.parity) == (1, 2.5, pytest.approx(3.2))
    assert [row.basis for row in (en, th, zh)] == ["parallel text"] * 2 + ["tokens a character"]
    assert worst_parity([en, th, zh]) == th
    assert fertilities(COUNTS, parallel={"th": 25}) == fertilities(COUNTS)


def test_without_the_reference_there_is_no_parity() -> None:
    rows = fertilities({"th": COUNTS["th"]})
    assert [row.parity for row in rows] == [None]
    assert worst_parity(rows) is None


def test_the_counts_of_a_corpus_are_those_of_its_texts(
    prepared: tuple[Manifest, Storage], sources: Path
) -> None:
    """Tokens without delimiters, also of documents that are cut."""
    manifest, storage = prepared
    tokenizer = read_tokenizer(storage, manifest)
    expected: dict[str, list[str]] = {}
    for file in find_files([str(sources)]):
        for document in read_documents(file):
            assert isinstance(document, Document)
            expected.setdefault(document.domain, []).append(document.text)
    found = counts_of(
        manifest.tokens(), manifest.documents, manifest.characters, manifest.text_bytes
    )
    assert found == {
        domain: TextCounts(
            sum(len(tokenizer.encode(text)) for text in texts),
            sum(map(len, texts)),
            sum(len(text.encode()) for text in texts),
        )
        for domain, texts in expected.items()
    }


def test_the_declaration_of_human_rights_costs_some_languages_more_than_english() -> None:
    """By its translations, which say the same: a tokenizer of English alone is unfair to Thai."""
    texts = {
        found.language: "\n".join(found.paragraphs)
        for found in udhr.read_declarations(udhr.folder())
        if found.language in {"en", "de", "th"}
    }
    worst = {}
    for name, trained_on in (("english", ["en"]), ("all", list(texts))):
        tokenizer = Tokenizer.train([texts[language] for language in trained_on], 600)
        tokens = {language: len(tokenizer.encode(text)) for language, text in texts.items()}
        counts = {
            language: TextCounts(tokens[language], len(text), len(text.encode()))
            for language, text in texts.items()
        }
        row = worst_parity(fertilities(counts, parallel=tokens))
        assert row is not None
        assert (row.domain, row.basis) == ("th", "parallel text")
        worst[name] = row.parity
    assert worst["english"] > 2 * worst["all"] > 2
