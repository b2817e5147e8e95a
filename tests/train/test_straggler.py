"""Stragglers: a slow rank is named in any company, and nobody else."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import go, looping, open_run
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.train.callback import Callback
from panthalassa.train.events import Notice
from panthalassa.train.straggler import FACTOR, Straggler, slow_ranks
from panthalassa.train.training_run import TrainingRun

alike = st.lists(st.floats(0.95, 1.05), min_size=1, max_size=64)


@given(alike, st.floats(2, 100), st.floats(1e-4, 1e3), st.data())
def test_a_slow_rank_is_named_and_nobody_else(
    others: list[float], factor: float, unit: float, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, len(others)))
    seconds = [x * unit for x in [*others[:rank], factor, *others[rank:]]]
    (slow,) = slow_ranks(seconds)
    assert slow.rank == rank
    assert slow.factor == pytest.approx(factor, rel=0.06)
    assert slow.z > 3.5


@given(st.lists(st.floats(1, FACTOR), min_size=1, max_size=64))
def test_ranks_that_are_alike_are_not_named(seconds: list[float]) -> None:
    assert slow_ranks(seconds) == []


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=64), st.randoms())
def test_it_does_not_matter_who_is_slow(seconds: list[float], chance: Any) -> None:
    order = list(range(len(seconds)))
    chance.shuffle(order)
    found = {slow.rank: slow for slow in slow_ranks(seconds)}
    shuffled = {order[s.rank]: s for s in slow_ranks([seconds[rank] for rank in order])}
    assert {rank: (s.factor, s.z) for rank, s in found.items()} == {
        rank: (s.factor, s.z) for rank, s in shuffled.items()
    }


def test_times_too_short_to_be_measured_name_nobody() -> None:
    assert slow_ranks([1.0, 5e-324]) == []
    assert slow_ranks([0.0, 0.0, 1.0]) == []


def test_where_all_differ_much_nobody_is_an_outlier() -> None:
    """Iglewicz and Hoaglin's score: by 0.6745 (4.5 - 2.5) / 1, and 0.6745 (40 - 2.5) / 1."""
    assert slow_ranks([0.5, 1.5, 2.5, 3.5, 4.5]) == []
    (slow,) = slow_ranks([0.5, 1.5, 2.5, 3.5, 40])
    assert (slow.rank, slow.factor) == (4, 16)
    assert slow.z == pytest.approx(0.6745 * 37.5)


def test_ranks_without_any_time_of_their_own_are_alike() -> None:
    assert slow_ranks([0.0, 0.0, 0.0, 1.0]) == []


class Tired(Callback):
    """A rank that is slow for some steps."""

    def __init__(self, rank: int, steps: list[int]) -> None:
        self.rank, self.steps = rank, steps

    def before_step(self, run: TrainingRun) -> None:
        tired = dist.get_rank() == self.rank and run.step in self.steps
        time.sleep(0.2 if tired else 0.04)


def named(config: Config, folder: str, rank: int, steps: list[int]) -> list[str]:
    run = open_run(config, folder)
    events = go(run, Tired(rank, steps), Straggler())
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("world", [2, 3])
def test_a_slow_rank_is_named_once_an_episode(ranks: Any, tmp_path: Any, world: int) -> None:
    config = looping("train.steps=20", "guard.straggler_every=4", "checkpoint.every=100")
    slow = [*range(0, 9), *range(16, 20)]  # two periods, a hiccup, and a period behind a good one
    for notices in ranks(world, named, config, str(tmp_path), 1, slow):
        assert len(notices) == 2
        assert all(notice.startswith("rank 1 on ") for notice in notices)
        assert " times the median in what it does alone" in notices[0]
