"""The order of the samples: position -> sample, a pure function with an inverse.

A run reads the positions 0, 1, 2, …; which sample stands at a position depends on the manifest, the
mixture and the seed alone, never on who reads. Two ideas make it so. The mixture of domains is a fixed
pattern of slots that repeats: position p lies in period p // slots at slot p % slots, and each domain
has an exact number of slots. Within a domain samples are walked epoch by epoch, each epoch in a
permutation of its own that is computed and never stored (`stream.shuffle`). What is kept is a number
for each row group and a pattern of slots; what a position costs does not depend on the position.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.manifest import Manifest, Split
from panthalassa.errors import ConfigError, CorpusError
from panthalassa.stream.shuffle import WORD, Walk, derive, text_key
from panthalassa.stream.shuffle import Integers as Integers

SLOTS = 1024
SHARE_BITS = 40
WEIGHTS = "the weights of the mixture (key stream.weights, or those of a phase)"


@dataclass(frozen=True)
class Location:
    """Samples, by arrays of one length [n].

    `domain` counts in `Order.domains`, `shard` in `manifest.shards`; `epoch` is the domain's own;
    `part` counts the pieces a long row is cut into.
    """

    domain: Integers
    epoch: Integers
    shard: Integers
    row_group: Integers
    row: Integers
    part: Integers

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: slice | Integers) -> "Location":
        return Location(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Mixture:
    """The share of each domain: samples**(1/temperature), or `weights`, whatever their sum.

    A domain that `weights` does not name is left out; any other has one slot of a period at least,
    and its share to within about a slot (SLOTS a period, or four a domain).
    """

    temperature: float = 1.0
    weights: Mapping[str, float] | None = None
    image_share: float | None = None
    """Of all samples those of domains with images, to within half a slot, or as far as each domain
    keeps its one; 0 and 1 leave the others out. The shares are then shares of these, and of the others.
    None: all domains share alike."""


@dataclass(frozen=True)
class Domain:
    """A domain: the samples of an epoch and their images, and its row groups in the manifest's order
    [row groups]."""

    name: str
    samples: int
    images: int
    parts: int
    shard: Integers
    row_group: Integers
    rows: Integers


class Order:
    """The order of a manifest's training samples for a mixture and a seed.

    `start` [domains] is how many samples of each domain's endless walk came before position 0: with
    `start=order.start + order.counts(n)` a new order, of another mixture even, goes on where `order`
    stands after n positions. Raises CorpusError for a manifest without training samples, ConfigError
    for a mixture that can not be had of it, ValueError for another `start`. `has_images` [domains]: of
    which domains the samples have images.
    """

    def __init__(
        self,
        manifest: Manifest,
        sequence_length: int,
        mixture: Mixture,
        seed: int,
        start: Integers | None = None,
    ) -> None:
        whole = "examples" if manifest.objective else "images" if manifest.images else None
        if whole and sequence_length != manifest.sequence_length:
            raise ConfigError(
                f"train.sequence_length={sequence_length} would cut rows of {whole}: set it to "
                f"{manifest.sequence_length}, as the corpus's rows are long."
            )
        self._rows = _Rows(manifest, "train", sequence_length)
        self.domains = self._rows.domains
        if not self.domains or not self._rows.samples.all():
            raise CorpusError(
                f"the corpus has no training samples of {sequence_length} tokens: its rows have "
                f"{manifest.sequence_length}, in {len(self.domains)} domains. Prepare more of it, or "
                "lower the key train.sequence_length."
            )
        count = len(self.domains)
        self.has_images = np.array([domain.images > 0 for domain in self.domains])
        self.start = np.zeros(count, np.int64) if start is None else np.asarray(start, np.int64)
        if self.start.shape != (count,) or self.start.min() < 0:
            raise ValueError(f"start is {self.start}: one number >= 0 for each of {count} domains")
        self.quotas = _quotas(mixture, self.domains, max(SLOTS, 4 * count))
        self.slots = slot_pattern(self.quotas, seed)
        self._by_domain = np.argsort(self.slots, kind="stable")
        self._first_slot = np.cumsum(self.quotas) - self.quotas
        self._before = np.empty_like(self.slots)
        self._before[self._by_domain] = np.arange(len(self.slots)) - np.repeat(
            self._first_slot, self.quotas
        )
        self._keys = np.array([text_key(f"{seed}/{d.name}") for d in self.domains], np.uint64)

    def locate(self, positions: Integers) -> Location:
        """The samples at `positions` [n], >= 0 in any order."""
        if (positions < 0).any():
            raise ValueError(f"there is no sample at position {positions.min()}: it is negative")
        period, slot = np.divmod(positions, len(self.slots))
        domain = self.slots[slot]
        index = self.start[domain] + period * self.quotas[domain] + self._before[slot]
        epoch, offset = np.divmod(index, self._rows.samples[domain])
        return self._at(domain, epoch, offset)

    def position(self, location: Location) -> Integers:
        """The positions [n] of samples, each in its epoch; -1 for what lies before `start` or is in a
        domain without slots. Raises ValueError for what is no sample of this order."""
        domain, quota = location.domain, self.quotas[location.domain]
        offset = self._walk(domain, location.epoch).offset(
            self._rows.number(location), location.part
        )
        index = location.epoch * self._rows.samples[domain] + offset - self.start[domain]
        period, before = np.divmod(index, np.maximum(quota, 1))
        known = (index >= 0) & (quota > 0)
        slot = self._by_domain[np.where(known, self._first_slot[domain] + before, 0)]
        return np.where(known, period * len(self.slots) + slot, -1)

    def counts(self, positions: int) -> Integers:
        """How many samples of each domain [domains] stand at the positions 0 … `positions` - 1."""
        periods, rest = divmod(positions, len(self.slots))
        return periods * self.quotas + np.bincount(self.slots[:rest], minlength=len(self.quotas))

    def shares(self) -> dict[str, float]:
        """The share of the samples of each domain, by name."""
        found = (self.quotas / len(self.slots)).tolist()
        return dict(zip((domain.name for domain in self.domains), found, strict=True))

    @property
    def images_per_sample(self) -> float:
        """Images of a sample, in the mean over the positions."""
        each = [domain.images / domain.samples for domain in self.domains]
        return float(self.quotas @ np.array(each)) / len(self.slots)

    def samples_of_epoch(self, domain: int, epoch: int, offsets: Integers) -> Location:
        """The samples number `offsets` [n], 0 <= offset < samples, of one epoch of a domain's walk.

        The walk is that of the domain from its beginning, whatever `start` is."""
        samples = self.domains[domain].samples
        if epoch < 0 or ((offsets < 0) | (offsets >= samples)).any():
            name = self.domains[domain].name
            raise ValueError(f"{name}, epoch {epoch}: epochs are >= 0, offsets 0 … {samples - 1}")
        return self._at(np.full_like(offsets, domain), np.full_like(offsets, epoch), offsets)

    def _at(self, domain: Integers, epoch: Integers, offset: Integers) -> Location:
        row, part = self._walk(domain, epoch).sample(offset)
        return self._rows.locate(domain, epoch, row, part)

    def _walk(self, domain: Integers, epoch: Integers) -> Walk:
        rows = self._rows
        return Walk(rows.rows[domain], rows.block[domain], rows.parts, self._keys[domain], epoch)


class _Rows:
    """The rows of a split under one number: domain after domain, in the manifest's order.

    Arrays by domain: `first` (its first row, and the end), `rows`, `samples`, and `block`, the rows of
    its largest row group. By row group: its first row, and the end.
    """

    def __init__(self, manifest: Manifest, split: Split, sequence_length: int) -> None:
        found: dict[str, list[int]] = {}
        for number, shard in enumerate(manifest.shards):
            if shard.split == split:
                found.setdefault(shard.domain, []).append(number)
        names = sorted(found)
        shards = [number for name in names for number in found[name]]
        groups = [manifest.shards[number].row_groups for number in shards]
        group_rows = np.fromiter(chain.from_iterable(groups), np.int64)
        self.parts = manifest.sequence_length // sequence_length
        self._shards = np.array(shards, np.int64)
        self._first_group = _starts(np.array([len(rows) for rows in groups], np.int64))
        self._first_row = _starts(group_rows)
        self._group_of_shard = np.zeros(len(manifest.shards), np.int64)
        self._group_of_shard[self._shards] = self._first_group[:-1]
        bounds = self._first_group[_starts(np.array([len(found[n]) for n in names], np.int64))]
        self.first = self._first_row[bounds]
        self.rows = np.diff(self.first)
        self.samples = self.rows * self.parts
        self.block = np.maximum.reduceat(group_rows, bounds[:-1]) if names else self.rows
        self.domains = []
        for name, samples, low, high in zip(
            names, self.samples.tolist(), bounds[:-1], bounds[1:], strict=True
        ):
            place = self._shard_of(np.arange(low, high))
            images = sum(manifest.shards[number].images or 0 for number in found[name])
            self.domains.append(
                Domain(name, samples, images, self.parts, *place, group_rows[low:high])
            )

    def locate(self, domain: Integers, epoch: Integers, row: Integers, part: Integers) -> Location:
        """The samples at rows number `row` of their domains."""
        row = self.first[domain] + row
        group = np.searchsorted(self._first_row, row, side="right") - 1
        shard, row_group = self._shard_of(group)
        return Location(domain, epoch, shard, row_group, row - self._first_row[group], part)

    def number(self, location: Location) -> Integers:
        """The inverse: which rows of their domains these are. Raises ValueError for none of them."""
        domain = location.domain
        group = self._group_of_shard.take(location.shard, mode="clip") + location.row_group
        row = self._first_row.take(group, mode="clip") + location.row - self.first[domain]
        number: Integers = np.clip(row, 0, self.rows[domain] - 1)
        part = np.clip(location.part, 0, self.parts - 1)
        again = self.locate(domain, location.epoch, number, part)
        wrong = location.epoch < 0
        for field in fields(location):
            wrong |= getattr(again, field.name) != getattr(location, field.name)
        if wrong.any():
            raise ValueError(f"no sample of this order: {location[np.flatnonzero(wrong)[:1]]}")
        return number

    def _shard_of(self, group: Integers) -> tuple[Integers, Integers]:
        which = np.searchsorted(self._first_group, group, side="right") - 1
        return self._shards[which], group - self._first_group[which]


def evenly(manifest: Manifest, split: Split, sequence_length: int, count: int) -> Location:
    """At most `count` samples of a split, each at most once, spread evenly over all of it."""
    rows = _Rows(manifest, split, sequence_length)
    total = int(rows.samples.sum())
    count = min(count, total)
    whole, rest = divmod(total, max(count, 1))
    number = np.arange(count)
    row, part = np.divmod(number * whole + number * rest // max(count, 1), max(rows.parts, 1))
    domain = np.searchsorted(rows.first, row, side="right") - 1
    return rows.locate(domain, np.zeros_like(row), row - rows.first[domain], part)


def quotas(shares: NDArray[np.float64], slots: int) -> Integers:
    """Slots of each domain [domains], `slots` in all: proportional to `shares` by largest remainder,
    at least one for a share above 0, none for 0. In whole numbers, so that a last bit of a share, in
    which platforms differ, does not count."""
    scaled = np.rint(shares / shares.max() * 2**SHARE_BITS).astype(np.int64)
    units = [max(unit, int(share > 0)) for unit, share in zip(scaled.tolist(), shares, strict=True)]
    total, least = sum(units), [min(unit, 1) for unit in units]
    free = slots - sum(least)
    above = [max(unit * slots - total, 0) for unit in units]
    divided = [divmod(part * free, max(sum(above), 1)) for part in above]
    found = [one + whole for one, (whole, _) in zip(least, divided, strict=True)]
    largest = sorted(range(len(found)), key=lambda i: -divided[i][1])
    for i in largest[: slots - sum(found)]:
        found[i] += 1
    return np.array(found, np.int64)


def slot_pattern(quotas: Integers, seed: int) -> Integers:
    """Domain of each slot [slots]: each domain's slots lie evenly, jittered by the seed."""
    domain = np.repeat(np.arange(len(quotas)), quotas)
    number = np.arange(len(domain)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    key = np.array([text_key(f"{seed}/slots")], np.uint64)
    jitter = derive(key, np.arange(len(domain))) / np.float64(WORD)
    return domain[np.argsort((number + jitter) / quotas[domain], kind="stable")]


def _starts(sizes: Integers) -> Integers:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))


