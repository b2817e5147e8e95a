"""Mixtures: the share of each domain, by temperature or by weights, in slots spread over the period."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import Sizes, corpora, domain_of, examples, manifest_of, places, seeds, temperatures

from panthalassa.errors import ConfigError
from panthalassa.stream.order import Mixture, Order, quotas, slot_pattern


@examples
@given(corpora, seeds, temperatures, st.integers(0, 10**9))
def test_every_period_has_each_domain_exactly_as_often_as_its_quota(
    train: Sizes, seed: int, temperature: float, period: int
) -> None:
    manifest = manifest_of(train)
    order = Order(manifest, 8, Mixture(temperature), seed)
    slots = len(order.slots)
    quota = dict(zip(sorted(train), order.quotas.tolist(), strict=True))
    assert sum(quota.values()) == slots
    here = places(order.locate(np.arange(period * slots, (period + 1) * slots)))
    assert Counter(domain_of(manifest, here)) == quota


def test_the_seed_jitters_the_slots() -> None:
    patterns = {tuple(slot_pattern(np.array([20, 30, 50]), seed).tolist()) for seed in range(5)}
    assert len(patterns) == 5


weights = st.lists(st.floats(0, 1e9), min_size=1, max_size=200).filter(lambda w: sum(w) > 0)


@examples
@given(weights, st.integers(4, 8))
def test_quotas_fill_the_slots_and_forget_nobody(weights: list[float], ratio: int) -> None:
    """Who has a share; the greater share has no less, down to a billionth of the greatest."""
    slots = ratio * len(weights)
    found = quotas(np.array(weights), slots)
    assert found.sum() == slots
    assert ((found > 0) == (np.array(weights) > 0)).all()
    by_weight = found[np.argsort(weights, kind="stable")]
    different = np.diff(np.sort(weights)) > max(weights) / 1e9
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
        large, small = Order(manifest, 8, Mixture(temperature), 0).quotas.tolist()
        shares[temperature] = small
        assert large + small == 1024
    assert shares[0.005] == shares[0.5] == 1
    assert shares[1.0] == round(1024 * 10 / 1010)
    assert shares[2.0] == round(1024 * 10**0.5 / (1000**0.5 + 10**0.5))
    assert shares[float("inf")] == 512


@examples
@given(
    corpora,
    seeds,
    st.dictionaries(st.sampled_from("abcdefg"), st.floats(0, 1e300), max_size=7),
    st.integers(0, 10**9),
)
def test_weights_give_the_shares_and_leave_out_who_has_none(
    train: Sizes, seed: int, weights: dict[str, float], period: int
) -> None:
    manifest = manifest_of(train)
    unknown, total = sorted(set(weights) - set(train)), sum(weights.values())
    if unknown or not total:
        with pytest.raises(ConfigError):
            Order(manifest, 8, Mixture(weights=weights), seed)
        return
    order = Order(manifest, 8, Mixture(3.0, weights), seed)
    slots = len(order.slots)
    here = places(order.locate(np.arange(period * slots, (period + 1) * slots)))
    counts = Counter(domain_of(manifest, here))
    assert set(counts) == {name for name, weight in weights.items() if weight}
    for name, count in counts.items():
        assert abs(count - weights[name] / total * slots) <= len(train)
        assert count == order.quotas[sorted(train).index(name)]


def test_weights_are_shares_whatever_their_sum_and_the_corpus() -> None:
    manifest = manifest_of({"en": [[1000]], "el": [[10]], "th": [[1]]})
    for unit in (1e-300, 0.25, 1.0, 7e5):
        mixture = Mixture(weights={"en": unit, "el": 3 * unit, "th": 0})
        assert Order(manifest, 8, mixture, 0).quotas.tolist() == [768, 256, 0]


@pytest.mark.parametrize(
    ("mixture", "reason"),
    [
        (Mixture(weights={"english": 1.0}), r"domain 'english', .* it has de, en"),
        (Mixture(weights={"en": 1, "de_": 0}), r"domain 'de_', .* the nearest it has is 'de'"),
        (Mixture(weights={"held": 1}), r"domain 'held', of which the corpus has no training"),
        (Mixture(weights={"en": -0.1, "de": 1}), r"give 'en' -0\.1: it must be a finite"),
        (Mixture(weights={"de": float("nan")}), r"give 'de' nan"),
        (Mixture(weights={"de": float("inf")}), r"give 'de' inf"),
        (Mixture(weights={"en": 0.0}), r"leave nothing to train on"),
        (Mixture(weights={}), r"leave nothing to train on"),
        (Mixture(0.0), r"temperature is 0\.0: it must be above 0"),
        (Mixture(float("nan")), r"temperature is nan"),
    ],
)
def test_a_mixture_that_can_not_be_had_is_refused(mixture: Mixture, reason: str) -> None:
    manifest = manifest_of({"en": [[3]], "de": [[3]]}, {"held": [[3]]})
    with pytest.raises(ConfigError, match=reason):
        Order(manifest, 8, mixture, 0)


def test_more_domains_than_slots_are_all_seen() -> None:
    manifest = manifest_of({f"{n:04d}": [[1 + n % 3]] for n in range(1500)})
    order = Order(manifest, 8, Mixture(), 0)
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
