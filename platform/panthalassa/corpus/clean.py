"""Cleaning: a document comes in, and leaves cleaner, or does not leave.

    text = drop_boilerplate(normalise(raw))
    removal = judge(Page(text, identify(text).code, url))
    text = mask_pii(text)

Normalisation and masking are functions of a string and stand beside this file. A rule is a pure
function of a page: it returns why the page has to go, with the figure that says so, or None. RULES
has them by name, the cheap ones first; `judge` asks them in turn. Their limits depend on the script
(`limits.py`), and what they measure in common is measured once a page.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import methodcaller
from typing import Final

from panthalassa.corpus.limits import Limits, limits_for
from panthalassa.corpus.lists import read_lines, read_words
from panthalassa.corpus.repetition import Words, duplicate_shares
from panthalassa.corpus.scripts import (
    contains_letter,
    dominant_script,
    has_astral,
    is_spaced,
    split_words,
    units_per_word,
)

REPETITION_WORDS = 1 << 17  # of a long document, the repetition of so many words is looked at
BOILERPLATE_CHARACTERS = 200  # a longer line is prose that mentions what boilerplate says


@dataclass(frozen=True)
class Page:
    """A normalised document as rules see it. `limits` replace those of its script."""

    text: str
    language: str = "und"
    url: str | None = None
    limits_given: Limits | None = None

    @cached_property
    def script(self) -> str:
        return dominant_script(self.text)

    @cached_property
    def limits(self) -> Limits:
        return self.limits_given or limits_for(self.script)

    @cached_property
    def is_spaced(self) -> bool:
        return is_spaced(self.text)

    @cached_property
    def units(self) -> Sequence[str]:
        """Words, or letters where a script has no spaces between words."""
        return self.text.split() if self.is_spaced else split_words(self.text)

    @cached_property
    def words(self) -> Words:
        """The units, counted."""
        return Words.of(self.units)

    @cached_property
    def spaced_words(self) -> Words:
        """What white space delimits."""
        return self.words if self.is_spaced else Words.of(self.text.split())

    @cached_property
    def word_count(self) -> float:
        return len(self.units) / units_per_word(self.script)

    @cached_property
    def lines(self) -> Sequence[str]:
        """The lines that are not empty, stripped."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> Sequence[str]:
        return [part for part in map(str.strip, self.text.split("\n\n")) if part]

    @cached_property
    def repetition(self) -> Words:
        return self.words.first(REPETITION_WORDS)


@dataclass(frozen=True)
class Removal:
    """The rule that removed a page, and why, with the figure and its limit."""

    rule: str
    reason: str


Rule = Callable[[Page], str | None]


def judge(page: Page) -> Removal | None:
    """The first rule that the page breaks; None when it may stay."""
    for name, rule in RULES.items():
        if reason := rule(page):
            return Removal(name, reason)
    return None


def drop_boilerplate(text: str) -> str:
    """The text without short lines on cookies, scripts, sharing and the like (C4)."""
    if not _has_boilerplate(text):
        return text
    lines = text.split("\n")
    return "\n".join(
        line for line in lines if len(line) > BOILERPLATE_CHARACTERS or not _has_boilerplate(line)
    ).strip()


def _has_boilerplate(text: str) -> bool:
    lowered = text.lower()
    return any(
        mark in lowered and any(phrase in lowered for phrase in phrases)
        for mark, phrases in _boilerplate().items()
    )


@cache
def _boilerplate() -> dict[str, list[str]]:
    """The phrases by the piece that each is looked for by first, such as `cookie`: half as many."""
    phrases = read_lines("boilerplate.txt")
    pieces = {word for phrase in phrases for word in phrase.split() if len(word) > 4}
    uses = {piece: sum(piece in phrase for phrase in phrases) for piece in pieces}
    marked = defaultdict(list)
    for phrase in phrases:
        inside = [piece for piece in pieces if piece in phrase]
        mark = max(inside, key=lambda piece: (uses[piece], len(piece), piece), default=phrase)
        marked[mark].append(phrase)
    return dict(marked)


