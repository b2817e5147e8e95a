"""A plan of a small model on a few GPUs: what fits is ranked, and everything follows from the best."""

import json
from dataclasses import replace
from typing import Any

import pytest

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.planner.assume import PARTS, Assumed
from panthalassa.planner.hardware import Cluster, cluster, gpu
from panthalassa.planner.layout import Workload
from panthalassa.planner.plan import Plan, make_plan
from panthalassa.planner.rank import Candidate, rank, verdict
from panthalassa.planner.simulation import DAY
from panthalassa.planner.telling import as_json, ranking_rows, told
from panthalassa.planner.units import dollars, duration, energy, mass, span, tokens

GPUS = 16


def configuration(*overrides: str) -> Config:
    """Two layers, of which only tensor-parallel groups of 4 and 8 can share four samples on 16 GPUs."""
    tree: dict[str, Any] = {
        "run": {"name": "planned"},
        "corpus": {"directory": "nowhere", "sources": ["nowhere"]},
        "model": {
            "vocabulary_size": 128,
            "hidden_size": 64,
            "layers": 2,
            "heads": 8,
            "kv_heads": 8,
            "head_size": 8,
            "ffn_size": 128,
        },
        "parallel": {"precision": "bf16", "compile": True},
        "train": {
            "steps": 10_000_000,
            "global_batch": 4,
            "micro_batch": 1,
            "sequence_length": 64,
            "loss_chunk": 64,
        },
    }
    return build(tree, list(overrides), "test", Config)


PLACE = cluster(gpu("a100-80gb"), GPUS)
pytestmark = pytest.mark.usefixtures("home_of_traces")


@pytest.fixture(scope="module")
def plan(home_of_traces: None) -> Plan:
    return make_plan(configuration(), PLACE)


@pytest.fixture(scope="module")
def fragile(home_of_traces: None) -> Plan:
    """With a failure a day, so that all assumptions count."""
    return make_plan(
        configuration(), PLACE, assumed=Assumed().changed(["failures_per_gpu_hour=0.003"])
    )


def tight(needed: Plan, share: float) -> Cluster:
    """The cluster with GPUs that have so much of what lies between the leanest and the largest peak."""
    peaks = [one.footprint.peak for one in needed.ranking]
    usable = min(peaks) + share * (max(peaks) - min(peaks))
    return replace(PLACE, gpu=replace(PLACE.gpu, memory=(usable + 4e9) / 0.95))


def test_the_best_layout_is_the_fastest_that_fits_and_others_say_why_not(plan: Plan) -> None:
    ranking = rank(plan.workload, tight(plan, 0.5), compiled=True)
    fits = [one for one in ranking if one.fits]
    assert 0 < len(fits) < len(ranking) == len(plan.ranking)
    assert ranking[: len(fits)] == fits, "what does not fit comes before what does"
    rates = [one.rate for one in fits]
    assert rates == sorted(rates, reverse=True)
    for one in ranking[len(fits) :]:
        over = (one.footprint.peak - one.usable) / 1e9
        assert one.worse_than(ranking[0]).startswith(f"does not fit: {over:.1f} GB too much")
    slowest = fits[-1]
    assert slowest.worse_than(fits[0]).startswith(f"{slowest.rate / fits[0].rate - 1:+.1%}: ")
    assert slowest.slower(fits[0])[0] in slowest.worse_than(fits[0])


def test_the_plan_says_whether_tensor_parallelism_inside_the_node_pays(plan: Plan) -> None:
    def best(tp: int) -> Candidate:
        return next(one for one in plan.ranking if one.layout.tp == tp)

    assert {one.layout.tp for one in plan.ranking} == {4, 8}
    costs = best(8).rate / best(4).rate - 1
    assert costs < 0
    assert plan.verdict.startswith("TP 8 costs more than it gives")
    assert f"{costs:.1%} beside TP 4" in plan.verdict
    assert best(8).slower(best(4))[0] in plan.verdict
    slow = replace(PLACE, gpu=replace(PLACE.gpu, link=1e9))
    assert "more waited communication" in verdict(
        rank(plan.workload, slow, True), plan.workload, slow
    )
    turned = [best(8), *(one for one in plan.ranking if one is not best(8))]
    assert verdict(turned, plan.workload, PLACE).startswith("TP 8 gives")
    no_heads = configuration("model.heads=4", "model.kv_heads=4")
    impossible = verdict(plan.ranking, Workload.of(no_heads), PLACE)
    assert impossible == "TP 8 is impossible: model.heads=4 is not divisible by parallel.tp_size=8"


