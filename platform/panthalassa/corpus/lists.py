"""The word lists that cleaning reads: small text files beside this one, in `lists/`.

One entry a line; `#` begins a comment. Every list is read once a process.
"""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("lists")


@cache
def read_lines(name: str) -> tuple[str, ...]:
    """The entries of a list in their order."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    stripped = (line.partition("#")[0].strip() for line in lines)
    return tuple(line for line in stripped if line)


@cache
def read_words(name: str) -> dict[str, frozenset[str]]:
    """A list whose lines are a language and its words: the words by language."""
    words: dict[str, frozenset[str]] = {}
    for line in read_lines(name):
        language, *rest = line.split()
        words[language] = words.get(language, frozenset()).union(rest)
    return words


@cache
def read_pairs(name: str) -> dict[str, str]:
    """A list whose lines are pairs of a key and a value."""
    pairs: dict[str, str] = {}
    for line in read_lines(name):
        items = line.split()
        pairs.update(zip(items[::2], items[1::2], strict=True))
    return pairs
