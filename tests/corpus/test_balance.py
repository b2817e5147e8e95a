"""The shares of a sample: its size is kept, small domains give all, the others by their weights."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.balance import sample_shares

sizes = st.dictionaries(st.text(max_size=3), st.integers(1, 10**13), min_size=1, max_size=9)
alphas = st.sampled_from([0.0, 0.3, 1.0]) | st.floats(0, 1)
budgets = st.integers(1, 10**13)


@given(sizes, budgets, alphas)
def test_a_sample_has_its_size_or_is_everything(
    sizes: dict[str, int], budget: int, alpha: float
) -> None:
    shares = sample_shares(sizes, budget, alpha)
    assert shares.keys() == sizes.keys()
    assert all(0 < share <= 1 for share in shares.values())
    drawn = math.fsum(shares[domain] * sizes[domain] for domain in sizes)
    assert drawn == pytest.approx(min(budget, sum(sizes.values())), rel=1e-9)


@given(sizes, budgets, alphas)
def test_domains_that_give_not_all_give_by_their_weights_and_the_others_less_than_that(
    sizes: dict[str, int], budget: int, alpha: float
) -> None:
    shares = sample_shares(sizes, budget, alpha)
    scales = {d: shares[d] * size / size**alpha for d, size in sizes.items()}
    some = [scales[domain] for domain in sizes if shares[domain] < 1]
    if some:
        assert min(some) == pytest.approx(max(some), rel=1e-9)
        assert max(scales.values()) <= max(some) * (1 + 1e-9)
    else:
        assert sum(sizes.values()) <= budget * (1 + 1e-9)


@given(sizes, budgets, alphas, st.randoms())
def test_the_order_of_the_domains_does_not_matter(
    sizes: dict[str, int], budget: int, alpha: float, chance: object
) -> None:
    again = list(sizes.items())
    chance.shuffle(again)  # type: ignore[attr-defined]
    assert sample_shares(dict(again), budget, alpha) == sample_shares(sizes, budget, alpha)


def test_shares_by_hand() -> None:
    sizes = {"en": 10_000, "sw": 100, "zu": 10}
    assert sample_shares(sizes, 1000, 1.0) == pytest.approx(dict.fromkeys(sizes, 1000 / 10_110))
    # zu has no third of the sample and sw no half of the rest: the others get what they leave.
    assert sample_shares(sizes, 1000, 0.0) == {"zu": 1, "sw": 1, "en": 890 / 10_000}
    sizes = {"en": 10_000, "sw": 100, "zu": 25}
    # At α = 0.5 the weights are 100, 10 and 5.
    shares = {"en": 100 / 10_000, "sw": 10 / 100, "zu": 5 / 25}
    assert sample_shares(sizes, 115, 0.5) == pytest.approx(shares)


def test_every_byte_is_drawn_where_there_is_no_more_than_the_sample() -> None:
    assert sample_shares({"en": 5, "sw": 3}, 8, 0.3) == {"en": 1, "sw": 1}
    assert sample_shares({}, 8, 0.3) == {}
