"""Expected goodput: known answers, the best interval, and what can not be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw

from panthalassa.errors import PanthalassaError
from panthalassa.planner.goodput import (
    LLAMA3_FAILURES,
    Reliability,
    assumptions,
    best_interval,
    expected,
)

reliabilities = st.builds(
    Reliability,
    failures_per_gpu_hour=st.floats(1e-8, 1e-2),
    recovery_seconds=st.floats(0, 3600),
    snapshot_seconds=st.floats(1e-3, 600),
    write_seconds=st.floats(0, 600),
)
sizes = st.integers(1, 100_000)


def test_the_default_rate_is_that_of_the_llama_3_record() -> None:
    assert Reliability().between_failures(16_384) == pytest.approx(54 * 86_400 / 419)


def test_the_defaults_agree_with_the_record_s_share_of_more_than_nine_tenths() -> None:
    assert 0.90 < expected(Reliability(), 16_384).productive < 0.97


def test_nothing_fails_and_nothing_is_lost() -> None:
    never = expected(Reliability(failures_per_gpu_hour=0), 512)
    assert (never.productive, never.interval, never.lost) == (1, math.inf, 0)
    assert never.days(14) == 14
    assert best_interval(Reliability(failures_per_gpu_hour=0), 512).formula.startswith(
        "no failures"
    )


@given(reliabilities, sizes)
def test_the_shares_add_up(reliability: Reliability, gpus: int) -> None:
    found = expected(reliability, gpus)
    parts = [found.productive, found.snapshots, found.lost, found.recovery]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(1)


@given(reliabilities, sizes, st.floats(0.01, 100))
def test_no_other_interval_trains_more(reliability: Reliability, gpus: int, factor: float) -> None:
    best = best_interval(reliability, gpus)
    other = max(best.seconds * factor, reliability.write_seconds)
    there, here = (expected(reliability, gpus, each) for each in (other, best.seconds))
    assert there.productive <= here.productive * (1 + 1e-12)


@given(st.floats(1e-4, 20))
def test_the_optimum_is_lambert_s(share: float) -> None:
    mean = Reliability().between_failures(512)
    seldom = Reliability(snapshot_seconds=share * mean, write_seconds=0)
    exact = 1 + lambertw(-math.exp(-1 - share)).real
    assert best_interval(seldom, 512).seconds / mean == pytest.approx(exact, rel=1e-7)


def test_young_s_formula_is_named_where_it_is_right_and_where_it_is_not() -> None:
    cheap = best_interval(Reliability(write_seconds=0), 512)
    assert cheap.seconds == pytest.approx(cheap.young_seconds, rel=0.01)
    assert cheap.formula.startswith("sqrt(2 C M) (Young 1974, Daly 2006)")
    dear = best_interval(Reliability(snapshot_seconds=3600, failures_per_gpu_hour=1e-3), 512)
    assert dear.young_seconds > 1.2 * dear.seconds
    assert dear.formula.startswith("the exact optimum; sqrt(2 C M) (Young 1974) would be +")


def test_no_snapshot_begins_while_another_is_written() -> None:
    slow = Reliability(write_seconds=3600)
    assert best_interval(slow, 16_384).seconds == 3600
    assert best_interval(slow, 16_384).bound == "writing"
    with pytest.raises(PanthalassaError, match="3600 s that a snapshot takes to be written"):
        expected(slow, 16_384, 60)


def test_the_shares_are_those_of_a_history_of_failures() -> None:
    """Drawn one by one, with nothing of the formula."""
    reliability = Reliability(1e-3, recovery_seconds=400, snapshot_seconds=20, write_seconds=90)
    gpus, each = 2_000, 300.0
    mean, chance = reliability.between_failures(gpus), np.random.default_rng(7)
    useful = recovering = elapsed = 0.0
    for stretch in chance.exponential(mean, 20_000):
        elapsed += stretch
        committed, until = 0.0, each + 20 + 90
        while until < stretch:
            committed, until = committed + each, until + each + 20
        useful += committed
        while (interrupted := chance.exponential(mean)) < 400:
            elapsed, recovering = elapsed + interrupted, recovering + interrupted
        elapsed, recovering = elapsed + 400, recovering + 400
    found = expected(reliability, gpus, each)
    assert found.productive == pytest.approx(useful / elapsed, rel=0.03)
    assert found.recovery == pytest.approx(recovering / elapsed, rel=0.03)


def test_every_assumption_has_a_name_a_value_and_a_source() -> None:
    told = {one.name: one for one in assumptions(Reliability(recovery_seconds=60))}
    assert "419" in told["failure rate"].source
    assert f"{LLAMA3_FAILURES:.3g}" in told["failure rate"].value
    assert (told["recovery"].value, told["recovery"].source) == ("60 s", "given")
    assert "assumed" in told["snapshot's stall"].source
    assert all(one.name and one.value and one.source for one in told.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"failures_per_gpu_hour": -1.0}, "failures_per_gpu_hour = -1"),
        ({"recovery_seconds": math.nan}, "recovery_seconds = nan"),
        ({"write_seconds": math.inf}, "write_seconds = inf"),
        ({"snapshot_seconds": 0.0}, "costs nothing"),
    ],
)
def test_what_can_not_be_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(PanthalassaError, match=message):
        Reliability(**values)


def test_a_number_of_gpus_and_an_interval_are_above_zero() -> None:
    with pytest.raises(PanthalassaError, match="0 GPUs"):
        expected(Reliability(), 0)
    with pytest.raises(PanthalassaError, match="interval of 0 s"):
        expected(Reliability(), 8, 0)
