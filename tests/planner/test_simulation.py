"""Simulated runs: known answers, seconds that add up, and what shrinking saves."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.errors import PanthalassaError
from panthalassa.planner.goodput import Reliability, expected
from panthalassa.planner.simulation import (
    Fleet,
    Outcome,
    fixed_size,
    shrink_and_grow,
    simulate,
    simulated,
)

NEVER = Reliability(failures_per_gpu_hour=0)
OFTEN = Reliability(1e-3, recovery_seconds=600, snapshot_seconds=20, write_seconds=60)
FREE = Reliability(1e-3, recovery_seconds=0, snapshot_seconds=1e-6, write_seconds=0)
"""Failures cost nothing but the nodes that they take."""


@st.composite
def plans(draw: st.DrawFn) -> Outcome:
    fleet = Fleet(
        gpus=8 * draw(st.integers(1, 40)),
        repair_hours=draw(st.floats(0.01, 100) | st.just(math.inf)),
        repair_share=draw(st.floats(0, 1)),
    )
    policy = draw(
        st.builds(fixed_size, st.just(fleet), st.integers(0, fleet.nodes - 1))
        | st.builds(
            shrink_and_grow,
            st.just(fleet),
            st.integers(1, fleet.nodes),
            at_once=st.booleans(),
        )
    )
    reliability = Reliability(
        draw(st.floats(0, 1e-3)),
        draw(st.floats(0, 3600)),
        draw(st.floats(0.1, 600)),
        draw(st.floats(0, 600)),
    )
    days, seed = draw(st.floats(0.01, 3)), draw(st.integers(0, 99))
    return simulate(days, fleet, policy, reliability, runs=3, seed=seed)


@settings(deadline=None, max_examples=60)
@given(plans())
def test_every_second_goes_to_one_part(outcome: Outcome) -> None:
    parts = [
        outcome.productive,
        outcome.snapshots,
        outcome.lost,
        outcome.recovery,
        outcome.waiting,
    ]
    assert min(part.min() for part in parts) >= -1e-6
    np.testing.assert_allclose(sum(parts), outcome.wall, rtol=1e-9)
    assert (np.isfinite(outcome.days) == outcome.finished).all()


@pytest.mark.parametrize("at_once", [True, False])
def test_without_failures_a_run_takes_its_compute_time(at_once: bool) -> None:
    fleet = Fleet(512)
    whole = simulate(14, fleet, shrink_and_grow(fleet, at_once=at_once), NEVER, runs=2)
    assert whole.days.tolist() == [14, 14]
    assert whole.productive.tolist() == whole.wall.tolist()
    spared = simulate(14, fleet, fixed_size(fleet, 4), NEVER, runs=1)
    assert spared.days == pytest.approx(14 * 64 / 60)


def test_snapshots_come_between_intervals_and_not_at_the_end() -> None:
    fleet = Fleet(8)
    played = simulate(1, fleet, fixed_size(fleet, 0), NEVER, interval=86_400 / 10, runs=1)
    assert played.snapshots == pytest.approx(9 * NEVER.snapshot_seconds)


@pytest.mark.parametrize("interval", [None, 200.0, 5_000.0])
def test_the_mean_is_the_expected_goodput(interval: float | None) -> None:
    fleet = Fleet(2_048, repair_share=0)
    policy = fixed_size(fleet, 0)
    played = simulate(10, fleet, policy, OFTEN, interval=interval, runs=64, seed=1)
    found = expected(OFTEN, 2_048, interval)
    for part, share in (
        (played.productive, found.productive),
        (played.snapshots, found.snapshots),
        (played.lost, found.lost),
        (played.recovery, found.recovery),
    ):
        shares = part / played.wall
        error = shares.std(ddof=1) / math.sqrt(len(shares))
        assert abs(shares.mean() - share) < 4 * error + 1e-4
    assert played.failures.sum() == pytest.approx(2_048e-3 / 3600 * played.wall.sum(), rel=0.02)


@pytest.mark.parametrize("spares", [0, 1, 3])
def test_a_fixed_size_waits_as_queueing_theory_says(spares: int) -> None:
    """Stationary shares of a birth and death process: nodes break at one rate and return at another."""
    fleet = Fleet(80, repair_hours=20, repair_share=1)
    played = simulate(300, fleet, fixed_size(fleet, spares), FREE, interval=1.0, runs=64)
    breaks, returns, weights = (fleet.gpus - 8 * spares) * 1e-3, 1 / 20, [1.0]
    for away in range(1, spares + 2):
        weights.append(weights[-1] * breaks / (away * returns))
    share = played.waiting.sum() / played.wall.sum()
    assert share == pytest.approx(weights[-1] / sum(weights), rel=0.03)


def test_a_shrinking_run_trains_on_the_nodes_that_work() -> None:
    """Each is there for the share of time that repair and failure give it, alone."""
    fleet = Fleet(80, repair_hours=20, repair_share=1)
    played = simulate(100, fleet, shrink_and_grow(fleet), FREE, interval=1.0, runs=64)
    there = (1 / 20) / (1 / 20 + 8e-3)
    assert 100 / played.days.mean() == pytest.approx(there, rel=0.01)
    assert played.waiting.sum() < 1e-3 * played.wall.sum()


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 300), st.floats(24, 500), st.integers(0, 99))
def test_where_repair_is_slow_shrinking_is_never_slower_than_waiting(
    nodes: int, repair_hours: float, seed: int
) -> None:
    fleet = Fleet(8 * nodes, repair_hours=repair_hours)
    rarely = Reliability(2e-5)
    shrunk, waited = (
        simulate(20, fleet, policy, rarely, interval=600, runs=100, seed=seed).quantiles()
        for policy in (shrink_and_grow(fleet), fixed_size(fleet, 0))
    )
    assert (shrunk <= waited * 1.01).all()
    assert shrunk[-1] < waited[-1]


def test_growth_is_paid_for_with_a_snapshot_and_a_recovery() -> None:
    fleet = Fleet(512, repair_hours=5, repair_share=1)
    often = Reliability(1e-4, recovery_seconds=1, snapshot_seconds=3, write_seconds=7)
    at_once, later = (
        simulate(30, fleet, shrink_and_grow(fleet, at_once=now), often, interval=1e9, runs=8)
        for now in (True, False)
    )
    assert at_once.growths.min() > 10
    np.testing.assert_allclose(at_once.snapshots, 10 * at_once.growths)
    np.testing.assert_allclose(at_once.recovery, at_once.growths + at_once.failures, rtol=1e-2)
    assert later.growths.sum() == 0
    np.testing.assert_allclose(later.recovery, later.failures, rtol=1e-2)


def test_the_same_seed_gives_the_same_runs() -> None:
    fleet = Fleet(1_024)
    one, same, other = (
        simulate(5, fleet, shrink_and_grow(fleet), OFTEN, runs=5, seed=seed) for seed in (3, 3, 4)
    )
    for field in fields(Outcome):
        assert np.array_equal(getattr(one, field.name), getattr(same, field.name))
    assert not np.array_equal(one.days, other.days)


def test_a_run_that_waits_for_ever_is_never_done() -> None:
    fleet = Fleet(1_024, repair_hours=math.inf, repair_share=1)
    waited = simulate(10, fleet, fixed_size(fleet, 0), OFTEN, runs=20)
    assert not waited.finished.any()
    assert waited.quantiles([0.5]).tolist() == [math.inf]


def test_quantiles_are_in_order_and_of_runs() -> None:
    fleet = Fleet(1_024)
    played = simulate(10, fleet, fixed_size(fleet, 1), Reliability(1e-5), runs=50)
    days = played.quantiles()
    assert (np.diff(days) >= 0).all()
    assert set(days) <= set(played.days)


def test_the_speed_of_a_size_may_be_told() -> None:
    fleet = Fleet(80)
    played = simulate(
        10, fleet, fixed_size(fleet, 5), NEVER, speed=lambda nodes: (nodes / 10) ** 0.5, runs=1
    )
    assert played.days == pytest.approx(10 * math.sqrt(2))


def test_the_assumptions_are_told() -> None:
    told = {one.name: one for one in simulated(Fleet(64, repair_hours=3), Reliability())}
    assert "419" in told["failure rate"].source
    assert told["repair"].source == "given"
    assert "3 h" in told["repair"].value
    assert told["failures that take a node away"].value == "78%"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus": 12}, "12 GPUs in nodes of 8"),
        ({"gpus": 0}, "0 GPUs"),
        ({"gpus": 8, "repair_hours": 0.0}, "repair_hours = 0"),
        ({"gpus": 8, "repair_share": 1.5}, "repair_share = 1.5"),
    ],
)
def test_a_fleet_that_can_not_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PanthalassaError, match=message):
        Fleet(**values)


def test_plans_that_can_not_be_are_refused() -> None:
    fleet = Fleet(64)
    for wrong in (
        lambda: fixed_size(fleet, 8),
        lambda: shrink_and_grow(fleet, 9),
        lambda: simulate(0, fleet, shrink_and_grow(fleet), OFTEN),
        lambda: simulate(1, fleet, shrink_and_grow(fleet), OFTEN, runs=0),
        lambda: simulate(1, fleet, shrink_and_grow(fleet), OFTEN, interval=1.0),
    ):
        with pytest.raises(PanthalassaError, match=r"expected|written"):
            wrong()
