"""Limits: how short, long, repetitive or odd a document may be, by its script.

The defaults are Gopher's (Rae et al. 2021, arXiv 2112.11446, A.1.1), C4's (Raffel et al. 2020, arXiv
1910.10683) and FineWeb's (Penedo et al. 2024, arXiv 2406.17557), which were set for English. What
depends on how a script writes words is set by script, for a limit for one deletes others (Penedo et
al. 2025, arXiv 2506.20920): Malayalam has half as many words as English in the same text, Thai ends
no sentence with a mark.
"""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Limits:
    """Shares are in 0 … 1; `words` are real words, also in scripts without spaces."""

    min_words: int = 50
    """Gopher."""
    max_words: int = 100_000
    """Gopher; holds for web pages alone, for books are longer."""
    word_length: tuple[float, float] = (3, 10)
    """Mean of the lengths of `scripts.split_words`, in characters: least and most; Gopher."""
    symbols_per_word: float = 0.1
    """Hashes, and ellipses; Gopher."""
    bullet_lines: float = 0.9
    """Gopher."""
    ellipsis_lines: float = 0.3
    """Gopher."""
    alphabetic_words: float = 0.8
    """At least so many words have a letter; Gopher."""
    stop_words: int = 2
    """At least so many different ones, in languages with a list of them; Gopher."""
    duplicate_lines: float = 0.3
    """Gopher; paragraphs likewise."""
    duplicate_line_characters: float = 0.2
    """Gopher; paragraphs likewise."""
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Characters in the most frequent 2-, 3- and 4-gram of words; Gopher."""
    duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Characters in repeated 5- to 10-grams of words, never ascending; Gopher."""
    punctuated_lines: float = 0.12
    """At least so many lines end a sentence; 0 where sentences end without a mark; FineWeb."""
    short_line: int = 30
    """Characters of a line that is short; FineWeb."""
    short_lines: float = 0.67
    """FineWeb."""
    braces_per_word: float = 0.05
    """C4 allows none, which also removes what quotes a formula or a template."""
    undecodable: float = 0.005
    """Characters that stand for what could not be decoded (U+FFFD), or are of private use."""
    adult_words: float = 0.01
    """Of the words; C4 allows none, which removes dialects and medicine (Dodge et al. 2021)."""


DEFAULT: Final = Limits(word_length=(2.5, 14))
"""For scripts with spaces that are not named below."""

# Single words of an agglutinative language are short sentences in English.
_AGGLUTINATIVE = replace(DEFAULT, min_words=25, word_length=(4, 20))

# A sentence of law that occurs twice is long in letters.
_SCALED = replace(DEFAULT, duplicate_ngrams=(0.25, 0.22, 0.19, 0.18, 0.15, 0.12))
_LETTERS = replace(_SCALED, word_length=(0.9, 4), punctuated_lines=0)
_IDEOGRAPHS = replace(_SCALED, word_length=(0.9, 2.5), short_line=10, alphabetic_words=0.7)

_BY_SCRIPT: Final = {
    "Latn": replace(DEFAULT, word_length=(2.5, 16)),  # from Hmong to Greenlandic
    "Arab": replace(DEFAULT, word_length=(2.5, 12)),
    "Cans": replace(DEFAULT, min_words=25, word_length=(2, 14)),
    "Cher": replace(DEFAULT, word_length=(2, 12)),
    "Ethi": replace(DEFAULT, min_words=30, word_length=(2, 9)),
    "Hang": replace(DEFAULT, min_words=30, word_length=(1.5, 8), short_line=15),
    "Tibt": replace(DEFAULT, word_length=(1.5, 6), punctuated_lines=0),
    **dict.fromkeys(("Gran", "Knda", "Mlym", "Taml", "Telu", "Thaa"), _AGGLUTINATIVE),
    **dict.fromkeys(("Hani", "Hira", "Kana", "Bopo", "Yiii"), _IDEOGRAPHS),
    **dict.fromkeys(
        ("Bali", "Java", "Khmr", "Lana", "Laoo", "Mymr", "Tale", "Talu", "Tavt", "Thai", "Vaii"),
        _LETTERS,
    ),
}


def limits_for(script: str) -> Limits:
    """The limits of an ISO 15924 script."""
    return _BY_SCRIPT.get(script, DEFAULT)