def test_full_checkpointing_is_counted_without_the_compilation_that_it_excludes(plan: Plan) -> None:
    for one in plan.ranking:
        assert one.compiled == (one.layout.activation_checkpointing != "full")
        accepted = build(configuration().model_dump(), one.overrides(), "the layout", Config)
        assert accepted.parallel.compile == one.compiled


def test_days_energy_and_cost_follow_from_the_best_layout(plan: Plan) -> None:
    undisturbed = 10_000_000 * plan.best.speed.step_seconds / DAY
    assert plan.compute_days == pytest.approx(undisturbed)
    assert plan.expected_days == pytest.approx(undisturbed / plan.goodput.productive)
    fast, slow = plan.expected_range
    assert fast < plan.expected_days < slow
    hours = GPUS * 24 * plan.expected_days
    assert plan.bill.gpu_hours == pytest.approx(hours)
    assert plan.bill.dollars == pytest.approx(2 * hours)
    assert plan.bill.by_convention == pytest.approx(400 * 1.1 * hours / 1e6)
    assert [days.policy for days in plan.days] == ["shrink and grow", "fixed size, 1 spare node"]
    shrinking, waiting = (days.quantiles for days in plan.days)
    assert undisturbed < shrinking[0] <= shrinking[-1] < waiting[0], "half of the nodes stand by"
    half = make_plan(configuration(), PLACE, tokens=plan.tokens / 2)
    assert half.compute_days == pytest.approx(undisturbed / 2)


VISION = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "layers": 2,
    "heads": 8,
    "ffn_size": 32,
}
"""Images of 16 positions: three of them fit into a sample."""


def seeing(*overrides: str) -> Config:
    """Two samples, which only tensor-parallel groups of 8 can share on 16 GPUs."""
    vision = [f"model.vision.{key}={value}" for key, value in VISION.items()]
    return configuration("train.global_batch=2", *vision, *overrides)


def test_a_plan_with_images_tells_what_they_take_and_assumes_how_many_there_are() -> None:
    plan = make_plan(seeing(), PLACE)
    shown = {one.name: one for one in plan.assumed.told(plan.cluster, plan.workload)}
    assert set(shown) == set(PARTS)
    assert (shown["images_per_sample"].value, shown["images_per_sample"].source) == (
        "3",
        "as many as fit",
    )
    rows, data = dict(told(plan)), json.loads(as_json(plan))
    assert "tower 0.0 M" in rows["parameters"]
    assert rows["images"].startswith(
        "3 in each of 10.0% of the samples, an image takes 16 positions"
    )
    assert data["images"]["bytes"] == 16 * sum(
        data["images"][part] / 16 for part in ("tower_parameters", "projector_parameters")
    )
    assert 0 < data["images"]["share_of_flops"] < 1
    assert 0 < data["images"]["seconds"] < plan.best.speed.step_seconds
    more = make_plan(seeing(), PLACE, assumed=Assumed().changed(["image_samples=0.9"]))
    assert more.best.speed.step_seconds > plan.best.speed.step_seconds
    assert more.bill.mwh > plan.bill.mwh
    assert more.best.footprint == plan.best.footprint, "of a micro-batch that is full of them"
    fewer = make_plan(seeing(), PLACE, assumed=Assumed().changed(["images_per_sample=1"]))
    assert fewer.best.footprint.peak < plan.best.footprint.peak
    assert fewer.best.footprint.inputs == plan.best.footprint.inputs - 2 * 3 * 16 * 16


