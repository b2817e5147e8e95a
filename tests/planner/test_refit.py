"""Calibration from own steps: planted hardware is found, and other sizes are predicted."""

from dataclasses import replace

import numpy as np
import pytest

from panthalassa.config_model import Model
from panthalassa.errors import PanthalassaError
from panthalassa.planner.calibration import factors
from panthalassa.planner.counts import Arrangement, Counts, Shape, count, shape
from panthalassa.planner.hardware import GPU, Cluster, cluster, gpu
from panthalassa.planner.refit import Observation, refit
from panthalassa.planner.speed import speed

CPU = GPU("cpu", 60e9, "cpu", memory=8e9, bandwidth=12e9, link=4e9, tdp=20.0, idle=5.0)
LAPTOP = Shape.of(Model(preset="laptop"))
TRUTH = replace(
    factors(), matmul={"cpu": 0.55}, attention={"cpu": 0.2}, memory=0.4, step_seconds=0.03
)


def counts(batch: int, micro_batch: int = 2, sequence: int = 256, ranks: int = 1) -> Counts:
    laid = Arrangement(ranks, ranks, sequence, batch, micro_batch, attention="masked")
    return count(LAPTOP, laid)


def observed(noise: float = 0.0) -> list[Observation]:
    place, random = Cluster(CPU, 1, 1, 1e9, 0.0), np.random.default_rng(1)
    return [
        Observation(
            one,
            place,
            speed(one, place, TRUTH).step_seconds * float(np.exp(noise * random.normal())),
        )
        for one in (counts(2), counts(8))
    ]


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_two_batch_sizes_predict_others(noise: float):
    own, place = refit(observed(noise)), observed()[0].cluster
    for batch in (1, 4, 16, 64):
        predicted = speed(counts(batch), place, own.factors).step_seconds
        truth = speed(counts(batch), place, TRUTH).step_seconds
        assert predicted == pytest.approx(truth, rel=0.15)


def test_what_steps_do_not_determine_is_named_and_stays():
    own = refit(observed())
    assert {"link", "network", "straggling"} <= set(own.assumed)
    assert own.factors.link == pytest.approx(factors().link)
    assert "matmul.cpu" in own.determined
    assert own.factors.spread == factors().spread


def test_a_known_gpu_starts_from_published_runs():
    """One slow cluster, measured once, is predicted at eight times the size."""
    truth = replace(factors(), matmul={"ampere": 0.6}, attention={"ampere": 0.4})
    small, large = (Arrangement(n, 8, 2048, 8 * n, 8, recompute="full") for n in (64, 512))
    one, other = (count(shape("mpt-7b"), laid) for laid in (small, large))
    place, wide = (cluster(gpu("a100-80gb"), n) for n in (64, 512))
    own = refit([Observation(one, place, speed(one, place, truth).step_seconds)])
    predicted = speed(other, wide, own.factors).step_seconds
    assert predicted == pytest.approx(speed(other, wide, truth).step_seconds, rel=0.03)
    assert own.factors.matmul["ampere"] < 0.96 * factors().matmul["ampere"]


def test_joules_become_draws():
    steps = [replace(one, joules=12.5 * one.seconds) for one in observed()]
    assumed = refit(steps).assumptions
    assert assumed.arithmetic_draw < refit(observed()).assumptions.arithmetic_draw


def test_what_can_not_be_a_step_is_refused():
    first, second = observed()
    with pytest.raises(PanthalassaError, match="no step was measured"):
        refit([])
    with pytest.raises(PanthalassaError, match=r"a step of 0\.0 s"):
        refit([replace(first, seconds=0.0)])
    with pytest.raises(PanthalassaError, match="of the peak of cpu"):
        refit([replace(first, seconds=first.seconds / 1000)])
    other = replace(second, cluster=cluster(gpu("a100-80gb"), 8))
    with pytest.raises(PanthalassaError, match="each kind of GPU for itself"):
        refit([first, other])
