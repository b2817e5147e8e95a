"""The order of the samples: exact, seekable, and the same for every reader and on every machine."""

import tracemalloc
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.corpus.manifest import Manifest, Shard
from panthalassa.stream.order import Location, Order, evenly, permutation, quotas, slot_pattern

Sizes = dict[str, list[list[int]]]
"""Domain -> shards -> rows of each row group."""
Place = tuple[int, int, int, int]


def manifest_of(train: Sizes, held_out: Sizes | None = None, sequence_length: int = 8) -> Manifest:
    """A manifest without files; the shards of the two splits alternate in its list."""
    shards = []
    for number in range(max(len(s) for s in [*train.values(), *(held_out or {}).values()])):
        for split, sizes in (("held_out", held_out or {}), ("train", train)):
            for domain, groups in sizes.items():
                if number < len(groups):
                    rows = sum(groups[number])
                    shards.append(
                        Shard.model_validate(
                            {
                                "path": f"{split}/{domain}/{number}.parquet",
                                "domain": domain,
                                "split": split,
                                "rows": rows,
                                "tokens": rows * sequence_length,
                                "row_groups": groups[number],
                                "size": 1,
                                "sha256": "0" * 64,
                            }
                        )
                    )
    return Manifest(
        sequence_length=sequence_length,
        vocabulary_size=16,
        bos=0,
        eos=1,
        tokenizer_sha256="",
        documents={},
        text_bytes={},
        unigram_loss=1.0,
        shards=shards,
    )


def places(location: Location) -> list[Place]:
    columns = (location.shard, location.row_group, location.row, location.part)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def samples_of(manifest: Manifest, split: str, domain: str, parts: int = 1) -> set[Place]:
    return {
        (number, group, row, part)
        for number, shard in enumerate(manifest.shards)
        if (shard.split, shard.domain) == (split, domain)
        for group, rows in enumerate(shard.row_groups)
        for row in range(rows)
        for part in range(parts)
    }


def domain_of(manifest: Manifest, found: Sequence[Place]) -> list[str]:
    return [manifest.shards[place[0]].domain for place in found]


