"""Claims against each other: what is contradicted is named, and the smallest change is right."""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from panthalassa.errors import PanthalassaError
from panthalassa.model.flops import PEAK_BF16
from panthalassa.planner.agreement import Program
from panthalassa.planner.claims import MOST_CLAIMS, TOLERANCE, Report, check
from panthalassa.planner.quantities import (
    NEED_A_UNIT,
    QUANTITIES,
    RELATIONS,
    TDP,
    read_claim,
)

FLAGSHIP = (
    "gpus=512",
    "days=14",
    "gpu_hours=1.2e6",
    "tokens_per_second_per_gpu=1.8",
    "params=12.3e9",
    "text_bytes=3.2e12",
)


@cache
def flagship() -> Report:
    return check(FLAGSHIP)


def changed(report: Report) -> list[set[str]]:
    return [{change.claim.name for change in remedy.changes} for remedy in report.remedies]


def contradicted(report: Report) -> list[set[str]]:
    return [{claim.name for claim in one.claims} for one in report.contradictions]


def as_claims(plan: dict[str, float]) -> list[str]:
    return [f"{name}={value!r}" for name, value in plan.items()]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, float]:
    """All quantities of a run, from drawn ones by the equations."""
    plan: dict[str, float] = {
        "gpus": 8.0 * draw(st.integers(1, 2_000)),
        "days": draw(st.floats(0.1, 100)),
        "params": draw(st.floats(1e8, 1e12)),
        "peak_flops": draw(st.sampled_from(sorted(PEAK_BF16.values()))),
        "tdp_watts": draw(st.floats(72, 1000)),
        "epochs": 1.0,
        "sequence_length": float(draw(st.integers(128, 32_768))),
        "global_batch": float(draw(st.integers(1, 8_192))),
        "goodput": draw(st.floats(0.5, 1)),
        "pue": draw(st.floats(1, 2)),
        "dollars_per_gpu_hour": draw(st.floats(0.5, 10)),
        "kg_co2_per_kwh": draw(st.floats(0.01, 1)),
        "attention": draw(st.floats(1, 1.5)),
        "recomputation": draw(st.floats(1, 4 / 3)),
        "power_share": draw(st.floats(0.3, 2)),
        "mfu": draw(st.floats(0.05, 0.7)),
        "bytes_per_token": draw(st.floats(1.5, 6)),
    }
    while unknown := [name for name in QUANTITIES if name not in plan]:
        for relation in RELATIONS:
            factors = {**relation.powers, relation.target: -1}
            free = [name for name in factors if name not in plan]
            if len(free) == 1:
                product = relation.constant * math.prod(
                    plan[name] ** power for name, power in factors.items() if name in plan
                )
                plan[free[0]] = product ** (-1 / factors[free[0]])
        assert len(unknown) > len(set(QUANTITIES) - set(plan))
    plan["steps"] = float(max(1, round(plan["steps"])))
    return {name: plan[name] for name, one in QUANTITIES.items() if one.units}


def test_the_flagship_has_two_false_claims() -> None:
    report = flagship()
    hours = next(
        one for one in report.contradictions if len(one.claims) == 3 and one.steps[0][0] == "g"
    )
    assert str(hours) == (
        "gpu_hours = 24 x gpus x days = 24 x 512 x 14 = 172,032 GPU-hours; "
        "gpu_hours is 172,032 GPU-hours, but 1,200,000 GPU-hours is claimed, 6.98 times as much"
    )
    first = {change.claim.name: change for change in report.remedies[0].changes}
    assert first.keys() == {"gpu_hours", "tokens_per_second_per_gpu"}
    corrected = first["gpu_hours"].between
    assert corrected is not None
    assert corrected.exact
    assert corrected.low == pytest.approx(172_032)
    assert str(first["tokens_per_second_per_gpu"]).endswith(
        "with 1,800 tokens/s/GPU all agree: a factor of a thousand is missing"
    )
    assert report.follows["bytes_per_token"].low == pytest.approx(2.87, abs=0.005)
    assert report.follows["tokens"].high == pytest.approx(1.115e12, rel=1e-3)


def test_ties_are_told_and_what_is_given_is_doubted_last() -> None:
    assert changed(flagship()) == [
        {"gpu_hours", "tokens_per_second_per_gpu"},
        {"days", "tokens_per_second_per_gpu"},
        {"gpus", "tokens_per_second_per_gpu"},
    ]
    three = check(["gpus=512", "days=14", "gpu_hours=1.2M"])
    assert changed(three) == [{"gpu_hours"}, {"days"}, {"gpus"}]
    assert contradicted(three) == [{"gpus", "days", "gpu_hours"}]


def test_with_its_gpu_the_flagship_s_mfu_is_told() -> None:
    report = check([*FLAGSHIP, "gpu=a100"])
    text = next(str(one) for one in report.contradictions if "mfu is" in str(one))
    assert "mfu is 0.0426 to 0.0639 %, but plausible are 1 to 100 %" in text
    assert report.follows["mfu"].low == pytest.approx(0.426, abs=0.001)


