"""Decontamination: evaluation files come in; which documents share a long passage with one goes out.

A passage is WORDS words in a row, without regard to letter case, punctuation and compatibility forms
(NFKC). Thirteen is what Brown et al., Language models are few-shot learners, 2020, appendix C, took
for all but short texts, and most have since. Where a script puts no spaces between words, letters are
counted instead: so many as thirteen words have in that script (`scripts.units_per_word`).

Each passage of the evaluations is a number of 64 bits in one sorted array, 8 bytes a passage, which
all tasks of a node share. A document of n words meets one of m passages by chance with a probability
of n m / 2^64: over a corpus of 10^12 words and 10^7 passages half a document is lost to that.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from panthalassa import config
from panthalassa.corpus.documents import Problem, SourceFile
from panthalassa.corpus.minhash import SEPARATORS, UNSPACED, Hashes, hash_tokens, mix, slices
from panthalassa.corpus.scripts import dominant_script, units_per_word
from panthalassa.corpus.sources import find_files, read_documents
from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage

WORDS = 13
WORD = 12
"""The weight of a word, which letters of scripts without spaces have a whole part of."""
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 2**64)


@dataclass(frozen=True)
class Contamination:
    """The passages of evaluation files: `passages` [n], ascending, each with the index of its file in
    `names` (`owners` [n]). Of a passage of several files the first has it. `short` counts by file the
    texts that have fewer than WORDS words, and so no passage."""

    names: tuple[str, ...]
    passages: Hashes
    owners: NDArray[np.uint16]
    short: dict[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides which documents are found."""
        found = hashlib.sha256(repr((WORDS, self.names)).encode())
        found.update(self.passages.tobytes())
        found.update(self.owners.tobytes())
        return found.hexdigest()

    def warnings(self) -> Iterator[str]:
        """A line for each file with texts that nothing can be found by."""
        for name, count in self.short.items():
            if count:
                yield (
                    f"{count} texts of the evaluation {name} have fewer than {WORDS} words, and nothing "
                    "is found by them"
                )

    def find(self, texts: pa.ChunkedArray) -> list[str | None]:
        """For each text the file that it shares a passage with, the first of several; else None."""
        found: list[str | None] = []
        for start, stop in slices(texts):
            passages, text = passages_of(texts[start:stop])
            order = np.argsort(passages)  # neighbours are then searched for in the same memory
            passages = passages[order]
            at = np.searchsorted(self.passages, passages)
            at[at == len(self.passages)] = 0
            hits = np.flatnonzero(self.passages[at] == passages) if len(self.passages) else at[:0]
            first = np.full(stop - start, len(self.names))
            np.minimum.at(first, text[order[hits]], self.owners[at[hits]])
            found += [self.names[i] if i < len(self.names) else None for i in first.tolist()]
        return found


def build(evaluations: Iterable[tuple[str, Iterable[str]]]) -> Contamination:
    """From files, each a name and its texts."""
    names: list[str] = []
    short: dict[str, int] = {}
    passages, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)]
    for name, texts in evaluations:
        listed = pa.chunked_array([pa.array(texts, pa.large_string())])
        with_passage: set[int] = set()
        for start, stop in slices(listed):
            found, text = passages_of(listed[start:stop])
            with_passage.update((np.unique(text) + start).tolist())
            passages.append(np.unique(found))
            owners.append(np.full(len(passages[-1]), len(names), np.uint16))
        names.append(name)
        short[name] = len(listed) - len(with_passage)
    distinct, first = np.unique(np.concatenate(passages), return_index=True)
    return Contamination(tuple(names), distinct, np.concatenate(owners)[first], short)


def read_evaluations(corpus: config.Corpus) -> Contamination | None:
    """The passages of `corpus.evaluation_files`, or None when there are none of these.

    Raises CorpusError for what can not be read or has no passage: it would go unnoticed otherwise.
    """
    if not corpus.evaluation_files:
        return None
    files = [file for place in corpus.evaluation_files for file in _files(place)]
    found = build((f"{file.source}/{file.path}", list(_texts(file))) for file in files)
    if not len(found.passages):
        raise CorpusError(
            f"corpus.evaluation_files hold no text of {WORDS} words or more, so that nothing could "
            "be found by them. Correct the key, or leave it out."
        )
    return found


def _files(place: str) -> list[SourceFile]:
    """The one file at a place, or all below it."""
    parent, _, name = place.rpartition("/")
    if "." in name and not place.endswith("://"):
        storage = open_storage(parent or ".")
        try:
            source = PurePosixPath(storage.root).name
            return [SourceFile(storage.uri, name, storage.size(name), "", source)]
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CorpusError(f"evaluation file {place} can not be read: {error}") from error
    try:
        return find_files([place])
    except CorpusError as error:
        told = str(error).replace("corpus.sources", "corpus.evaluation_files")
        raise CorpusError(f"corpus.evaluation_files: {told}") from error


def _texts(file: SourceFile) -> Iterator[str]:
    for found in read_documents(file):
        if isinstance(found, Problem):
            raise CorpusError(
                f"evaluation file {found}. Correct the file, or the key corpus.evaluation_files."
            )
        yield found.text


def passages_of(texts: pa.ChunkedArray) -> tuple[Hashes, NDArray[np.int64]]:
    """The passages of texts, and for each the number of its text.

    At each token that has enough behind it in its text one passage begins: the shortest run of tokens
    that weighs as much as WORDS words. Its number is that of its tokens t as a polynomial modulo
    2^64, sum(t[i + k] * BASE^k), which comes from sums over all tokens: BASE is odd, so that it has an
    inverse.
    """
    spaced = pa.array([_spaced(text) for text in texts.to_pylist()], pa.large_string())
    spaced = pc.replace_substring_regex(spaced, SEPARATORS, " ")
    spaced = pc.replace_substring_regex(spaced, f"([{UNSPACED}])", r" \1 ")
    split = pc.utf8_split_whitespace(pc.utf8_trim(spaced, " "))
    tokens = pc.list_flatten(split).dictionary_encode()
    ends = np.cumsum(pc.list_value_length(split).to_numpy())
    number = tokens.indices.to_numpy()
    weights = [_weight(token[:1], len(token) == 1) for token in tokens.dictionary.to_pylist()]
    before = np.concatenate(([0], np.cumsum(np.array(weights, np.int64)[number])))
    start = np.arange(len(number))
    stop = np.searchsorted(before, before[:-1] + WORDS * WORD)
    text = np.searchsorted(ends, start, side="right")
    whole = stop <= ends[text]
    powers = _powers(BASE, len(number))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(hash_tokens(tokens) * powers)))
    found = (sums[stop[whole]] - sums[:-1][whole]) * _powers(INVERSE, len(number))[whole]
    return mix(found), text[whole]


def _spaced(text: str) -> str:
    """The text without case and compatibility forms."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


@cache
def _weight(first: str, alone: bool) -> int:
    """Of a token by its first character: a word, or a letter, which is a part of one. A mark that
    stands alone belongs to the letter before it."""
    if alone and unicodedata.category(first).startswith("M"):
        return 0
    return WORD // units_per_word(dominant_script(first))
