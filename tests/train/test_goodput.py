"""What the time of a run went to: known answers, and histories of every kind that add up."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pytest
from histories import Command, Simulated, T, scripts
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from panthalassa.line_ledger import Began, Ended, Lost, Waited
from panthalassa.train.goodput import (
    Goodput,
    Launched,
    Line,
    Spent,
    Steps,
    account,
    explain,
    goodput_metrics,
)
from panthalassa.train.run import Outcome


def began(at: float = 0) -> Began:
    return Began(at=T + at)


def launched(at: float) -> Launched:
    return Launched(at=T + at, workers=2)


def steps(first: int, last: int, at: float, seconds: float, data_seconds: float = 0) -> Steps:
    return Steps(at=T + at, first=first, last=last, seconds=seconds, data_seconds=data_seconds)


def spent(what: Literal["compile", "evaluation", "checkpoint"], at: float, seconds: float) -> Spent:
    return Spent(at=T + at, what=what, seconds=seconds)


def lost(at: float, planned: bool = False) -> Lost:
    return Lost(at=T + at, planned=planned)


def ended(at: float) -> Ended:
    return Ended(at=T + at)


def taken(goodput: Goodput) -> dict[str, float]:
    """The parts that took time."""
    return {part: pytest.approx(seconds) for part, seconds in goodput.parts.items() if seconds}


UNDISTURBED: list[Line] = [
    began(),
    launched(5),
    spent("compile", 20, 8),
    spent("evaluation", 22, 1.5),
    steps(1, 1, 26, 4, 1),
    steps(2, 10, 35, 8.5, 0.5),
    spent("checkpoint", 36, 1),
    ended(40),
]
DEATH: list[Line] = [
    began(),
    launched(2),
    steps(1, 5, 20, 10, 1),
    spent("checkpoint", 21, 1),
    steps(6, 9, 29, 8, 2),
    lost(33),
    Waited(at=T + 43, seconds=9),
    launched(43),
    steps(6, 6, 50, 3),
    steps(7, 10, 58, 8),
    ended(60),
]
RESIZE_THEN_KILLED: list[Line] = [
    began(),
    steps(1, 4, 10, 4),
    spent("checkpoint", 11, 1),
    lost(12, planned=True),
    steps(5, 6, 20, 2),
    began(100),
    steps(5, 8, 110, 4),
    ended(111),
]


def test_an_undisturbed_run() -> None:
    goodput = account(UNDISTURBED)
    assert taken(goodput) == {
        "start": 12.5,
        "compile": 8,
        "evaluation": 1.5,
        "productive": 11,
        "data_wait": 1.5,
        "other": 0.5,
        "checkpoint": 1,
        "finish": 4,
    }
    assert goodput.fraction == pytest.approx(11 / 40)
    assert (goodput.commands, goodput.restarts, goodput.resizes, goodput.lost_steps) == (1, 0, 0, 0)
    assert goodput.mttr_seconds is None


def test_a_death_costs_its_detection_the_wait_the_start_and_the_steps_that_are_repeated() -> None:
    goodput = account(DEATH)
    assert taken(goodput) == {
        "start": 10,
        "productive": 9 + 11,
        "data_wait": 1,
        "checkpoint": 1,
        "lost": 8,
        "recovery": 4 + 1 + 4,
        "standby": 9,
        "finish": 2,
    }
    assert (goodput.restarts, goodput.resizes, goodput.lost_steps) == (1, 0, 4)
    assert goodput.mttr_seconds == pytest.approx(50 - 29)


def test_a_resize_is_no_restart_and_a_killed_driver_ends_with_its_last_line() -> None:
    goodput = account(RESIZE_THEN_KILLED)
    assert taken(goodput) == {
        "start": 6 + 6,
        "productive": 4 + 4,
        "checkpoint": 1,
        "resize": 1 + 6,
        "lost": 2,
        "finish": 1,
    }
    assert goodput.seconds == pytest.approx(20 + 11)
    assert (goodput.commands, goodput.restarts, goodput.resizes, goodput.lost_steps) == (2, 0, 1, 2)
    assert goodput.mttr_seconds is None


def test_a_line_of_which_a_part_is_repeated_is_lost_in_proportion() -> None:
    goodput = account([began(), steps(1, 10, 20, 20, 5), lost(20), steps(8, 8, 30, 2)])
    assert taken(goodput) == {
        "productive": 15 * 0.7 + 2,
        "data_wait": 5 * 0.7,
        "lost": 20 * 0.3,
        "recovery": 8,
    }
    assert goodput.lost_steps == 3


def test_steps_that_are_lost_twice_count_twice() -> None:
    again = [lost(10), steps(3, 6, 20, 4), lost(20), steps(2, 6, 30, 5)]
    goodput = account([began(), steps(1, 4, 10, 4), *again])
    assert goodput.lost_steps == 2 + 5
    assert taken(goodput) == {"start": 6, "productive": 6, "lost": 7, "recovery": 6 + 5}


def test_a_rollback_within_an_attempt_is_a_recovery() -> None:
    goodput = account([began(), steps(1, 4, 4, 4), steps(3, 4, 9, 2), ended(9)])
    assert taken(goodput) == {"productive": 4, "lost": 2, "recovery": 3}
    assert (goodput.restarts, goodput.lost_steps) == (0, 2)


def test_two_deaths_in_a_row_are_one_recovery_and_two_times_to_recover() -> None:
    dies = [steps(1, 1, 1, 1), lost(5), launched(6), lost(15), launched(16), steps(2, 2, 30, 1)]
    goodput = account([began(), *dies])
    assert taken(goodput) == {"productive": 2, "recovery": 28}
    assert goodput.mttr_seconds == pytest.approx(((30 - 1) + (30 - 6)) / 2)


def test_an_attempt_that_dies_before_its_first_step_was_starting() -> None:
    goodput = account([began(), launched(2), lost(10), launched(11), steps(1, 2, 20, 4), ended(20)])
    assert taken(goodput) == {"start": 10, "recovery": 6, "productive": 4}
    assert goodput.mttr_seconds == pytest.approx(18 - 2), "until the first of the two steps"


def test_a_loss_that_nothing_follows_has_no_time_to_recovery() -> None:
    goodput = account([began(), steps(1, 1, 1, 1), lost(4), ended(5), began(9), steps(2, 2, 20, 1)])
    assert goodput.mttr_seconds is None
    assert goodput.restarts == 1
    assert taken(goodput) == {"productive": 2, "recovery": 4, "start": 10}


def test_a_clock_that_jumps_back_takes_nothing_twice() -> None:
    goodput = account(
        [began(), steps(1, 4, 10, 10), steps(5, 5, 9, 1), spent("checkpoint", 12, 4), ended(11)]
    )
    assert taken(goodput) == {"productive": 10, "checkpoint": 2}
    assert goodput.seconds == pytest.approx(12)


def test_nothing_comes_to_nothing() -> None:
    goodput = account([])
    assert (goodput.seconds, goodput.fraction, goodput.commands) == (0, 0, 0)
    assert list(explain(goodput)) == [("goodput", "0.0%: 0 s of 0 s trained the model")]


def times(largest: int) -> st.SearchStrategy[float]:
    return st.integers(0, largest * 4).map(lambda quarters: quarters / 4)


def any_line() -> st.SearchStrategy[Line]:
    at = times(1000).map(lambda seconds: T + seconds)
    whats = st.sampled_from(["compile", "evaluation", "checkpoint"])
    number = st.integers(1, 20)
    return st.one_of(
        st.builds(Began, at=at),
        st.builds(Waited, at=at, seconds=times(50)),
        st.builds(Launched, at=at, workers=st.just(1)),
        st.builds(Spent, at=at, what=whats, seconds=times(50)),
        st.tuples(at, number, number, times(50), times(50)).map(
            lambda drawn: Steps(
                at=drawn[0],
                first=min(drawn[1:3]),
                last=max(drawn[1:3]),
                seconds=drawn[3],
                data_seconds=drawn[4],
            )
        ),
        st.builds(Lost, at=at, planned=st.booleans()),
        st.builds(Ended, at=at),
    )


def wall(lines: Sequence[Line]) -> float:
    """The time from the first to the latest line of each command."""
    commands: list[list[Line]] = []
    for before, line in zip([None, *lines], lines, strict=False):
        if isinstance(line, Began) or before is None or isinstance(before, Ended):
            commands.append([])
        commands[-1].append(line)
    starts = [command[0].at - getattr(command[0], "seconds", 0) for command in commands]
    ends = [max(line.at for line in command) for command in commands]
    return sum(end - start for start, end in zip(starts, ends, strict=True))


@given(st.lists(any_line(), max_size=30))
def test_whatever_is_written_the_parts_add_up_to_the_time(lines: list[Line]) -> None:
    """Also with clocks that jump, lines that are missing and steps that come out of order."""
    goodput = account(lines)
    assert min(goodput.parts.values()) >= 0
    assert sum(goodput.parts.values()) == pytest.approx(wall(lines), abs=1e-6)
    trained = sum(line.last - line.first + 1 for line in lines if isinstance(line, Steps))
    assert 0 <= goodput.lost_steps <= trained


@given(scripts, st.booleans())
def test_every_second_goes_where_it_went(script: list[Command], merged: bool) -> None:
    """Whichever steps share a line."""
    lines: list[Line] = []
    run = Simulated(lines.append, merged)
    run.follow(script)
    goodput = account(lines)
    assert taken(goodput) == run.expected()
    assert goodput.lost_steps == run.lost_steps
    ends = Counter(attempt.end for command in script for attempt in command.attempts[:-1])
    assert (goodput.restarts, goodput.resizes) == (ends["death"], ends["resize"])
    assert goodput.commands == len(script)
    mean = sum(run.repairs) / len(run.repairs) if run.repairs else None
    assert goodput.mttr_seconds == (mean and pytest.approx(mean))


def test_the_table_has_the_parts_that_took_time_the_longest_first() -> None:
    assert list(explain(account(DEATH))) == [
        ("goodput", "33.3%: 20 s of 60 s trained the model"),
        ("  productive", "      20.0 s  33.3%"),
        ("  start", "      10.0 s  16.7%"),
        ("  recovery", "       9.0 s  15.0%"),
        ("  standby", "       9.0 s  15.0%"),
        ("  lost", "       8.0 s  13.3%"),
        ("  finish", "       2.0 s   3.3%"),
        ("  data wait", "       1.0 s   1.7%"),
        ("  checkpoint", "       1.0 s   1.7%"),
        ("interruptions", "1 restart, 4 lost steps, 21.0 s from loss to step on average"),
    ]
    assert "interruptions" not in dict(explain(account(UNDISTURBED)))


def test_metrics_name_every_part_and_no_recovery_that_never_was() -> None:
    metrics = goodput_metrics(account(DEATH))
    assert metrics["goodput"] == pytest.approx(1 / 3)
    assert (metrics["mttr_seconds"], metrics["restarts"], metrics["lost_steps"]) == (21, 1, 4)
    assert sum(metrics[name] for name in metrics if name.startswith("seconds_")) == 60
    assert "mttr_seconds" not in goodput_metrics(account(UNDISTURBED))


def test_a_real_run_leaves_nothing_unexplained(undisturbed: Outcome) -> None:
    goodput, steps = undisturbed.goodput, undisturbed.history.steps
    assert goodput.seconds == pytest.approx(undisturbed.seconds, rel=0.01)
    assert goodput.parts["other"] < 0.01 * goodput.seconds
    trained = sum(step.seconds - step.data_seconds for step in steps)
    assert goodput.parts["productive"] == pytest.approx(trained, rel=0.01)
    assert goodput.parts["data_wait"] == pytest.approx(
        sum(step.data_seconds for step in steps), rel=0.01
    )
    assert goodput.parts["evaluation"] > 0
    assert goodput.parts["checkpoint"] > 0
    assert (goodput.commands, goodput.restarts, goodput.lost_steps) == (1, 0, 0)
    (tracked,) = MlflowClient(undisturbed.tracking_uri).search_runs(["1"])
    assert tracked.data.metrics["seconds_productive"] == goodput.parts["productive"]