@pytest.mark.parametrize(
    ("config", "assumption", "message"),
    [
        (configuration(), "image_samples=0.2", "the model reads no images; leave it out"),
        (seeing(), "images_per_sample=4", "train.sequence_length=64 has room for 3"),
        (
            seeing("train.sequence_length=16"),
            "pue=1.1",
            "an image takes 18 positions, and train.sequence_length=16 has room for 0",
        ),
    ],
)
def test_images_that_can_not_be_are_refused(config: Config, assumption: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_plan(config, PLACE, assumed=Assumed().changed([assumption]))
    assert message in str(refused.value)


OF_TEXT = [name for name, part in PARTS.items() if part != "images"]
NEW = {
    "network_gb_per_second": (2.0, lambda plan: -plan.best.speed.step_seconds),
    "failures_per_gpu_hour": (0.01, lambda plan: plan.goodput.productive),
    "recovery_seconds": (3000.0, lambda plan: plan.goodput.productive),
    "snapshot_seconds": (20.0, lambda plan: plan.goodput.productive),
    "write_seconds": (900.0, lambda plan: -plan.goodput.lost),
    "repair_hours": (2000.0, lambda plan: -plan.days[0].quantiles[2]),
    "repair_share": (0.0, lambda plan: plan.days[1].quantiles[-1]),
    "reserved_gb": (8.0, lambda plan: plan.best.usable),
    "fragments": (0.2, lambda plan: plan.best.usable),
    "spare_share": (0.0, None),
    "arithmetic_draw": (0.5, lambda plan: plan.bill.gpu_watts),
    "memory_draw": (0.1, lambda plan: plan.bill.gpu_watts),
    "waiting_draw": (0.1, lambda plan: plan.bill.gpu_watts),
    "node_watts": (100.0, lambda plan: plan.bill.nodes),
    "pue": (1.0, lambda plan: plan.bill.mwh),
    "price_per_gpu_hour": (1.0, lambda plan: plan.bill.dollars),
    "kg_co2_per_kwh": (0.1, lambda plan: plan.bill.tonnes_co2),
}
"""Of each assumption another value, and something that it makes smaller."""


@pytest.mark.parametrize("name", OF_TEXT)
def test_each_assumption_changes_the_plan_and_is_shown_as_given(name: str, fragile: Plan) -> None:
    value, effect = NEW[name]
    assumed = replace(fragile.assumed, given=frozenset()).changed([f"{name}={value}"])
    other = make_plan(configuration(), PLACE, assumed=assumed)
    shown = {one.name: one for one in other.assumed.told(other.cluster, other.workload)}
    assert shown[name].value == f"{value:.4g}"
    assert [one.name for one in shown.values() if one.source == "given"] == [name]
    assert f"  {name}" in dict(told(other))
    if effect:
        assert effect(other) < effect(fragile)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["puee=1.2"], "unknown assumption 'puee'; did you mean pue?"),
        (["pue"], "expected NAME=NUMBER without a unit, such as pue=1.2"),
        (["node_watts=2kW"], "expected NAME=NUMBER without a unit"),
        (["pue=inf"], "expected a finite number"),
        (["pue=1.1", "pue=1.2"], "pue is given twice"),
        (["pue=0.9"], "a building draws at least"),
        (["price_per_gpu_hour=-1"], "is negative"),
        (["recovery_seconds=-1"], "0 or more"),
        (["network_gb_per_second=0"], "above 0"),
        (["reserved_gb=-1"], "0 or more"),
        (["fragments=1"], "from 0 to below 1"),
        (["repair_hours=0"], "hours above 0"),
        (["spare_share=2"], "from 0 to 1"),
        (["arithmetic_draw=2"], "from 0 to 1"),
        (["image_samples=2"], "from 0 to 1"),
        (["images_per_sample=0"], "1 or more"),
    ],
)
def test_an_assumption_that_can_not_be_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(PanthalassaError) as refused:
        Assumed().changed(texts)
    assert message in str(refused.value)


