"""Packing: documents of any length come in, rows of one fixed length go out.

A document longer than a row is cut into full rows and what is left; no other is cut. Whole documents
and these ends are laid into rows by best fit, longest first: each goes where it leaves the least
space, or opens a new row. Every token is kept, none is repeated, and what is left of a row is padding.
The result depends on nothing but the documents and their order.

Each row but the last that was opened has less space left than the piece that opened the next one is
long, for that did not fit. So short texts fill what long ones leave: of a hundred rows and more, over
99 in 100 positions are used. It is less only where a domain has few rows, of which the last is as full
as it happens to be, or next to nothing but texts of more than half a row, of which no two go together.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """`tokens` [rows, sequence_length], and for the pieces of documents in each row, from left to
    right, their `lengths` and their `offsets`: the tokens of the document that come before the piece.
    `answers` [start, end, start, end …] are the runs of a row's tokens that count in the loss; None:
    all do. `images` are the encoded images of a row, from left to right; None: the shard has none.
    """

    tokens: Tokens
    lengths: list[list[int]]
    offsets: list[list[int]]
    answers: list[list[int]] | None = None
    images: list[list[bytes]] | None = None

    def slice(self, start: int, stop: int) -> "Packed":
        return Packed(
            self.tokens[start:stop],
            self.lengths[start:stop],
            self.offsets[start:stop],
            None if self.answers is None else self.answers[start:stop],
            None if self.images is None else self.images[start:stop],
        )


@dataclass(frozen=True)
class Packing:
    """Which of the `pieces`, tokens with their offset, lie in each of the `rows`: the tokens stay where
    they are until `filled` lays some rows out. `answers`, if given, are the runs of each piece that
    count in the loss, and `images` those of each piece."""

    pieces: Sequence[tuple[Tokens, int]]
    rows: Sequence[Sequence[int]]
    sequence_length: int
    pad: int
    answers: Sequence[Sequence[int]] | None = None
    images: Sequence[Sequence[bytes]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def shuffled(self, seed: int) -> "Packing":
        """The same rows in an order fixed by `seed` (0 ≤ seed < 2**128) alone."""
        # The raw stream of a bit generator is the one that NumPy never changes (NEP 19).
        order = np.argsort(np.random.PCG64(seed).random_raw(len(self)), kind="stable")
        return replace(self, rows=[self.rows[row] for row in order])

    def filled(self, start: int = 0, stop: int | None = None) -> Packed:
        """The rows from `start` to before `stop`, or to the end."""
        rows = self.rows[start:stop]
        chosen = [[self.pieces[member] for member in row] for row in rows]
        tokens = np.full((len(chosen), self.sequence_length), self.pad, dtype=np.int32)
        for row, members in zip(tokens, chosen, strict=True):
            filled = np.concatenate([piece for piece, _ in members])
            row[: len(filled)] = filled
        return Packed(
            tokens,
            [[len(piece) for piece, _ in members] for members in chosen],
            [[offset for _, offset in members] for members in chosen],
            None if self.answers is None else [self._answers(row, self.answers) for row in rows],
            None if self.images is None else [self._images(row, self.images) for row in rows],
        )

    def _answers(self, row: Sequence[int], answers: Sequence[Sequence[int]]) -> list[int]:
        starts = accumulate((len(self.pieces[member][0]) for member in row), initial=0)
        pairs = zip(row, starts, strict=False)
        return [start + bound for member, start in pairs for bound in answers[member]]

    def _images(self, row: Sequence[int], images: Sequence[Sequence[bytes]]) -> list[bytes]:
        return [image for member in row for image in images[member]]


def pack(documents: Sequence[Tokens], sequence_length: int, pad: int) -> Packing:
    """Lay documents (token ids, delimiters included) into rows of `sequence_length`."""
    pieces = [
        (document[start : start + sequence_length], start)
        for document in documents
        for start in range(0, len(document), sequence_length)
    ]
    rows = best_fit([len(piece) for piece, _ in pieces], sequence_length)
    return Packing(pieces, rows, sequence_length, pad)


def pack_whole(
    units: Sequence[Sequence[Tokens]],
    answers: Sequence[Sequence[Sequence[int]]],
    sequence_length: int,
    pad: int,
    images: Sequence[Sequence[Sequence[bytes]]] | None = None,
) -> Packing:
    """Lay units of one document or more, none longer than a row together, into rows: their documents
    stay side by side, and whole. `answers` are the runs of each document that count, and `images`, if
    any has one, those of each document."""
    ends = list(accumulate(map(len, units), initial=0))
    sizes = [sum(map(len, unit)) for unit in units]
    rows = [
        [document for unit in row for document in range(ends[unit], ends[unit + 1])]
        for row in best_fit(sizes, sequence_length)
    ]
    pieces = [(document, 0) for unit in units for document in unit]
    runs = list(chain.from_iterable(answers))
    shown = None if images is None else list(chain.from_iterable(images))
    return Packing(pieces, rows, sequence_length, pad, runs, shown)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing: for each bin, the indices of `lengths` that it holds.

    Takes O(n log(capacity)) steps: open bins are kept by the space left in them.
    """
    bins: list[list[int]] = []
    open_bins: defaultdict[int, list[int]] = defaultdict(list)
    spaces: list[int] = []  # the keys of open_bins that hold a bin, ascending
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect_left(spaces, lengths[item])
        if at == len(spaces):
            chosen, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[at]
            chosen = open_bins[space].pop()
            if not open_bins[space]:
                spaces.pop(at)
        bins[chosen].append(item)
        if left := space - lengths[item]:
            if not open_bins[left]:
                insort(spaces, left)
            open_bins[left].append(chosen)
    return bins
