"""Energy, money and carbon: sums, assumptions with names, and what papers published."""

from dataclasses import fields, replace

import pytest

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.planner.calibration import factors
from panthalassa.planner.counts import Arrangement, count, shape
from panthalassa.planner.hardware import Cluster, cluster, gpu
from panthalassa.planner.power import (
    Assumptions,
    calibrated,
    draw,
    explain,
    footprint,
    published,
)
from panthalassa.planner.speed import Speed, speed


def step(network: float | None = None) -> tuple[Speed, Cluster]:
    place = cluster(gpu("a100-80gb"), 64, network)
    return speed(count(shape("mpt-7b"), Arrangement(64, 8, 2048, 512, 2)), place, factors()), place


def test_energy_is_the_sum_of_its_parts():
    found, place = step()
    assumed = Assumptions(pue=1.25, price_per_gpu_hour=3.0, kg_co2_per_kwh=0.1, node_watts=1600)
    whole = footprint(found, place, 10_000, assumed)
    assert whole.gpus == pytest.approx(whole.gpu_watts * 10_000 / 1e6)
    assert whole.nodes == pytest.approx(200 * 10_000 / 1e6)
    assert whole.mwh == pytest.approx(1.25 * (whole.gpus + whole.nodes))
    assert whole.dollars == 30_000
    assert whole.tonnes_co2 == pytest.approx(whole.mwh * 0.1)
    assert whole.by_convention == pytest.approx(400 * 1.25 * 10_000 / 1e6)


def test_a_gpu_that_waits_draws_less():
    (busy, place), (waiting, _) = step(), step(network=2e9)
    watts = [footprint(found, place, 1).gpu_watts for found in (busy, waiting)]
    assert place.gpu.idle < watts[1] < watts[0] < place.gpu.tdp


def test_every_assumption_is_printed_by_its_name():
    found, place = step()
    told = dict(explain(footprint(found, place, 1000), place, Assumptions()))
    for field in fields(Assumptions):
        assert any(field.name in name for name in told), field.name
    assert told["  assumed: node_watts"] == "2200"


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("pue", 0.9),
        ("arithmetic_draw", 1.2),
        ("waiting_draw", -0.1),
        ("price_per_gpu_hour", -1.0),
        ("kg_co2_per_kwh", -0.4),
        ("node_watts", -5.0),
    ],
)
def test_impossible_assumptions_are_refused(what: str, value: float):
    with pytest.raises(ConfigError, match=what):
        Assumptions(**{what: value})
    with pytest.raises(ConfigError, match="GPU-hours"):
        footprint(*step(), -1)


def test_the_convention_gives_published_energies_again():
    known = {one.id: one for one in published()}
    for name in ("llama1-7b", "llama1-13b", "llama1-65b", "opt-175b-table", "openba-15b"):
        assert abs(known[name].convention_error) < 0.02, name
    assert all(abs(one.tonnes_error) < 0.04 for one in known.values() if one.id != "neox-20b")
    # what the convention leaves out, nodes and all, is no small thing
    assert all(one.ours > 1.3 * one.by_convention for one in known.values())


def test_measured_power_moves_the_draws():
    found, place = step()
    own = calibrated(found, place, [250.0, 270.0])
    assert footprint(found, place, 1, own).gpu_watts == pytest.approx(260)
    assert own.pue == Assumptions().pue
    assert draw(found, own) == pytest.approx(200 / 340)
    with pytest.raises(PanthalassaError, match="900 W measured of a a100-80gb"):
        calibrated(found, place, [900.0])
    with pytest.raises(PanthalassaError, match="no power was measured"):
        calibrated(found, place, [])
    limited = replace(place, gpu=gpu("a100-80gb", limit=300))
    assert footprint(found, limited, 1).gpu_watts < footprint(found, place, 1).gpu_watts