def blocked_url(page: Page) -> str | None:
    """A host of the list; a word of the list in the host, or two in the path: one alone may be the
    title of an article."""
    if page.url is None:
        return None
    host, _, path = re.sub(r"^[a-z+]*://", "", page.url.lower()).partition("/")
    host = host.rpartition("@")[2].partition(":")[0]
    domains = {host[match.end() :] for match in re.finditer(r"^|\.", host)}
    if found := domains.intersection(read_lines("url_hosts.txt")):
        return f"host {min(found)}"
    in_host, in_path = (set(re.split(r"[^a-z]+", part)) for part in (host, path))
    told = []
    for entry in read_lines("url_words.txt"):
        if entry in in_host or (entry.endswith("*") and entry[:-1] in host):
            return f"word {entry.rstrip('*')}"
        told += [entry] if entry in in_path else []
    return f"words {', '.join(told)}" if len(told) > 1 else None


def undecodable(page: Page) -> str | None:
    """Replacement characters and characters of private use."""
    count = len(_UNDECODABLE.findall(page.text))
    if has_astral(page.text):
        count += len(_UNDECODABLE_ASTRAL.findall(page.text))
    return _above("undecodable characters", count / _some(page.text), page.limits.undecodable)


def too_few_words(page: Page) -> str | None:
    return _below("words", page.word_count, page.limits.min_words)


def too_many_words(page: Page) -> str | None:
    """Holds for web pages alone: books are longer."""
    return _above("words", page.word_count, page.limits.max_words) if page.url else None


def word_length(page: Page) -> str | None:
    """Mean characters of a word; of a letter with its marks in scripts without spaces."""
    least, most = page.limits.word_length
    mean = int(page.words.lengths.sum()) / _some(page.units)
    return _below("characters a word", mean, least) or _above("characters a word", mean, most)


def symbols(page: Page) -> str | None:
    """Hashes a word, or ellipses a word."""
    hashes = page.text.count("#")
    ellipses = page.text.count("...") + page.text.count("…")
    ratio = max(hashes, ellipses) / max(1.0, page.word_count)
    return _above("symbols a word", ratio, page.limits.symbols_per_word)


def bullet_lines(page: Page) -> str | None:
    share = sum(line.startswith(_BULLETS) for line in page.lines) / _some(page.lines)
    return _above("lines with a bullet", share, page.limits.bullet_lines)


def ellipsis_lines(page: Page) -> str | None:
    share = sum(line.endswith(("...", "…")) for line in page.lines) / _some(page.lines)
    return _above("lines that end in an ellipsis", share, page.limits.ellipsis_lines)


def alphabetic_words(page: Page) -> str | None:
    share = page.words.count(map(contains_letter, page.words.different)) / _some(page.units)
    return _below("words with a letter", share, page.limits.alphabetic_words)


def stop_words(page: Page) -> str | None:
    """The frequent words of the page's language, if there is a list of them."""
    listed = read_words("stop_words.txt").get(page.language)
    if not listed:
        return None
    found = listed.intersection(map(str.lower, page.spaced_words.different))
    return _below("different stop words", len(found), page.limits.stop_words)


def lorem_ipsum(page: Page) -> str | None:
    """The filler of templates (C4)."""
    return "lorem ipsum" if "lorem ipsum" in page.text.lower() else None


def curly_braces(page: Page) -> str | None:
    ratio = page.text.count("{") / max(1.0, page.word_count)
    return _above("curly braces a word", ratio, page.limits.braces_per_word)


def punctuated_lines(page: Page) -> str | None:
    """Lines that end a sentence, whatever quotes and brackets close behind it."""
    ended = sum(line.rstrip(_CLOSING).endswith(_TERMINAL) for line in page.lines)
    share = ended / _some(page.lines)
    return _below("lines that end a sentence", share, page.limits.punctuated_lines)


def short_lines(page: Page) -> str | None:
    share = sum(len(line) < page.limits.short_line for line in page.lines) / _some(page.lines)
    return _above("short lines", share, page.limits.short_lines)