def positions_of(
    order: Order, manifest: Manifest, domain: str, first: int, count: int
) -> list[int]:
    """The positions of a domain's samples number `first` to `first + count`, seen from outside."""
    slots = len(order.slots)
    period = domain_of(manifest, places(order.locate(np.arange(slots))))
    own = [slot for slot, name in enumerate(period) if name == domain]
    return [i // len(own) * slots + own[i % len(own)] for i in range(first, first + count)]


row_groups = st.lists(st.integers(1, 6), min_size=1, max_size=4)
shards = st.lists(row_groups, min_size=1, max_size=3)
corpora = st.dictionaries(st.sampled_from("abcdefg"), shards, min_size=1, max_size=5)
seeds = st.integers(0, 2**63 - 1)
temperatures = st.floats(0.01, 100)
examples = settings(max_examples=60, deadline=None)


@examples
@given(corpora, corpora, seeds, temperatures, st.sampled_from([1, 2, 4]), st.integers(0, 10**12))
def test_every_epoch_of_a_domain_has_each_of_its_samples_once(
    train: Sizes, held_out: Sizes, seed: int, temperature: float, parts: int, epoch: int
) -> None:
    """Also when rows are cut into parts, and in an epoch far away."""
    manifest = manifest_of(train, held_out)
    order = Order(manifest, 8 // parts, temperature, seed)
    for domain in train:
        expected = samples_of(manifest, "train", domain, parts)
        first = epoch * len(expected)
        positions = positions_of(order, manifest, domain, first, 2 * len(expected))
        found = places(order.locate(np.array(positions)))
        assert sorted(found[: len(expected)]) == sorted(expected)
        assert sorted(found[len(expected) :]) == sorted(expected)


@examples
@given(corpora, seeds, temperatures, st.integers(0, 10**9))
def test_every_period_has_each_domain_exactly_as_often_as_its_quota(
    train: Sizes, seed: int, temperature: float, period: int
) -> None:
    manifest = manifest_of(train)
    order = Order(manifest, 8, temperature, seed)
    slots = len(order.slots)
    quota = dict(zip(sorted(train), order.quotas.tolist(), strict=True))
    assert sum(quota.values()) == slots
    here = places(order.locate(np.arange(period * slots, (period + 1) * slots)))
    assert Counter(domain_of(manifest, here)) == quota


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
    order = Order(manifest, 4, 1.5, seed)
    positions = start + np.arange(401)
    whole = places(order.locate(positions))
    assert places(order.locate(positions[picks])) == [whole[pick] for pick in picks]
    chunked: list[Place] = []
    for chunk in np.split(positions, sorted(cuts)):
        chunked += places(Order(manifest, 4, 1.5, seed).locate(chunk))
    assert chunked == whole


def test_the_seed_alone_decides_between_orders() -> None:
    manifest = manifest_of({"a": [[2] * 20], "b": [[3] * 10]})

    def first(seed: int) -> list[Place]:
        return places(Order(manifest, 8, 1.0, seed).locate(np.arange(200)))

    assert first(1) == first(1)
    orders = {tuple(first(seed)) for seed in (0, 1, 2, 2**63 - 1)}
    assert len(orders) == 4


def test_epochs_differ_and_so_do_domains() -> None:
    """The same row groups in another order each time they are walked."""
    manifest = manifest_of({"a": [[1] * 12], "b": [[1] * 12]})
    order = Order(manifest, 8, 1.0, 0)
    walks = []
    for domain in "ab":
        for epoch in range(5):
            positions = positions_of(order, manifest, domain, 12 * epoch, 12)
            groups = order.locate(np.array(positions)).row_group
            walks.append(tuple(groups.tolist()))
    assert len(set(walks)) == 10


def test_a_row_group_is_read_whole_before_the_next_one() -> None:
    """Else each sample of a batch would cost a row group of reading."""
    manifest = manifest_of({"a": [[4, 6, 5], [3, 6]]})
    order = Order(manifest, 4, 1.0, 3)
    found = places(order.locate(np.arange(2 * (4 + 6 + 5 + 3 + 6))))
    visited = [place[:2] for place in found]
    runs = [group for i, group in enumerate(visited) if i == 0 or visited[i - 1] != group]
    assert len(runs) == len(set(runs)) == 5
    for group in runs:
        inside = [place[2:] for place in found if place[:2] == group]
        rows = manifest.shards[group[0]].row_groups[group[1]]
        assert inside == [(row, part) for part in (0, 1) for row in range(rows)]


GOLDEN = manifest_of({"en": [[4, 3], [5]], "el": [[2, 2]], "th": [[1]]}, {"en": [[2]], "xx": [[3]]})
GOLDEN_QUOTAS = [317, 549, 158]
GOLDEN_SLOTS = [0, 1, 1, 1, 0, 2, 1, 1, 0, 2, 1, 0, 1, 0, 1, 1]
GOLDEN_START = [
    (3, 1, 0, 0),
    (2, 1, 0, 0),
    (2, 1, 1, 0),
    (2, 1, 2, 0),
    (3, 1, 1, 0),
    (4, 0, 0, 0),
    (2, 1, 0, 1),
    (2, 1, 1, 1),
    (3, 1, 0, 1),
    (4, 0, 0, 1),
    (2, 1, 2, 1),
    (3, 1, 1, 1),
]
GOLDEN_FAR = [(3, 0, 0, 0), (2, 0, 2, 0), (2, 0, 3, 0), (2, 0, 0, 1)]
GOLDEN_PERMUTATION = [9, 4, 1, 5, 2, 3, 7, 6, 0, 8]


def test_another_platform_gives_these_very_samples() -> None:
    order = Order(GOLDEN, 4, 2.0, 7)
    assert order.quotas.tolist() == GOLDEN_QUOTAS
    assert order.slots[:16].tolist() == GOLDEN_SLOTS
    assert places(order.locate(np.arange(12))) == GOLDEN_START
    assert places(order.locate(10**12 + np.arange(4))) == GOLDEN_FAR
    assert permutation(10, 7, "en/0").tolist() == GOLDEN_PERMUTATION


@pytest.mark.parametrize("position", [10**6, 10**12, 10**18])
def test_seeking_anywhere_costs_the_same(position: int) -> None:
    """In memory: a walk, or a table of what was passed, would show."""
    order = Order(manifest_of({"a": [[8] * 50], "b": [[8] * 5]}), 8, 1.0, 0)
    order.locate(np.arange(64))
    permutation.cache_clear()
    tracemalloc.start()
    try:
        found = order.locate(np.arange(position, position + 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.row) == 64
    assert peak < 1 << 18


@examples
@given(corpora, seeds)
def test_shorter_sequences_cover_every_part_of_every_row(train: Sizes, seed: int) -> None:
    manifest = manifest_of(train, sequence_length=12)
    order = Order(manifest, 3, 1.0, seed)
    for domain in train:
        every = samples_of(manifest, "train", domain, parts=4)
        positions = positions_of(order, manifest, domain, 0, len(every))
        assert set(places(order.locate(np.array(positions)))) == every


def test_held_out_samples_are_never_trained_on() -> None:
    manifest = manifest_of({"a": [[3]]}, {"a": [[3]], "b": [[3]]})
    found = places(Order(manifest, 8, 1.0, 0).locate(np.arange(3000)))
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


weights = st.lists(st.floats(0, 1e9), min_size=1, max_size=200).filter(lambda w: sum(w) > 0)


@examples
@given(weights, st.integers(4, 8))
def test_quotas_fill_the_slots_and_forget_nobody(weights: list[float], ratio: int) -> None:
    slots = ratio * len(weights)
    found = quotas(np.array(weights), slots)
    assert found.sum() == slots
    assert found.min() >= 1
    by_weight = found[np.argsort(weights, kind="stable")]
    different = np.diff(np.sort(weights)) > 0
    assert (np.diff(by_weight)[different] >= 0).all()


@examples
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_quotas_are_proportional_within_one_slot(weights: list[int]) -> None:
    slots = -(-sum(weights) // min(weights))  # so that everybody deserves a slot at least
    found = quotas(np.array(weights, dtype=np.float64), slots)
    assert (np.abs(found - np.array(weights) / sum(weights) * slots) < 1 + 1e-6).all()


def test_temperature_lifts_small_domains_up_to_equal_shares() -> None:
    manifest = manifest_of({"large": [[1000]], "small": [[10]]})
    shares = {}
    for temperature in (0.005, 0.5, 1.0, 2.0, float("inf")):
        large, small = Order(manifest, 8, temperature, 0).quotas.tolist()
        shares[temperature] = small
        assert large + small == 1024
    assert shares[0.005] == shares[0.5] == 1
    assert shares[1.0] == round(1024 * 10 / 1010)
    assert shares[2.0] == round(1024 * 10**0.5 / (1000**0.5 + 10**0.5))
    assert shares[float("inf")] == 512


def test_more_domains_than_slots_are_all_seen() -> None:
    manifest = manifest_of({f"{n:04d}": [[1 + n % 3]] for n in range(1500)})
    order = Order(manifest, 8, 1.0, 0)
    seen = domain_of(manifest, places(order.locate(np.arange(len(order.slots)))))
    assert len(set(seen)) == 1500


@examples
@given(st.lists(st.integers(1, 200), min_size=2, max_size=8), seeds)
def test_a_domain_never_crowds_a_part_of_the_period(quota: list[int], seed: int) -> None:
    """After any share of the slots it has had that share of its own, but for what jitter moves."""
    slots = slot_pattern(np.array(quota), seed)
    passed = np.arange(1, len(slots) + 1) / len(slots)
    for domain, own in enumerate(quota):
        had = np.cumsum(slots == domain)
        moved = 1 + len(quota) * own / len(slots)
        assert np.abs(had - passed * own).max() <= moved + 1e-9
