"""The calibration: what it reaches on published runs, that it is reproducible, and that it finds
truth."""

import csv
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from panthalassa.errors import PanthalassaError
from panthalassa.planner.calibration import (
    FIGURE,
    PRIORS,
    RESIDUALS,
    Calibration,
    calibrate,
    errors,
    explain,
    factors,
    fit,
    table,
)
from panthalassa.planner.calibration_figure import draw
from panthalassa.planner.counts import Counts
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.published import rows, runs
from panthalassa.planner.speed import speed


@pytest.fixture(scope="module")
def done() -> Calibration:
    return calibrate()


def test_published_speeds_are_predicted(done: Calibration):
    off = np.abs(np.expm1(errors(done.fitted, done.factors)))
    assert np.median(off) <= 0.10
    sharded = [
        error
        for run, error in zip(done.fitted, off, strict=True)
        if 6e9 < run.parameters < 71e9 and run.laid.sharding == "full" and run.laid.tp == 1
    ]
    assert len(sharded) > 20
    assert max(sharded) <= 0.30


def test_families_that_were_left_out_are_predicted(done: Calibration):
    away = np.abs(np.expm1(done.left_out))
    assert np.median(away) <= 0.15
    for family in {run.family for run in done.fitted}:
        assert np.median(away[[run.family == family for run in done.fitted]]) <= 0.15, family


def test_runs_that_were_never_fitted_are_predicted(done: Calibration):
    logs = errors(done.checked, done.factors)
    assert len(logs) > 50
    assert np.median(np.abs(np.expm1(logs))) <= 0.10
    assert np.mean(np.abs(logs) <= done.factors.spread) > 0.75


def test_the_files_are_what_the_fit_gives(done: Calibration):
    fresh = table(done)
    with RESIDUALS.open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert [line["id"] for line in kept] == [line["id"] for line in fresh]
    for old, new in zip(kept, fresh, strict=True):
        assert float(old["predicted"]) == pytest.approx(float(new["predicted"]), rel=1e-3)
    assert factors().spread == pytest.approx(done.factors.spread, rel=1e-2)
    for name in ("matmul", "attention"):
        assert getattr(factors(), name) == pytest.approx(getattr(done.factors, name), rel=1e-2)
    assert "family left out" in dict(explain(done))
    assert FIGURE.read_text() == draw(kept, factors().spread)


class Planted(NamedTuple):
    counts: Counts
    cluster: Cluster
    measured: float


def test_planted_factors_are_found_again():
    truth = replace(
        factors(),
        matmul={"ampere": 0.62, "hopper": 0.5},
        contention=0.6,
        step_seconds=0.2,
        straggling=0.02,
    )
    planted = [
        Planted(
            run.counts,
            run.cluster,
            speed(run.counts, run.cluster, truth).tokens_per_second_per_gpu,
        )
        for run in runs()
    ]
    found = fit(planted, PRIORS, noise=1e-3)
    assert found.factors.matmul == pytest.approx(dict(truth.matmul), rel=0.02)
    for name in ("contention", "step_seconds", "straggling"):
        assert getattr(found.factors, name) == pytest.approx(getattr(truth, name), rel=0.1)
    assert found.doubt["matmul.ampere"] < 0.05
    assert np.abs(errors(planted, found.factors)).max() < 0.01


def test_nothing_to_fit_is_refused():
    with pytest.raises(PanthalassaError, match="no run to fit the speed to"):
        fit([], PRIORS)


def test_every_published_row_says_what_it_is_used_for():
    ids = [row["id"] for row in rows()]
    assert len(ids) == len(set(ids))
    for row in rows():
        assert row["source"], row["id"]
        assert row["use"] in ("fit", "check", "energy", "none"), row["id"]
        assert row["use"] not in ("energy", "none") or row["note"], row["id"]
    fitted = [run for run in runs() if run.use == "fit"]
    assert {run.family for run in fitted} >= {"mpt", "megatron21", "fms", "torchtitan"}