def adult_words(page: Page) -> str | None:
    """Words of the lists for the page's language and for English."""
    lists = read_words("adult_words.txt")
    listed = lists["en"] | lists.get(page.language, frozenset())
    if units_per_word(page.script) > 1:
        text = page.text.lower()
        count = sum(text.count(word) for word in listed)
    else:
        words = page.spaced_words
        bare = map(_STRIP_PUNCTUATION, map(str.lower, words.different))
        count = words.count(map(listed.__contains__, bare))
    return _above("adult words", count / max(1.0, page.word_count), page.limits.adult_words)


def duplicate_lines(page: Page) -> str | None:
    return _duplicates("lines", page.lines, page.limits)


def duplicate_paragraphs(page: Page) -> str | None:
    return _duplicates("paragraphs", page.paragraphs, page.limits)


def top_ngrams(page: Page) -> str | None:
    """The most frequent 2-, 3- and 4-gram of words."""
    limits = dict(zip(_sizes(page, 2, 4), page.limits.top_ngrams, strict=True))
    for size, hashes in page.repetition.ngrams(list(limits)):
        share = page.repetition.top_share(size, hashes)
        if reason := _above(f"characters in one {size}-gram", share, limits[size]):
            return reason
    return None


def duplicate_ngrams(page: Page) -> str | None:
    """What stands in repeated 5- to 10-grams of words."""
    limits = dict(zip(_sizes(page, 5, 10), page.limits.duplicate_ngrams, strict=True))
    for size, hashes in page.repetition.ngrams(list(limits)):
        share = page.repetition.duplicate_share(size, hashes)
        if reason := _above(f"characters in repeated {size}-grams", share, limits[size]):
            return reason
        if share <= page.limits.duplicate_ngrams[-1]:  # that of longer n-grams is no greater
            return None
    return None


RULES: Final[dict[str, Rule]] = {
    rule.__name__: rule
    for rule in (
        blocked_url,
        undecodable,
        too_few_words,
        too_many_words,
        word_length,
        symbols,
        bullet_lines,
        ellipsis_lines,
        alphabetic_words,
        stop_words,
        lorem_ipsum,
        curly_braces,
        punctuated_lines,
        short_lines,
        adult_words,
        duplicate_lines,
        duplicate_paragraphs,
        top_ngrams,
        duplicate_ngrams,
    )
}
"""Every rule by its name, in the order in which they are asked."""

_UNDECODABLE = re.compile("[\ue000-\uf8ff\ufffd]")
_UNDECODABLE_ASTRAL = re.compile("[\U000f0000-\U0010fffd]")
_BULLETS = ("•", "‣", "⁃", "◦", "▪", "●", "○", "■", "►", "▶", "➤", "·", "*", "- ", "– ", "— ")
_CLOSING = "\"'”’»›)]）」』】》〉*_ "
_STRIP_PUNCTUATION = methodcaller("strip", ".,;:!?\"'“”„‘’«»()[]…")
# ASCII and CJK full stops; Arabic, Urdu, Armenian, Devanagari, Khmer, Ethiopic, Tibetan, Burmese,
# Canadian, Javanese, Lanna, Mongolian and Chakma ones.
_TERMINAL = tuple(";.!?…。！？｡؟۔։।॥។៕።፡፧፨།༎။᙮꧉᪨᪩᠃𑅁𑅂")


def _sizes(page: Page, first: int, last: int) -> range:
    """Sizes of n-grams of `first` to `last` words, in the units of the script."""
    units = units_per_word(page.script)
    return range(first * units, last * units + 1, units)


def _duplicates(what: str, pieces: Sequence[str], limits: Limits) -> str | None:
    count, characters = duplicate_shares(pieces)
    return _above(f"duplicate {what}", count, limits.duplicate_lines) or _above(
        f"characters in duplicate {what}", characters, limits.duplicate_line_characters
    )


def _some(items: Sequence[object]) -> int:
    """Their number, as a divisor."""
    return max(1, len(items))


def _above(what: str, value: float, limit: float) -> str | None:
    return f"{what}: {value:.4g}, at most {limit:.4g}" if value > limit else None


def _below(what: str, value: float, limit: float) -> str | None:
    return f"{what}: {value:.4g}, at least {limit:.4g}" if value < limit else None
