"""Mixtures: the share of each domain, by temperature or by weights, in slots spread over the period."""

from collections import Counter
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import Sizes, corpora, domain_of, examples, manifest_of, places, seeds, temperatures

from panthalassa.corpus.manifest import Images, Manifest
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


def with_images(train: Sizes, domains: Collection[str]) -> Manifest:
    """A manifest of which some domains have an image in each row."""
    manifest = manifest_of(train)
    shards = [
        shard.model_copy(update={"images": shard.rows}) if shard.domain in domains else shard
        for shard in manifest.shards
    ]
    return manifest.model_copy(update={"shards": shards, "images": Images(size=4, tokens=3)})


def parts_of(order: Order) -> tuple[np.ndarray, np.ndarray]:
    return order.quotas[order.has_images], order.quotas[~order.has_images]


@examples
@given(
    corpora.filter(lambda train: len(train) > 1), seeds, temperatures, st.floats(0, 1), st.data()
)
def test_images_have_their_share_of_the_slots_whatever_there_is_of_them(
    train: Sizes, seed: int, temperature: float, share: float, data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(train)), min_size=1, max_size=len(train) - 1))
    manifest = with_images(train, chosen)
    order = Order(manifest, 8, Mixture(temperature, image_share=share), seed)
    images, text = parts_of(order)
    slots = len(order.slots)
    assert images.sum() + text.sum() == slots
    least = len(chosen) * (share > 0), slots - (len(train) - len(chosen)) * (share < 1)
    assert images.sum() == min(max(round(share * slots), least[0]), least[1])
    here = places(order.locate(np.arange(3 * slots, 4 * slots)))
    counts = Counter(domain_of(manifest, here))
    assert sum(counts[name] for name in chosen) == images.sum()
    assert (images > 0).all() == (share > 0)
    assert (text > 0).all() == (share < 1)


def test_temperature_and_weights_mix_images_among_themselves_and_texts_among_themselves() -> None:
    train = {"aa": [[300]], "bb": [[100]], "images-aa": [[20]], "images-bb": [[60]]}
    manifest = with_images(train, {"images-aa", "images-bb"})

    def quota(mixture: Mixture) -> list[int]:
        return Order(manifest, 8, mixture, 0).quotas.tolist()

    assert quota(Mixture(image_share=0.25)) == [576, 192, 64, 192]
    assert quota(Mixture(float("inf"), image_share=0.25)) == [384, 384, 128, 128]
    weights = {"aa": 1, "bb": 7, "images-aa": 1e3, "images-bb": 1e3}
    assert quota(Mixture(weights=weights, image_share=0.25)) == [96, 672, 128, 128]
    assert quota(Mixture(weights={"bb": 1, "images-aa": 1}, image_share=0.5)) == [0, 512, 512, 0]
    assert quota(Mixture(image_share=0)) == [768, 256, 0, 0]
    assert quota(Mixture(image_share=1)) == [0, 0, 256, 768]
    assert quota(Mixture()) == quota(Mixture(image_share=None))
    assert quota(Mixture()) != quota(Mixture(image_share=0.25))


@pytest.mark.parametrize(
    ("domains", "mixture", "what"),
    [
        (set(), Mixture(image_share=0.3), "with images"),
        ({"aa", "bb"}, Mixture(image_share=0.3), "of text"),
        ({"bb"}, Mixture(weights={"aa": 1}, image_share=0.3), "with images"),
        ({"bb"}, Mixture(weights={"bb": 1}, image_share=0.3), "of text"),
    ],
)
def test_a_share_of_what_is_not_there_is_refused(
    domains: set[str], mixture: Mixture, what: str
) -> None:
    manifest = with_images({"aa": [[3]], "bb": [[4]]}, domains)
    with pytest.raises(ConfigError, match=rf"image_share of 0\.3 .* asks for samples {what}:"):
        Order(manifest, 8, mixture, 0)
