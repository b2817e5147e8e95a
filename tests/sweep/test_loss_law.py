"""The loss law: planted constants come back, intervals hold what they promise, ignorance is admitted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.errors import PanthalassaError
from panthalassa.sweep.loss_law import Floats, LossLaw, fit

LAW = LossLaw.of(np.array([np.log(406.4), np.log(410.7), 1.69, 0.34, 0.28]))


def ladder(sizes: Floats, budgets: Floats) -> tuple[Floats, Floats]:
    """Each size at each budget."""
    n, d = np.meshgrid(sizes, budgets)
    return n.ravel(), d.ravel()


WIDE = ladder(np.geomspace(1e7, 2e9, 6), np.geomspace(2e8, 2e10, 5))
SMALL = ladder(np.geomspace(1e5, 3e6, 5), np.geomspace(1e5, 2e6, 4))


@pytest.mark.parametrize("runs", [WIDE, SMALL], ids=["30 runs", "20 runs"])
def test_both_planted_exponents_are_inside_their_intervals_in_93_of_100_seeds(
    runs: tuple[Floats, Floats],
) -> None:
    held = 0
    for seed in range(100):
        noise = 0.01 * np.random.default_rng(seed).normal(size=len(runs[0]))
        found = fit(*runs, LAW.loss(*runs) * np.exp(noise)).exponents
        planted = {"alpha": LAW.alpha, "beta": LAW.beta}
        held += all(found[name].low <= planted[name] <= found[name].high for name in planted)
    assert held >= 93


@settings(max_examples=20)
@given(
    alpha=st.floats(0.2, 0.8),
    beta=st.floats(0.2, 0.8),
    e=st.floats(0.5, 3.0),
    share=st.floats(0.3, 3.0),
)
def test_exact_losses_give_their_law_back(
    alpha: float, beta: float, e: float, share: float
) -> None:
    log_a, log_b = alpha * np.log(1e8), np.log(share) + beta * np.log(2e9)
    planted = LossLaw.of(np.array([log_a, log_b, e, alpha, beta]))
    found = fit(*WIDE, planted.loss(*WIDE)).law
    assert found.loss(*WIDE) == pytest.approx(planted.loss(*WIDE), rel=1e-4)
    assert float(found.alpha) == pytest.approx(alpha, rel=0.02)
    assert float(found.beta) == pytest.approx(beta, rel=0.02)


def test_a_run_that_went_wrong_hardly_moves_the_law() -> None:
    losses = LAW.loss(*WIDE) * np.exp(0.005 * np.random.default_rng(1).normal(size=30))
    before = fit(*WIDE, losses).exponents
    losses[7] *= 1.5
    after = fit(*WIDE, losses).exponents
    for name, (value, low, high) in before.items():
        assert abs(after[name].value - value) < (high - low) / 4


def test_sizes_close_together_do_not_determine_their_exponent_and_it_says_so() -> None:
    close = ladder(np.array([1e8, 1.2e8, 1.4e8]), np.geomspace(2e8, 2e10, 5))
    noise = 0.01 * np.random.default_rng(0).normal(size=15)
    found = fit(*close, LAW.loss(*close) * np.exp(noise))
    (told,) = found.undetermined
    assert "alpha" in told
    assert "model sizes" in told
    assert fit(*WIDE, LAW.loss(*WIDE)).undetermined == []


def test_data_that_never_mattered_leave_their_exponent_open() -> None:
    without = LossLaw.of(np.array([np.log(406.4), -50.0, 1.69, 0.34, 0.28]))
    noise = 0.01 * np.random.default_rng(0).normal(size=30)
    found = fit(*WIDE, without.loss(*WIDE) * np.exp(noise))
    assert any("beta" in told for told in found.undetermined)
    assert found.exponents["beta"].low <= 0


def test_fewer_runs_and_more_noise_make_intervals_wider() -> None:
    def width(runs: tuple[Floats, Floats], noise: float) -> float:
        losses = LAW.loss(*runs)
        seen = np.exp(noise * np.random.default_rng(3).normal(size=len(losses)))
        _, low, high = fit(*runs, losses * seen).exponents["alpha"]
        return high - low

    few = ladder(np.geomspace(1e7, 2e9, 4), np.geomspace(2e8, 2e10, 3))
    assert width(WIDE, 0.002) < width(WIDE, 0.01) < width(few, 0.01)


def test_what_can_not_determine_five_constants_is_refused() -> None:
    two_budgets = ladder(np.geomspace(1e7, 2e9, 6), np.array([1e9, 1e10]))
    with pytest.raises(
        PanthalassaError, match=r"3 budgets of tokens.*: 12, .*sizes: 6, .*budgets: 2"
    ):
        fit(*two_budgets, LAW.loss(*two_budgets))
    six = tuple(values[:6] for values in SMALL)
    with pytest.raises(PanthalassaError, match="takes 7 finished trials"):
        fit(six[0], six[1], LAW.loss(*six))
    losses = LAW.loss(*WIDE)
    losses[0] = np.nan
    with pytest.raises(PanthalassaError, match="finite"):
        fit(*WIDE, losses)
