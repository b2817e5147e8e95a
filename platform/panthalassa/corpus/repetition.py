"""Repetition: the words or lines of a document come in, the share that repeats comes out.

The measures of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), in NumPy: words become
integers, n-grams 64-bit hashes of them (a polynomial, each n from the one before), so that ten
sizes of n-gram cost ten sorts. All shares are of characters unless they say otherwise.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: 2**64 divided by the golden ratio


def duplicate_shares(pieces: Sequence[str]) -> tuple[float, float]:
    """Of lines or paragraphs that came before: their share of all pieces, and of the characters."""
    seen: set[str] = set()
    duplicates = characters = 0
    for piece in pieces:
        if piece in seen:
            duplicates += 1
            characters += len(piece)
        seen.add(piece)
    total = sum(map(len, pieces))
    return duplicates / max(1, len(pieces)), characters / max(1, total)


@dataclass(frozen=True)
class Words:
    """Words as integers, which are their places among the `different` ones, and their lengths in
    characters."""

    different: Sequence[str]
    ids: Hashes
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Words":
        places: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        ids = np.fromiter(map(places.__getitem__, words), np.uint64, len(words))
        different = list(places)
        lengths = np.fromiter(map(len, different), np.int64, len(different))
        return cls(different, ids, lengths[ids])

    def first(self, count: int) -> "Words":
        return Words(self.different, self.ids[:count], self.lengths[:count])

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """[words + 1]: the characters before each word, and of all."""
        return np.concatenate(([0], self.lengths.cumsum()))

    def count(self, holds: Iterable[bool]) -> int:
        """How many words are of the different ones for which it holds, in their order."""
        chosen = np.fromiter(holds, bool, len(self.different))
        return int(np.count_nonzero(chosen[self.ids]))

    def ngrams(self, sizes: Sequence[int]) -> Iterator[tuple[int, Hashes]]:
        """Each size (ascending) that fits, with the hash of the n-gram at every word."""
        hashes, n = self.ids, 1
        for size in sizes:
            if size > len(self.ids):
                return
            while n < size:
                hashes = hashes[:-1] * _MULTIPLIER + self.ids[n:]
                n += 1
            yield size, hashes

    def top_share(self, size: int, hashes: Hashes) -> float:
        """The share of the n-gram that occurs most often, if more than once."""
        ranked = np.sort(hashes)
        new = np.concatenate(([True], ranked[1:] != ranked[:-1], [True])).nonzero()[0]
        counts = new[1:] - new[:-1]
        most = int(counts.max())
        if most == 1:
            return 0.0
        tops = ranked[new[:-1][counts == most]]
        starts = (tops.take(tops.searchsorted(hashes), mode="clip") == hashes).nonzero()[0]
        longest = int((self.ends[starts + size] - self.ends[starts]).max())
        return most * longest / max(1, int(self.ends[-1]))

    def duplicate_share(self, size: int, hashes: Hashes) -> float:
        """The share inside n-grams that came before; what several of them cover counts once."""
        ranked = np.sort(hashes)
        if not (ranked[1:] == ranked[:-1]).any():
            return 0.0
        order = hashes.argsort(kind="stable")
        repeats = np.zeros(len(hashes), dtype=bool)
        repeats[order[1:]] = ranked[1:] == ranked[:-1]
        change = np.zeros(len(self.ids) + 1, dtype=np.int64)
        change[: len(hashes)] += repeats
        change[size : size + len(hashes)] -= repeats
        covered = change.cumsum()[:-1] > 0
        return int(self.lengths[covered].sum()) / max(1, int(self.ends[-1]))