def test_what_fits_nowhere_is_refused_with_the_smallest_cluster_that_is_enough(plan: Plan) -> None:
    leanest = min(one.footprint.peak for one in plan.ranking)
    config = configuration()
    smaller = replace(PLACE, gpu=replace(PLACE.gpu, memory=(0.97 * leanest + 4e9) / 0.95))
    with pytest.raises(ConfigError, match=r"fits on 16 a100-80gb.*would fit is --gpus 32"):
        make_plan(config, smaller)
    none = replace(PLACE, gpu=replace(PLACE.gpu, memory=4e9 / 0.95 + 1000))
    with pytest.raises(ConfigError, match=r"no larger cluster of them helps"):
        make_plan(config, none)


def test_the_configured_layout_is_judged_beside_the_best(plan: Plan) -> None:
    slow = plan.ranking[-1]
    asked = make_plan(configuration(*slow.overrides()), PLACE)
    assert asked.asked == slow
    assert dict(told(asked))["as configured"] == slow.worse_than(plan.best)
    best = make_plan(configuration(*plan.best.overrides()), PLACE)
    assert dict(told(best))["as configured"] == "the best"
    assert plan.asked is None, "these GPUs can not have tp_size=1"


def test_people_and_programs_are_told_the_same(plan: Plan) -> None:
    data, rows = json.loads(as_json(plan)), dict(told(plan))
    assert len(data["ranking"]) == len(plan.ranking)
    first = data["ranking"][0]
    assert first["fits"]
    assert first["why_not"] is None
    assert all(one["why_not"] for one in data["ranking"][1:])
    rate = first["speed"]["tokens_per_second_per_gpu"]
    assert f"{rate:,.0f} tokens/s/GPU" in rows["speed"]
    assert next(ranking_rows(plan))[6] == f"{rate:,.0f}"
    assert sum(first["memory"][name] for name in ("parameters", "gradients", "optimizer")) > 0
    assert f"{data['energy']['mwh']:,.1f} MWh" in rows["energy"]
    assert {one["name"] for one in data["assumptions"]} == set(OF_TEXT)
    assert data["images"] is None
    assert f"{data['goodput']['productive']:.1%}" in rows["goodput"]
    assert data["tensor_parallel"] == rows["tensor parallel"]
    assert set(data["simulated_days"]) == {days.policy for days in plan.days}


def test_programs_are_told_null_of_what_never_comes(plan: Plan) -> None:
    never = make_plan(
        configuration(), PLACE, assumed=Assumed().changed(["failures_per_gpu_hour=0"])
    )
    data = json.loads(as_json(never), parse_constant=pytest.fail)
    assert data["goodput"]["between_failures"] is None
    assert "nothing ever fails" in dict(told(never))["goodput"]


@pytest.mark.parametrize(
    ("assumption", "given", "message"),
    [
        ("failures_per_gpu_hour=100", None, "hardly anything would ever be trained"),
        ("pue=1.1", 1.1, "less than one step"),
    ],
)
def test_what_says_nothing_is_no_plan(
    plan: Plan, assumption: str, given: float | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(configuration(), PLACE, given, assumed=Assumed().changed([assumption]))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (duration(12.16), "12.2 days"),
        (duration(0.5), "12.0 h"),
        (duration(0.00377), "5.4 min"),
        (duration(1e-5), "0.864 s"),
        (span(11, 13.5), "11.0 to 13.5 days"),
        (span(0.5, 1), "12.0 h to 1.0 days"),
        (energy(102.8), "102.8 MWh"),
        (energy(0.0021), "2.1 kWh"),
        (energy(2e-5), "20.0 Wh"),
        (mass(0.002), "2.0 kg"),
        (dollars(298_639), "$298,639"),
        (dollars(0.0123), "$0.012"),
        (tokens(1.107e12), "1.107 T"),
    ],
)
def test_numbers_have_the_unit_that_fits_them(said: str, expected: str) -> None:
    assert said == expected


def test_precision_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"add parallel\.precision=bf16"):
        make_plan(configuration("parallel.precision=fp32"), PLACE)
