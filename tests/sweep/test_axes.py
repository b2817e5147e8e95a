"""The axes of parallel coordinates: every value has its place, and what says nothing is not drawn."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from panthalassa.sweep.axes import axes, axis, metric_axis
from panthalassa.sweep.results import Trial


def trials(*values: dict[str, Any]) -> list[Trial]:
    return [Trial(number, f"t{number}", each) for number, each in enumerate(values)]


def test_keys_that_change_together_share_an_axis_and_constant_ones_have_none() -> None:
    small, large = {"hidden_size": 64, "layers": 2}, {"hidden_size": 128, "layers": 4}
    found = list(
        axes(
            trials(
                {"model": small, "train.steps": 10, "run.seed": 1},
                {"model": small, "train.steps": 20, "run.seed": 1},
                {"model": large, "train.steps": 10, "run.seed": 1},
            )
        )
    )
    assert [(one.name, one.also) for one in found] == [
        ("model.hidden_size", ("model.layers",)),
        ("train.steps", ()),
    ]
    assert found[0].places == [0.0, 0.0, 1.0]
    assert found[0].ticks == {0.0: "64", 1.0: "128"}


def test_values_that_are_written_alike_are_told_apart() -> None:
    drawn = [{"rate": rate, "same": 1} for rate in (0.00121, 0.00122, 0.00124)]
    assert [one.name for one in axes(trials(*drawn))] == ["rate"]


def test_keys_whose_values_are_all_different_do_not_belong_together() -> None:
    drawn = [{"a": 0.1 * n, "b": 3.0 - n} for n in range(1, 5)]
    assert [one.name for one in axes(trials(*drawn))] == ["a", "b"]


def test_decades_and_what_was_drawn_so_are_on_a_logarithmic_axis() -> None:
    assert axis("rate", [1e-4, 1e-3, 1e-2]).places == pytest.approx([0, 0.5, 1])
    assert axis("rate", [1.0, 4.0, 16.0]).places == pytest.approx([0, 0.2, 1])
    assert axis("rate", [1.0, 4.0, 16.0], log=True).places == pytest.approx([0, 0.5, 1])
    assert axis("share", [0.0, 0.5, 1.0], log=True).places == pytest.approx([0, 0.5, 1])


def test_names_stand_side_by_side_and_what_is_missing_has_no_place() -> None:
    found = axis("kind", ["wsd", None, "cosine", True])
    assert math.isnan(found.places[1])
    assert len({place for place in found.places if place == place}) == 3
    assert set(found.ticks.values()) == {"True", "cosine", "wsd"}
    assert all(math.isnan(place) for place in metric_axis(trials({}, {}), "loss").places)


@given(st.lists(st.floats(-1e6, 1e6) | st.integers(0, 10**9) | st.just(math.nan), max_size=20))
@example([2.0, 1e-308])
def test_every_number_is_on_its_axis_in_order(values: list[float]) -> None:
    found = axis("x", values)
    known = [(v, p) for v, p in zip(values, found.places, strict=True) if not math.isnan(v)]
    assert all(-1e-9 <= place <= 1 + 1e-9 for _, place in known)
    assert [p for _, p in sorted(known)] == sorted(p for _, p in known)
    assert all(math.isnan(p) == math.isnan(v) for v, p in zip(values, found.places, strict=True))
    assert len(found.ticks) <= 6