@pytest.mark.parametrize(
    "run",
    [
        "gpus=2048 gpu_hours=82432 tokens=1T params=6.7B gpu=A100 mfu=43.4% energy=36MWh co2=14t",
        "gpus=2048 days=21 gpu_hours=1022362 tokens=1.4T params=65.2B gpu=A100 energy=449MWh co2=173t",
        "gpu_hours=1720320 tokens=2T params=69B gpu=A100 mfu=42.9% energy=688.1MWh co2=291.42t",
        "gpu_hours=30.84M tokens=15.6T params=405B gpu=H100 mfu=40% co2=8930t",
        "gpus=128 gpu_hours=162000 tokens=2.2T tokens_per_second_per_gpu=3500 params=6.74B gpu=A100",
    ],
    ids=["llama-7b", "llama-65b", "llama-2-70b", "llama-3.1-405b", "fms-7b"],
)
def test_published_runs_agree_with_themselves(run: str) -> None:
    report = check(run.split())
    assert report.consistent
    assert not report.remedies


@settings(deadline=None, max_examples=12)
@given(plans(), st.data())
def test_what_comes_from_one_plan_agrees(plan: dict[str, float], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(plan)), min_size=1, max_size=MOST_CLAIMS))
    assume(plan["steps"] > 100)  # whole steps of a short run are no longer the plan's
    report = check(as_claims({name: plan[name] for name in sorted(chosen)}))
    assert report.consistent
    for name, between in report.follows.items():
        assert between.low * (1 - 0.02) <= plan[name] <= between.high * (1 + 0.02)


@settings(deadline=None, max_examples=12)
@given(plans(), st.data())
def test_one_claim_beyond_the_tolerance_is_found_and_mended(
    plan: dict[str, float], data: st.DataObject
) -> None:
    assume(plan["steps"] > 100)
    whole = [r for r in RELATIONS if plan.keys() >= {r.target, *r.powers}]
    relation = data.draw(st.sampled_from(whole))
    related = {relation.target, *relation.powers}
    more = data.draw(st.sets(st.sampled_from(sorted(plan)), max_size=3))
    spoilt = data.draw(st.sampled_from(sorted(name for name in related if name != "goodput")))
    beyond = (1 + TOLERANCE) ** (len(related) + 1)
    factor = data.draw(st.floats(beyond, 50) | st.floats(0.02, 1 / beyond))
    claimed = {name: plan[name] for name in sorted(related | more)}
    assume(not (spoilt == "mfu" and factor * plan["mfu"] > 1))
    claimed[spoilt] = plan[spoilt] * factor
    if QUANTITIES[spoilt].whole:
        claimed[spoilt] = math.ceil(claimed[spoilt]) if factor > 1 else plan[spoilt] * 3
    if spoilt == "pue":
        claimed[spoilt] = plan[spoilt] * abs(1 + factor)
    report = check(as_claims(claimed))
    assert any(group <= related for group in contradicted(report))
    assert all(spoilt in group for group in contradicted(report))
    ties = changed(report)
    assert {spoilt} in ties
    assert sorted(map(sorted, ties)) == brute_force(as_claims(claimed))
    change = next(r.changes[0] for r in report.remedies if r.changes[0].claim.name == spoilt)
    assert change.between is not None
    assert change.between.low * 0.98 <= plan[spoilt] <= change.between.high * 1.02


@settings(deadline=None, max_examples=8)
@given(plans(), st.data())
def test_of_several_false_claims_the_smallest_change_is_found(
    plan: dict[str, float], data: st.DataObject
) -> None:
    names = st.sampled_from(sorted(set(plan) - {"goodput", "mfu", "hfu", "pue"}))
    chosen = sorted(data.draw(st.sets(names, min_size=5, max_size=8)))
    spoilt = data.draw(st.sets(st.sampled_from(chosen), min_size=1, max_size=3))
    claims = as_claims({name: plan[name] * (16.0 if name in spoilt else 1.0) for name in chosen})
    report = check(claims)
    assert sorted(map(sorted, changed(report))) == brute_force(claims)


def brute_force(claims: Sequence[str]) -> list[list[str]]:
    """The smallest sets to leave out, by trying all."""
    read = [read_claim(claim) for claim in claims]
    for size in range(len(read) + 1):
        found = [
            sorted(claim.name for claim in gone)
            for gone in itertools.combinations(read, size)
            if Program([claim for claim in read if claim not in gone]).error
            <= math.log1p(TOLERANCE)
        ]
        if found:
            return sorted(found) if size else []
    raise AssertionError("no claims contradict nothing")


def test_an_mfu_above_the_peak_follows_from_the_speed() -> None:
    report = check(["gpu=a100", "params=12.3B", "tokens_per_second_per_gpu=18k"])
    (found,) = report.contradictions
    assert "mfu is 426 to 639 %, but plausible are 1 to 100 %" in str(found)
    gpu = next(r.changes[0] for r in report.remedies if r.changes[0].claim.name == "gpu")
    assert gpu.gpus == ("B200",)