def _quotas(mixture: Mixture, domains: list[Domain], slots: int) -> Integers:
    """The slots of each domain [domains]."""
    shares, part = _shares(mixture, domains), mixture.image_share
    if part is None:
        return quotas(shares, slots)
    images = np.array([domain.images > 0 for domain in domains])
    here = images & (part > 0), ~images & (part < 1)
    least = [int(np.count_nonzero(shares[chosen])) for chosen in here]
    for wanted, found, what in zip(
        (part, 1 - part), least, ("with images", "of text"), strict=True
    ):
        if wanted > 0 and not found:
            raise ConfigError(
                f"an image_share of {part} (key stream.image_share, or that of a phase) asks for "
                f"samples {what}: the corpus has no such domain, or the weights leave all of them out. "
                "Prepare a corpus of both, or leave the key out."
            )
    own = min(max(round(part * slots), least[0]), slots - least[1])
    counts = np.zeros(len(domains), np.int64)
    for chosen, size in zip(here, (own, slots - own), strict=True):
        if size:
            counts[chosen] = quotas(shares[chosen], size)
    return counts


def _shares(mixture: Mixture, domains: list[Domain]) -> NDArray[np.float64]:
    """The share of each domain [domains], of any sum above 0."""
    if not mixture.temperature > 0:
        raise ConfigError(
            f"the mixture's temperature is {mixture.temperature}: it must be above 0."
        )
    names = [domain.name for domain in domains]
    if mixture.weights is None:
        samples = np.array([domain.samples for domain in domains], np.float64)
        shares: NDArray[np.float64] = (samples / samples.max()) ** (1 / mixture.temperature)
        return np.maximum(shares, np.finfo(np.float64).tiny)
    for name, weight in mixture.weights.items():
        if name not in names:
            raise ConfigError(
                f"{WEIGHTS} name the domain {name!r}, of which the corpus has no training samples; "
                f"{_known(name, names)}. Correct the name, or leave it out."
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{WEIGHTS} give {name!r} {weight}: it must be a finite number >= 0.")
    found = np.array([mixture.weights.get(name, 0.0) for name in names], np.float64)
    if not found.any():
        raise ConfigError(
            f"{WEIGHTS} leave nothing to train on: all are 0. Give a weight above 0 to one of the "
            f"corpus's domains, such as {names[0]!r}."
        )
    return found


def _known(name: str, names: list[str]) -> str:
    """The domain that may be meant, or some of those that there are."""
    if nearest := difflib.get_close_matches(name, names, n=1):
        return f"the nearest it has is {nearest[0]!r}"
    some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"it has {some}"
