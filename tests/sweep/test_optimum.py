"""The best size for a budget: right by brute force, right for what is published, honest of the rest."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.errors import PanthalassaError
from panthalassa.sweep.ladder import Question, answer
from panthalassa.sweep.loss_law import Fit, LossLaw
from panthalassa.sweep.optimum import (
    SIX_N,
    Cost,
    best_size,
    budget,
    cost_of,
    given_away,
    larger,
    lowest,
    optimum,
)
from panthalassa.sweep.published import BESIROGLU, HOFFMANN

FLAGSHIP = budget(512, "A100", 14, 0.43)
CHINCHILLA = 6 * 70e9 * 1.4e12


@given(
    alpha=st.floats(0.1, 0.9),
    beta=st.floats(0.1, 0.9),
    log_a=st.floats(2, 9),
    log_b=st.floats(2, 9),
    exponent=st.floats(0.9, 1.1),
    log_flops=st.floats(30, 58),
)
def test_no_other_size_is_better_with_the_same_budget(
    alpha: float, beta: float, log_a: float, log_b: float, exponent: float, log_flops: float
) -> None:
    law = LossLaw.of(np.array([log_a, log_b, 1.7, alpha, beta]))
    cost, flops = Cost(7.0, exponent), float(np.exp(log_flops))
    best = float(best_size(law, flops, cost))
    others = best * np.geomspace(1e-3, 1e3, 61)
    losses = law.loss(others, flops / cost(others))
    assert losses.argmin() == 30
    assert float(lowest(law, flops, cost)) == pytest.approx(losses.min())


def test_published_laws_have_their_published_optima() -> None:
    """Tokens a parameter at Chinchilla's budget: about 70 by Hoffmann's law, 20 by its replication."""
    ratios = []
    for law in (HOFFMANN, BESIROGLU.law):
        size = float(best_size(law, CHINCHILLA, SIX_N))
        ratios.append(CHINCHILLA / (6 * size) / size)
    assert ratios[0] == pytest.approx(70, rel=0.2)
    assert ratios[1] == pytest.approx(20, rel=0.25)


def test_the_replication_has_its_published_errors() -> None:
    sample = BESIROGLU.sample
    ratio = sample.beta / (sample.alpha + sample.beta)
    assert np.round(ratio.std(), 2) == 0.02
    assert np.round(sample.alpha.std(), 2) == 0.02
    assert np.round(sample.beta.std(), 2) == 0.02
    assert sample.e.std() == pytest.approx(0.03, abs=0.006)
    assert np.std(482.01 * (sample.log_a - BESIROGLU.law.log_a)) == pytest.approx(124.58, rel=0.05)


def test_a_budget_is_gpus_times_days_times_peak_times_mfu() -> None:
    assert math.isclose(FLAGSHIP, 512 * 14 * 86_400 * 312e12 * 0.43)
    for wrong in (
        (8, "A100", math.inf, 0.4),
        (0, "A100", 14.0, 0.4),
        (8, "A100", 14.0, 40.0),
        (8, "A100", -1.0, 0.4),
    ):
        with pytest.raises(PanthalassaError, match="MFU up to 1"):
            budget(*wrong)
    with pytest.raises(PanthalassaError, match="unknown GPU"):
        budget(8, "A1000", 14, 0.4)


def test_the_flagships_size_is_below_the_optimum_of_its_cluster_and_costs_little_loss() -> None:
    found = optimum(BESIROGLU, FLAGSHIP, SIX_N)
    assert 12.31e9 < found.parameters.low < 26.8e9 < found.parameters.high < 40e9
    assert found.parameters.value == pytest.approx(26.8e9, rel=0.01)
    assert found.parameters.value * found.tokens.value * 6 == pytest.approx(FLAGSHIP)
    assert larger(BESIROGLU, 12.31e9, FLAGSHIP, SIX_N) > 0.99
    lost = given_away(BESIROGLU, 12.31e9, FLAGSHIP, SIX_N)
    assert 0 < lost.low < lost.value < lost.high < 0.02
    said = dict(answer(Question()))
    assert "26.8 B" in said["Besiroglu 2024"]
    assert "16.7 B" in said["Hoffmann 2022"]
    assert "not published" in said["Hoffmann 2022"]
    assert "below the optimum" in said["12.3 B"]
    assert "12.4 B" in said["text"]


def test_a_law_that_may_not_need_size_or_data_has_an_optimum_without_end() -> None:
    chance = np.random.default_rng(0)
    theta = np.array([6.0, 6.0, 1.7, 0.3, 0.3])
    spread = np.array([0, 0, 0, 0.3, 0.3]) * chance.normal(size=(10_000, 5))
    vague = Fit(LossLaw.of(theta), LossLaw.of(theta + spread), 0.01, 30)
    found = optimum(vague, 1e20, SIX_N).parameters
    assert found.low == 0
    assert found.high == np.inf


def test_the_cost_of_a_token_goes_through_the_models_that_were_trained() -> None:
    sizes = np.array([1e6, 1e7, 1e8])
    cost = cost_of(sizes, 7.0 * sizes**0.98)
    assert cost.factor == pytest.approx(7.0)
    assert cost.exponent == pytest.approx(0.98)
