"""The order of the samples: position -> (shard, row group, row, part), a pure function.

A run reads the positions 0, 1, 2, …; which sample stands at a position depends on the manifest, the
mixture and the seed alone, never on who reads. Two ideas make it so. The mixture of domains is a fixed
pattern of slots that repeats: position p lies in period p // slots at slot p % slots, and each domain
has an exact number of slots. Within a domain, samples are walked epoch by epoch, the row groups in a
seeded permutation, the rows of a group in order (they were shuffled when the corpus was prepared).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.manifest import Manifest, Split

Integers = NDArray[np.int64]

SLOTS = 1024


@dataclass(frozen=True)
class Location:
    """Where samples are: arrays of one length. `part` counts the pieces a long row is cut into."""

    shard: Integers
    row_group: Integers
    row: Integers
    part: Integers


@dataclass(frozen=True)
class Domain:
    """The row groups of one domain, in the manifest's order."""

    name: str
    shard: Integers
    row_group: Integers
    rows: Integers
    parts: int

    @property
    def samples(self) -> int:
        return int(self.rows.sum()) * self.parts

    def locate(self, group: Integers, offset: Integers) -> Location:
        """The samples number `offset` of the row groups number `group`: part by part, row by row."""
        part, row = np.divmod(offset, self.rows[group])
        return Location(self.shard[group], self.row_group[group], row, part)


class Order:
    """The order of a manifest's training samples for a mixture and a seed."""

    def __init__(
        self, manifest: Manifest, sequence_length: int, temperature: float, seed: int
    ) -> None:
        self.seed = seed
        self.domains = domains(manifest, "train", sequence_length)
        sizes = np.array([domain.samples for domain in self.domains], dtype=np.float64)
        weights = (sizes / sizes.max()) ** (1 / temperature)  # at most 1: no overflow
        self.quotas = quotas(weights, max(SLOTS, 4 * len(sizes)))
        self.slots = slot_pattern(self.quotas, seed)
        self._before = _count_before(self.slots)

    def locate(self, positions: Integers) -> Location:
        """The samples at `positions` (any shape [n], any order)."""
        period, slot = np.divmod(positions, len(self.slots))
        domain = self.slots[slot]
        index = period * self.quotas[domain] + self._before[slot]
        found = np.empty((4, len(positions)), dtype=np.int64)
        for number in np.unique(domain):
            here = np.flatnonzero(domain == number)
            epochs, offsets = np.divmod(index[here], self.domains[number].samples)
            for epoch in np.unique(epochs):
                chosen = epochs == epoch
                place = self._in_epoch(int(number), int(epoch), offsets[chosen])
                found[:, here[chosen]] = (place.shard, place.row_group, place.row, place.part)
        return Location(*found)

    def _in_epoch(self, number: int, epoch: int, offsets: Integers) -> Location:
        domain = self.domains[number]
        groups = permutation(len(domain.rows), self.seed, f"{domain.name}/{epoch}")
        ends = np.cumsum(domain.rows[groups] * domain.parts)
        which = np.searchsorted(ends, offsets, side="right")
        starts = ends[which] - domain.rows[groups[which]] * domain.parts
        return domain.locate(groups[which], offsets - starts)


def domains(manifest: Manifest, split: Split, sequence_length: int) -> list[Domain]:
    """The domains of a split by name; `Location.shard` counts in the manifest's list of all shards."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for number, shard in enumerate(manifest.shards):
        if shard.split == split:
            groups = [(number, group, rows) for group, rows in enumerate(shard.row_groups)]
            found.setdefault(shard.domain, []).extend(groups)
    parts = manifest.sequence_length // sequence_length
    return [
        Domain(name, shard, group, rows, parts)
        for name, groups in sorted(found.items())
        for shard, group, rows in [np.array(groups, dtype=np.int64).T]
    ]


def evenly(manifest: Manifest, split: Split, sequence_length: int, count: int) -> Location:
    """At most `count` samples of a split, each at most once, spread evenly over all of it."""
    places = []
    for domain in domains(manifest, split, sequence_length):
        group = np.repeat(np.arange(len(domain.rows)), domain.rows * domain.parts)
        ends = np.cumsum(domain.rows * domain.parts)
        offset = np.arange(len(group)) - (ends - domain.rows * domain.parts)[group]
        place = domain.locate(group, offset)
        places.append(np.stack((place.shard, place.row_group, place.row, place.part)))
    every = np.concatenate(places, axis=1)
    total = every.shape[1]
    count = min(count, total)
    chosen = np.arange(count) * total // max(count, 1)
    return Location(*every[:, chosen])


def quotas(weights: NDArray[np.float64], slots: int) -> Integers:
    """Slots of each domain: proportional by largest remainder, at least one, `slots` in all."""
    free = slots - len(weights)
    shares = weights / weights.sum() * slots - 1
    shares = np.maximum(shares, 0)
    shares *= free / shares.sum() if shares.sum() else 0
    whole = np.floor(shares).astype(np.int64)
    remainder = free - int(whole.sum())
    largest = np.argsort(-(shares - whole), kind="stable")[:remainder]
    whole[largest] += 1
    total: Integers = whole + 1
    return total


def slot_pattern(quotas: Integers, seed: int) -> Integers:
    """Domain of each slot [slots]: each domain's slots lie evenly, jittered by the seed."""
    domain = np.repeat(np.arange(len(quotas)), quotas)
    number = np.arange(len(domain)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    jitter = _random(len(domain), seed, "slots") / np.float64(2**64)
    order = np.argsort((number + jitter) / quotas[domain], kind="stable")
    return np.take(domain, order)


@lru_cache(maxsize=256)
def permutation(count: int, seed: int, purpose: str) -> Integers:
    """A permutation of `count` numbers, the same on every platform; `purpose` tells two apart."""
    order: Integers = np.argsort(_random(count, seed, purpose), kind="stable")
    return order


def _random(count: int, seed: int, purpose: str) -> NDArray[np.uint64]:
    """Raw 64-bit words of Philox, whose stream NumPy keeps for ever (NEP 19)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16])
    return np.random.Philox(key=key).random_raw(count)


def _count_before(slots: Integers) -> Integers:
    """For each slot, the number of earlier slots of its domain."""
    before = np.empty_like(slots)
    for domain in np.unique(slots):
        before[slots == domain] = np.arange(np.count_nonzero(slots == domain))
    return before
