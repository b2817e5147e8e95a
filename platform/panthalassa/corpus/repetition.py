"""Repetition: the words or lines of a document come in, the share that repeats comes out.

The measures of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), in NumPy: words become
integers, n-grams 64-bit hashes of them (a polynomial, each n from the one before), so that ten
sizes of n-gram cost ten sorts. All shares are of characters unless they say otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """Words as integers (0 ≤ id < number of different ones), and their lengths in characters."""

    ids: Hashes
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Words":
        table: dict[str, int] = {}
        ids = [table.setdefault(word, len(table)) for word in words]
        lengths = [len(word) for word in words]
        return cls(np.array(ids, dtype=np.uint64), np.array(lengths, dtype=np.int64))

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
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        most = int(counts.max())
        if most == 1:
            return 0.0
        starts = first[counts == most]
        ends = np.concatenate([[0], self.lengths.cumsum()])
        longest = int((ends[starts + size] - ends[starts]).max())
        return most * longest / max(1, int(self.lengths.sum()))

    def duplicate_share(self, size: int, hashes: Hashes) -> float:
        """The share inside n-grams that came before; what several of them cover counts once."""
        _, first = np.unique(hashes, return_index=True)
        repeats = np.ones(len(hashes), dtype=bool)
        repeats[first] = False
        if not repeats.any():
            return 0.0
        change = np.zeros(len(self.ids) + 1, dtype=np.int64)
        change[: len(hashes)] += repeats
        change[size : size + len(hashes)] -= repeats
        covered = change.cumsum()[:-1] > 0
        return int(self.lengths[covered].sum()) / max(1, int(self.lengths.sum()))
