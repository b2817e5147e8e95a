"""Repetition, against a slow count of the same."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.repetition import Words, duplicate_shares

words = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=40)
sizes = st.integers(1, 10)


@given(words, sizes)
def test_the_share_of_repeated_ngrams_counts_each_word_once(text: list[str], size: int) -> None:
    seen, covered = set(), set()
    for start in range(len(text) - size + 1):
        ngram = tuple(text[start : start + size])
        if ngram in seen:
            covered.update(range(start, start + size))
        seen.add(ngram)
    expected = sum(len(text[place]) for place in covered) / max(1, len("".join(text)))
    counted = Words.of(text)
    for n, hashes in counted.ngrams([size]):
        assert counted.duplicate_share(n, hashes) == pytest.approx(expected)


@given(words, sizes)
def test_the_share_of_the_most_frequent_ngram(text: list[str], size: int) -> None:
    counts = Counter(tuple(text[i : i + size]) for i in range(len(text) - size + 1))
    most = max(counts.values(), default=0)
    longest = max((len("".join(n)) for n, count in counts.items() if count == most), default=0)
    expected = most * longest / max(1, len("".join(text))) if most > 1 else 0.0
    counted = Words.of(text)
    for n, hashes in counted.ngrams([size]):
        assert counted.top_share(n, hashes) == pytest.approx(expected)


@given(words)
def test_longer_ngrams_repeat_no_more_than_shorter_ones(text: list[str]) -> None:
    counted = Words.of(text)
    shares = [counted.duplicate_share(n, hashes) for n, hashes in counted.ngrams(range(5, 11))]
    assert shares == sorted(shares, reverse=True)


def test_lines_that_came_before_are_duplicates() -> None:
    assert duplicate_shares(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)
    assert duplicate_shares([]) == (0, 0)