@pytest.mark.parametrize(
    ("claims", "slip"),
    [
        (
            ["params=12.3", "flops_per_token=80e9", "tokens=1T", "flops=8e22"],
            "a factor of a billion is missing",
        ),
        (["gpus=512", "days=14", "gpu_hours=172M"], "it is a thousand times too much"),
    ],
)
def test_a_slip_of_a_power_of_a_thousand_is_named_first(claims: list[str], slip: str) -> None:
    assert slip in str(check(claims).remedies[0])


def test_a_claim_may_contradict_what_is_plausible_alone() -> None:
    report = check(["bytes_per_token=20"])
    assert contradicted(report) == [{"bytes_per_token"}]
    assert "cc100" in str(report.contradictions[0])


def test_energy_lies_between_idle_and_the_nameplate() -> None:
    run = ["gpu=h100", "gpu_hours=1M"]
    assert check([*run, "energy=700MWh"]).consistent
    for wrong in ("energy=100MWh", "energy=4GWh"):
        (found,) = check([*run, wrong]).contradictions
        assert "nameplate" in str(found)


def test_rounding_is_no_contradiction_and_the_tolerance_can_be_set() -> None:
    rounded = ["gpus=512", "days=14", "gpu_hours=175k"]
    assert check(rounded).consistent
    assert not check(rounded, tolerance=0.001).consistent


def test_what_is_assumed_is_told_until_it_is_claimed() -> None:
    names = {one.name for one in check(["gpus=8"]).assumptions}
    assert {"tolerance", "goodput", "epochs", "peak_flops", "bytes_per_token"} <= names
    less = {one.name for one in check(["gpus=8", "goodput=0.9", "gpu=a100"]).assumptions}
    assert names - less == {"goodput", "peak_flops", "tdp_watts"}


@pytest.mark.parametrize(
    ("claim", "name", "value"),
    [
        ("days=14d", "days", 14),
        ("time=336h", "days", 14),
        ("text=3.2TB", "text_bytes", 3.2e12),
        ("gpu_hours=1.2M", "gpu_hours", 1.2e6),
        ("params=12.3B", "params", 12.3e9),
        ("text_bytes=1,024", "text_bytes", 1024),
        ("mfu=42.6 %", "mfu", 0.426),
        ("energy=449MWh", "energy_mwh", 449),
        ("co2=500kg", "co2_tonnes", 0.5),
        ("peak_flops=312TFLOP/s", "peak_flops", 312e12),
    ],
)
def test_values_may_have_units(claim: str, name: str, value: float) -> None:
    assert read_claim(claim).values == {name: pytest.approx(value)}


@pytest.mark.parametrize(
    ("claim", "remedy"),
    [
        ("gpus=-8", "impossible: gpus is finite and above 0"),
        ("days=0", "above 0"),
        ("gpus=512.5", "a whole number"),
        ("gpus=1e999", "finite"),
        ("mfu=142%", "mfu is at most 100 %"),
        ("mfu=42.6", "mfu=42.6% for 0.426"),
        ("goodput=1.5", "goodput is at most 100 %"),
        ("pue=0.9", "at least 1"),
        ("days=nan", "'nan' is not a number"),
        ("days=many", "'many' is not a number"),
        ("gpus=1,2", "unknown unit ',2'"),
        ("days=14m", "those that may be written: d, days, h, weeks"),
        ("text_bytes=3.2T", "text_bytes is in bytes without one"),
        ("energy=449", "write energy=449MWh or energy_mwh=…"),
        ("time=14", "has no unit: write time=14d or days=…"),
        ("gpu_hour=3", "did you mean gpu_hours?"),
        ("colour=3", "known are gpus, days"),
        ("attention=1", "unknown quantity"),
        ("gpu=abacus", "known are A100"),
        ("gpus", "expected NAME=VALUE"),
        ("gpus=", "expected NAME=VALUE"),
    ],
)
def test_what_no_run_can_have_is_refused_with_the_remedy(claim: str, remedy: str) -> None:
    with pytest.raises(PanthalassaError) as refused:
        check([claim])
    assert remedy in str(refused.value)
    assert repr(claim) in str(refused.value)


def test_claims_are_made_once_and_are_not_too_many() -> None:
    with pytest.raises(
        PanthalassaError, match="days is claimed twice, by 'days=14' and 'time=2weeks'"
    ):
        check(["days=14", "time=2weeks"])
    with pytest.raises(PanthalassaError, match="no claims"):
        check([])
    names = [name for name, one in QUANTITIES.items() if one.units][: MOST_CLAIMS + 1]
    with pytest.raises(PanthalassaError, match=f"at most {MOST_CLAIMS} are checked"):
        check([f"{name}=1" for name in names])


def test_the_tables_fit_each_other() -> None:
    assert TDP.keys() == PEAK_BF16.keys()
    assert {name for name, _ in NEED_A_UNIT.values()} <= QUANTITIES.keys()
    for relation in RELATIONS:
        assert {relation.target, *relation.powers} <= QUANTITIES.keys()
