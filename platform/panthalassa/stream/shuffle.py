"""The shuffle of an epoch: offset <-> (row of the domain, part), computed and never stored.

An epoch's permutation is a keyed Feistel network. It permutes blocks of rows, as large as the domain's
largest row group; then, inside each window of WINDOW blocks, a second one permutes the samples, with
another key in every window, so that neighbours differ from epoch to epoch.

The second shuffle is bounded because a row group is read whole: a run of offsets no longer than a
window touches the blocks of two windows at most, where one shuffle over all samples would cost a row
group of reading for every sample.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

WINDOW = 4
ROUNDS = 12
GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64


class Walk:
    """Epochs of domains, one for each element of the arrays [n].

    `rows` and `block` [n] are the rows of the element's domain and of its blocks, `keys` [n] the
    domain's key. The blocks stand in places: the full ones permuted, and among them, at a place that
    the key chooses, the `tail`: the last rows, which fill no block. Sizes are in samples.
    """

    def __init__(
        self, rows: Integers, block: Integers, parts: int, keys: Words, epoch: Integers
    ) -> None:
        self.parts = parts
        self.block = block * parts
        self.full, self.tail = np.divmod(rows * parts, self.block)
        epoch_key = derive(keys, epoch)
        self._blocks, place, self._windows = (derive(epoch_key, np.array([i])) for i in range(3))
        seeded = (place % (self.full + 1).astype(np.uint64)).astype(np.int64)
        self._tail_place = np.where(self.tail > 0, seeded, self.full)

    def sample(self, offset: Integers) -> tuple[Integers, Integers]:
        first, size, key = self._window(self._place(offset))
        offset = first + permute(offset - first, size, key)
        place = self._place(offset)
        number = np.where(place == self._tail_place, 0, place - (place > self._tail_place))
        block = permute(number, self.full, self._blocks)
        block = np.where(place == self._tail_place, self.full, block)
        row, part = np.divmod(block * self.block + offset - self._start(place), self.parts)
        return row, part

    def offset(self, row: Integers, part: Integers) -> Integers:
        block, inside = np.divmod(row * self.parts + part, self.block)
        tail = block == self.full
        number = permute_back(np.where(tail, 0, block), self.full, self._blocks)
        place = np.where(tail, self._tail_place, number + (number >= self._tail_place))
        first, size, key = self._window(place)
        return first + permute_back(self._start(place) + inside - first, size, key)

    def _start(self, place: Integers) -> Integers:
        """The offset at which the block at `place` starts."""
        start: Integers = place * self.block - (place > self._tail_place) * (self.block - self.tail)
        return start

    def _place(self, offset: Integers) -> Integers:
        """The place of the block that `offset` falls into."""
        after = offset >= self._tail_place * self.block + self.tail
        return np.where(after, (offset - self.tail) // self.block + 1, offset // self.block)

    def _window(self, place: Integers) -> tuple[Integers, Integers, Words]:
        """The first offset, size and key of the window around `place`."""
        number = place // WINDOW
        first = self._start(number * WINDOW)
        end = self._start(np.minimum((number + 1) * WINDOW, self.full + 1))
        return first, end - first, derive(self._windows, number)


def permute(numbers: Integers, size: Integers, key: Words) -> Integers:
    """Numbers [n], 0 <= number < size, under the permutation of 0 … size - 1 that belongs to `key`.

    `size` [n] and `key` [n], or [1] for all, may differ by element. A Feistel network over the next
    power of two, walked until the number is below `size` (Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002): fewer than two passes on average.
    """
    return _walk_cycle(numbers, size, key, range(ROUNDS))


def permute_back(numbers: Integers, size: Integers, key: Words) -> Integers:
    """The inverse of `permute`."""
    return _walk_cycle(numbers, size, key, range(ROUNDS - 1, -1, -1))


def _walk_cycle(numbers: Integers, size: Integers, key: Words, rounds: range) -> Integers:
    numbers, size, key = np.broadcast_arrays(numbers, size, key)
    found = np.array(numbers, np.uint64)
    limit = size.astype(np.uint64)
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64)
    low_bits, high_bits = (bits + 1) // 2, bits // 2
    left = np.arange(len(found))
    while len(left):
        moved = _feistel(found[left], key[left], low_bits[left], high_bits[left], rounds)
        found[left] = moved
        left = left[moved >= limit[left]]
    return found.astype(np.int64)


def _feistel(numbers: Words, key: Words, low_bits: Words, high_bits: Words, rounds: range) -> Words:
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << high_bits) - one
    high, low = numbers >> low_bits, numbers & low_mask
    for i in rounds:
        if i % 2:
            low ^= _mix(key + i * GOLDEN % WORD ^ high) & low_mask
        else:
            high ^= _mix(key + i * GOLDEN % WORD ^ low) & high_mask
    return high << low_bits | low


def derive(key: Words, number: Integers) -> Words:
    """The key number `number` of those that follow from `key`."""
    return scramble(key + number.astype(np.uint64) * GOLDEN)


def scramble(words: Words) -> Words:
    """A bijection of words that spreads every bit: SplitMix64's output for the state `words`."""
    return _mix(words + GOLDEN)


def _mix(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
    Generators", 2014), on words that it may overwrite."""
    words ^= words >> 30
    words *= 0xBF58476D1CE4E5B9
    words ^= words >> 27
    words *= 0x94D049BB133111EB
    words ^= words >> 31
    return words


def text_key(text: str) -> int:
    """The key, a word, that belongs to a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
