"""The front and the frugal trial: nothing on the front is beaten, and what is off it is."""

import math

from hypothesis import given
from hypothesis import strategies as st

from panthalassa.sweep.pareto import comparable, front, frugal, signed
from panthalassa.sweep.results import Trial

VALUES = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, math.nan])
METRICS = ("loss", "tokens_per_second")


def trial(number: int, state: str = "finished", **metrics: float) -> Trial:
    return Trial(number, f"t{number}", {}, state, 10, metrics)  # type: ignore[arg-type]


@st.composite
def sweeps(draw: st.DrawFn) -> list[Trial]:
    states = st.sampled_from(["finished", "finished", "stopped", "failed", "running"])
    return [
        trial(
            number, draw(states), **{name: draw(VALUES) for name in METRICS if draw(st.booleans())}
        )
        for number in range(draw(st.integers(0, 12)))
    ]


def beats(one: Trial, other: Trial) -> bool:
    pairs = [(signed(name, one.metrics), signed(name, other.metrics), name) for name in METRICS]
    return all(a <= b for a, b, _ in pairs) and any(a < b for a, b, _ in pairs)  # type: ignore[operator]


@given(sweeps())
def test_nothing_on_the_front_is_beaten_and_all_else_is(found: list[Trial]) -> None:
    best = front(found, METRICS)
    known = comparable(found, METRICS)
    for one in known:
        beaten = any(beats(other, one) for other in known)
        assert (one in best) == (not beaten)
    assert all(one in known for one in best)
    losses = [one.metrics["loss"] for one in best]
    assert losses == sorted(losses)


@given(sweeps())
def test_with_one_objective_the_front_is_the_best(found: list[Trial]) -> None:
    known = [one.metrics["loss"] for one in comparable(found, ["loss"])]
    assert [one.metrics["loss"] for one in front(found, ["loss"])] == [
        loss for loss in known if loss == min(known)
    ]


def test_the_frugal_trial_is_near_the_best_and_takes_the_fewest_joules() -> None:
    found = [
        trial(0, loss=2.00, joules=900.0),
        trial(1, loss=2.015, joules=500.0),
        trial(2, loss=2.019, joules=700.0),
        trial(3, loss=2.03, joules=100.0),
        trial(4, loss=2.001),
        trial(5, "stopped", loss=2.0, joules=1.0),
    ]
    chosen = frugal(found, 0.01)
    assert chosen is not None
    assert chosen.number == 1
    assert frugal([trial(0, loss=2.0)], 0.01) is None
    assert frugal([], 0.01) is None
    only_poor = [trial(0, loss=1.0), trial(1, loss=2.0, joules=1.0)]
    assert frugal(only_poor, 0.01) is None, "the best is that of all trials"
