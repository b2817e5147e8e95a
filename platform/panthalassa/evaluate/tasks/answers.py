"""Answers to questions compared in any language, as the evaluation of MLQA does it (Lewis et al. 2020).

Case, punctuation and articles do not count, nor does white space. Where words are not spaced, letters
are compared (MLQA does so for Chinese, here it is so for all such scripts). Languages without a list of
articles keep every word.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from panthalassa.corpus.scripts import split_words

ARTICLES = {
    "ar": r"\sال^|ال",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
}
"""What MLQA takes out, by language; in Arabic the article is written with its word."""
ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def words(answer: str, language: str) -> list[str]:
    """What counts of an answer."""
    kept = "".join(
        letter
        for letter in answer.lower()
        if letter not in ASCII_PUNCTUATION and not unicodedata.category(letter).startswith("P")
    )
    if language in ARTICLES:
        kept = re.sub(ARTICLES[language], " ", kept)
    return split_words(kept)


def exact_match(answer: str, right: Sequence[str], language: str) -> float:
    """1 when the answer is one of the right ones, else 0."""
    found = words(answer, language)
    return float(any(found == words(other, language) for other in right))


def f1(answer: str, right: Sequence[str], language: str) -> float:
    """F1 of the words, of the right answer that is the nearest."""
    return max(_overlap(words(answer, language), words(other, language)) for other in right)


def _overlap(found: Sequence[str], wanted: Sequence[str]) -> float:
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0
