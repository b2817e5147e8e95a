"""The order of the samples: exact, seekable, and the same for every reader and on every machine."""

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import (
    Place,
    Sizes,
    corpora,
    domain_of,
    examples,
    manifest_of,
    places,
    seeds,
    temperatures,
)

from panthalassa.corpus.manifest import Manifest
from panthalassa.errors import CorpusError
from panthalassa.stream.order import Location, Mixture, Order, evenly
from panthalassa.stream.shuffle import WINDOW, permute


def samples_of(manifest: Manifest, split: str, domain: str, parts: int = 1) -> set[Place]:
    return {
        (number, group, row, part)
        for number, shard in enumerate(manifest.shards)
        if (shard.split, shard.domain) == (split, domain)
        for group, rows in enumerate(shard.row_groups)
        for row in range(rows)
        for part in range(parts)
    }


def positions_of(
    order: Order, manifest: Manifest, domain: str, first: int, count: int
) -> list[int]:
    """The positions of a domain's samples number `first` to `first + count`, seen from outside."""
    slots = len(order.slots)
    period = domain_of(manifest, places(order.locate(np.arange(slots))))
    own = [slot for slot, name in enumerate(period) if name == domain]
    return [i // len(own) * slots + own[i % len(own)] for i in range(first, first + count)]


@examples
@given(corpora, corpora, seeds, temperatures, st.sampled_from([1, 2, 4]), st.integers(0, 10**12))
def test_every_epoch_of_a_domain_has_each_of_its_samples_once(
    train: Sizes, held_out: Sizes, seed: int, temperature: float, parts: int, epoch: int
) -> None:
    """Also when rows are cut into parts, and in an epoch far away."""
    manifest = manifest_of(train, held_out)
    order = Order(manifest, 8 // parts, Mixture(temperature), seed)
    for domain in train:
        expected = samples_of(manifest, "train", domain, parts)
        first = epoch * len(expected)
        positions = positions_of(order, manifest, domain, first, 2 * len(expected))
        found = places(order.locate(np.array(positions)))
        assert sorted(found[: len(expected)]) == sorted(expected)
        assert sorted(found[len(expected) :]) == sorted(expected)
        number = sorted(train).index(domain)
        assert order.domains[number].samples == len(expected)
        offsets = np.arange(len(expected))
        assert places(order.samples_of_epoch(number, epoch, offsets)) == found[: len(expected)]


@examples
@given(
    corpora,
    seeds,
    st.integers(0, 10**13),
    st.lists(st.integers(0, 400), min_size=1, max_size=40),
    st.lists(st.integers(1, 401), max_size=5),
)
def test_a_sample_does_not_depend_on_what_else_is_asked_for(
    train: Sizes, seed: int, start: int, picks: list[int], cuts: list[int]
) -> None:
    """Any subset in any order, repeated or in chunks, is a slice of the whole."""
    manifest = manifest_of(train)
    order = Order(manifest, 4, Mixture(1.5), seed)
    positions = start + np.arange(401)
    whole = places(order.locate(positions))
    assert places(order.locate(positions[picks])) == [whole[pick] for pick in picks]
    chunked: list[Place] = []
    for chunk in np.split(positions, sorted(cuts)):
        chunked += places(Order(manifest, 4, Mixture(1.5), seed).locate(chunk))
    assert chunked == whole


def test_the_seed_alone_decides_between_orders() -> None:
    manifest = manifest_of({"a": [[2] * 20], "b": [[3] * 10]})

    def first(seed: int) -> list[Place]:
        return places(Order(manifest, 8, Mixture(), seed).locate(np.arange(200)))

    assert first(1) == first(1)
    orders = {tuple(first(seed)) for seed in (0, 1, 2, 2**63 - 1)}
    assert len(orders) == 4


def test_epochs_differ_and_so_do_domains() -> None:
    manifest = manifest_of({"a": [[4] * 12], "b": [[4] * 12]})
    order = Order(manifest, 8, Mixture(), 0)
    walks = []
    for domain in (0, 1):
        for epoch in (0, 1, 2, 3, 10**12):
            found = order.samples_of_epoch(domain, epoch, np.arange(48))
            assert set(found.domain.tolist()) == {domain}
            assert set(found.epoch.tolist()) == {epoch}
            walks.append(tuple(zip(found.row_group.tolist(), found.row.tolist(), strict=True)))
    assert len(set(walks)) == 10


def test_the_neighbours_of_a_sample_change_from_epoch_to_epoch() -> None:
    """Of 1000 samples a shuffle keeps about one pair together; a walk in order keeps them all."""
    order = Order(manifest_of({"a": [[100] * 10]}), 8, Mixture(), 5)
    pairs = []
    for epoch in range(4):
        walk = places(order.samples_of_epoch(0, epoch, np.arange(1000)))
        pairs.append({frozenset(pair) for pair in itertools.pairwise(walk)})
    for i, some in enumerate(pairs):
        for others in pairs[:i]:
            assert len(some & others) < 50
    in_file = {frozenset(((0, g, r, 0), (0, g, r + 1, 0))) for g in range(10) for r in range(99)}
    assert all(len(some & in_file) < 50 for some in pairs)


@examples
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    st.integers(1, 6),
    st.integers(0, 5),
    st.sampled_from([1, 2]),
    seeds,
)
def test_a_reader_of_neighbours_touches_few_row_groups(
    full: list[int], rows: int, short: int, parts: int, seed: int
) -> None:
    """Else each sample of a batch would cost a row group of reading. The last group is short."""
    groups = [[rows] * count for count in full if count]
    short = min(short, rows - 1)
    groups[-1] += [short] * (short > 0)
    manifest = manifest_of({"a": groups})
    order = Order(manifest, 8 // parts, Mixture(), seed)
    size = order.domains[0].samples
    walk = [place[:2] for place in places(order.samples_of_epoch(0, seed % 7, np.arange(size)))]
    seen: set[tuple[int, ...]] = set()
    left = Counter(walk)
    while walk:
        window: set[tuple[int, ...]] = set()
        while walk and (walk[0] in window or len(window) < WINDOW):
            window.add(walk[0])
            left[walk.pop(0)] -= 1
        assert all(left[group] == 0 for group in window)
        seen |= window
    assert len(seen) == sum(map(len, groups))


def test_the_short_last_block_is_read_anywhere_in_an_epoch() -> None:
    order = Order(manifest_of({"a": [[8] * 39 + [3]]}), 8, Mixture(), 0)
    places_of_tail = []
    for epoch in range(200):
        groups = order.samples_of_epoch(0, epoch, np.arange(315)).row_group
        places_of_tail.append(np.flatnonzero(groups == 39).mean())
    assert min(places_of_tail) < 40
    assert max(places_of_tail) > 275
    assert 120 < np.mean(places_of_tail) < 195


def test_the_short_last_block_may_be_the_last_that_is_read() -> None:
    """In one epoch of nine, when it comes behind two full windows."""
    order = Order(manifest_of({"a": [[8] * 2 * WINDOW + [3]]}), 8, Mixture(), 0)
    ends = [order.samples_of_epoch(0, epoch, np.arange(64, 67)).row_group for epoch in range(300)]
    assert 15 < sum((groups == 2 * WINDOW).all() for groups in ends) < 60


def test_each_window_of_an_epoch_is_shuffled_in_its_own_way() -> None:
    order = Order(manifest_of({"a": [[8] * 4 * WINDOW]}), 8, Mixture(), 0)
    rows = order.samples_of_epoch(0, 0, np.arange(4 * WINDOW * 8)).row.reshape(4, -1)
    assert len({tuple(window) for window in rows.tolist()}) == 4


@examples
@given(corpora, seeds, temperatures, st.sampled_from([1, 2, 4]), st.data())
def test_the_position_of_a_sample_is_where_it_was_found(
    train: Sizes, seed: int, temperature: float, parts: int, data: st.DataObject
) -> None:
    manifest = manifest_of(train, {"a": [[2]]})
    start = data.draw(st.lists(st.integers(0, 10**9), min_size=len(train), max_size=len(train)))
    order = Order(manifest, 8 // parts, Mixture(temperature), seed, np.array(start))
    several = st.lists(
        st.one_of(st.integers(0, 5000), st.integers(10**9, 10**12), st.integers(0, 2**62)),
        min_size=1,
        max_size=50,
    )
    positions = np.array(data.draw(several))
    found = order.locate(positions)
    assert order.position(found).tolist() == positions.tolist()
    chosen = np.array([len(positions) - 1, 0])
    assert order.position(found[chosen]).tolist() == positions[chosen].tolist()
    assert len(found[:1]) == 1


def test_what_lies_before_the_start_or_in_no_slot_has_no_position() -> None:
    manifest = manifest_of({"a": [[3, 4]], "b": [[5]]})
    order = Order(manifest, 8, Mixture(weights={"a": 1}), 0, np.array([9, 0]))
    epochs = [order.samples_of_epoch(0, epoch, np.arange(7)) for epoch in range(3)]
    found = [order.position(epoch).tolist() for epoch in epochs]
    assert found == [[-1] * 7, [-1, -1, 0, 1, 2, 3, 4], list(range(5, 12))]
    assert order.position(order.samples_of_epoch(1, 0, np.arange(5))).tolist() == [-1] * 5


@pytest.mark.parametrize(
    "wrong",
    [
        (0, 0, 0, 2, 0, 0),
        (0, 0, 0, -1, 0, 0),
        (0, 0, 0, 0, 3, 0),
        (0, 0, 0, 0, -1, 0),
        (0, 0, 0, 0, 0, 2),
        (0, 0, 0, 0, 0, -1),
        (0, -1, 0, 0, 0, 0),
        (1, 0, 0, 0, 0, 0),
        (0, 0, 1, 0, 0, 0),
        (0, 0, 2, 0, 0, 0),
        (0, 0, 9, 0, 0, 0),
        (0, 0, -1, 0, 0, 0),
    ],
)
def test_what_is_no_sample_has_no_position(wrong: tuple[int, ...]) -> None:
    manifest = manifest_of({"a": [[3, 4]], "b": [[5]]})
    manifest.shards.append(manifest.shards[0].model_copy(update={"split": "held_out"}))
    order = Order(manifest, 4, Mixture(), 0)
    right = Location(*np.array([(0, 0, 0, 1, 3, 1), (1, 3, 1, 0, 4, 0)]).T)
    assert (order.position(right) >= 0).all()
    with pytest.raises(ValueError, match="no sample of this order"):
        order.position(Location(*np.array([(0, 0, 0, 0, 0, 0), wrong]).T))


def test_what_is_asked_for_outside_the_order_is_refused() -> None:
    order = Order(manifest_of({"a": [[3, 4]], "b": [[5]]}), 8, Mixture(), 0)
    with pytest.raises(ValueError, match="position -1"):
        order.locate(np.array([3, -1]))
    for epoch, offset in ((0, 7), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match=r"offsets 0 … 6"):
            order.samples_of_epoch(0, epoch, np.array([0, offset]))
    for start in ([0], [0, 0, 0], [0, -1]):
        with pytest.raises(ValueError, match="one number >= 0 for each of 2 domains"):
            Order(manifest_of({"a": [[3]], "b": [[5]]}), 8, Mixture(), 0, np.array(start))


def test_a_corpus_without_training_samples_is_refused() -> None:
    with pytest.raises(CorpusError, match="no training samples"):
        Order(manifest_of({}, {"a": [[3]]}), 8, Mixture(), 0)
    with pytest.raises(CorpusError, match="no training samples of 9 tokens: its rows have 8"):
        Order(manifest_of({"a": [[3]]}), 9, Mixture(), 0)


@examples
@given(corpora, seeds, temperatures, st.integers(0, 3000), st.integers(0, 10**15))
def test_counts_are_what_counting_gives(
    train: Sizes, seed: int, temperature: float, positions: int, far: int
) -> None:
    order = Order(manifest_of(train), 8, Mixture(temperature), seed)
    found = np.bincount(order.locate(np.arange(positions)).domain, minlength=len(train))
    assert order.counts(positions).tolist() == found.tolist()
    assert order.counts(far).sum() == far
    between = order.counts(far + positions) - order.counts(far)
    domain = order.locate(far + np.arange(positions)).domain
    assert between.tolist() == np.bincount(domain, minlength=len(train)).tolist()


@examples
@given(corpora, seeds, temperatures, temperatures, st.integers(0, 1500), st.integers(1, 1500))
def test_a_later_phase_goes_on_in_every_domain_where_the_earlier_stopped(
    train: Sizes, seed: int, before: float, after: float, stop: int, more: int
) -> None:
    """Also with another mixture, and a third phase after the second."""
    manifest = manifest_of(train)
    first = Order(manifest, 4, Mixture(before), seed)
    second = Order(manifest, 4, Mixture(after), seed, first.start + first.counts(stop))
    third = Order(manifest, 4, Mixture(before), seed, second.start + second.counts(more))
    phases = [(first, stop), (second, more), (third, 500)]
    found = [order.locate(np.arange(count)) for order, count in phases]
    for number, domain in enumerate(first.domains):
        seen: list[Place] = []
        for phase in found:
            seen += places(phase[np.flatnonzero(phase.domain == number)])
        walk: list[Place] = []
        for epoch in range(len(seen) // domain.samples + 1):
            walk += places(first.samples_of_epoch(number, epoch, np.arange(domain.samples)))
        assert seen == walk[: len(seen)]


GOLDEN = manifest_of({"en": [[4, 3], [5]], "el": [[2, 2]], "th": [[1]]}, {"en": [[2]], "xx": [[3]]})
LARGE = manifest_of({"en": [[50] * 9 + [7], [50] * 3], "el": [[20, 20, 3]], "th": [[9]]})
GOLDEN_QUOTAS = [317, 549, 158]
GOLDEN_SLOTS = [1, 0, 1, 1, 0, 2, 1, 0, 1, 1, 0, 1, 2, 2, 1, 0]
GOLDEN_START = [
    (5, 0, 2, 1),
    (3, 0, 1, 0),
    (5, 0, 3, 1),
    (2, 0, 1, 0),
    (3, 1, 0, 0),
    (4, 0, 0, 0),
    (2, 0, 3, 1),
    (3, 0, 0, 0),
    (2, 0, 0, 0),
    (2, 0, 2, 0),
    (3, 1, 1, 0),
    (2, 0, 3, 0),
]
GOLDEN_FAR = [(5, 0, 2, 0), (3, 1, 0, 1), (2, 0, 1, 0), (2, 0, 2, 0)]
GOLDEN_PERMUTATION = [3, 4, 0, 1, 9, 7, 6, 2, 5, 8]
GOLDEN_HASH = "2e0f1f74b5a6b0d09b97f5ddb6c42a736d9afd786d6e760d0e0e0c17ed4bbd82"


def test_another_platform_gives_these_very_samples() -> None:
    order = Order(GOLDEN, 4, Mixture(2.0), 7)
    assert order.quotas.tolist() == GOLDEN_QUOTAS
    assert order.slots[:16].tolist() == GOLDEN_SLOTS
    assert places(order.locate(np.arange(12))) == GOLDEN_START
    assert places(order.locate(10**12 + np.arange(4))) == GOLDEN_FAR
    found = permute(np.arange(10), np.array([10]), np.array([7], np.uint64))
    assert found.tolist() == GOLDEN_PERMUTATION


def test_another_platform_gives_thousands_of_the_same_samples() -> None:
    order = Order(LARGE, 4, Mixture(1.7), 2**63 - 1)
    found = order.locate(np.concatenate((np.arange(4000), 10**12 + np.arange(1000))))
    columns = [found.domain, found.epoch, found.shard, found.row_group, found.row, found.part]
    hashed = hashlib.sha256(np.stack(columns).astype("<i8").tobytes()).hexdigest()
    assert hashed == GOLDEN_HASH


@examples
@given(corpora, seeds)
def test_shorter_sequences_cover_every_part_of_every_row(train: Sizes, seed: int) -> None:
    manifest = manifest_of(train, sequence_length=12)
    order = Order(manifest, 3, Mixture(), seed)
    for domain in train:
        every = samples_of(manifest, "train", domain, parts=4)
        positions = positions_of(order, manifest, domain, 0, len(every))
        assert set(places(order.locate(np.array(positions)))) == every


def test_held_out_samples_are_never_trained_on() -> None:
    manifest = manifest_of({"a": [[3]]}, {"a": [[3]], "b": [[3]]})
    found = places(Order(manifest, 8, Mixture(), 0).locate(np.arange(3000)))
    assert {manifest.shards[place[0]].split for place in found} == {"train"}
    assert {manifest.shards[p[0]].split for p in places(evenly(manifest, "held_out", 8, 99))} == {
        "held_out"
    }


@examples
@given(corpora, st.integers(0, 200), st.sampled_from([1, 2, 4]))
def test_evenly_chosen_samples_never_repeat_and_spread_over_domains(
    sizes: Sizes, count: int, parts: int
) -> None:
    manifest = manifest_of({"train": [[1]]}, sizes)
    found = places(evenly(manifest, "held_out", 8 // parts, count))
    every = {domain: samples_of(manifest, "held_out", domain, parts) for domain in sizes}
    total = sum(map(len, every.values()))
    assert len(found) == len(set(found)) == min(count, total)
    assert set(found) <= set().union(*every.values())
    chosen = Counter(domain_of(manifest, found))
    for domain, samples in every.items():
        assert abs(chosen[domain] - len(samples) * len(found) / total) < 1
