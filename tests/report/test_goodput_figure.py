"""The time line of goodput: each second once, and as many of each part as the account has."""

from collections.abc import Sequence

import pytest
from histories import Command, Simulated, scripts
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.line_ledger import Began, Ended, Lost
from panthalassa.report.goodput_figure import GROUPS, stretches
from panthalassa.report.marks import interruptions, world_sizes
from panthalassa.train.goodput import Launched, Line, Steps, account, timeline

T = 1_800_000_000.0


@given(scripts, st.booleans())
def test_spans_do_not_overlap_and_add_up_to_the_account(
    script: Sequence[Command], merged: bool
) -> None:
    lines: list[Line] = []
    Simulated(lines.append, merged).follow(script)
    goodput, line = account(lines), timeline(lines)
    for before, after in zip(line.spans, line.spans[1:], strict=False):
        assert before.end <= after.start + 1e-6
    for part, seconds in goodput.parts.items():
        of_part = [span.end - span.start for span in line.spans if span.part == part]
        assert sum(of_part) == pytest.approx(seconds, abs=1e-6)
    if goodput.seconds:
        edges, found = stretches(line)
        assert edges[-1] == pytest.approx(goodput.seconds)
        for part, taken in found.items():
            assert taken.sum() == pytest.approx(goodput.parts[part], abs=1e-6)
        assert sum(found.values()) == pytest.approx(edges[1:] - edges[:-1])


def test_every_part_has_one_place_in_the_figure() -> None:
    parts = [part for group in GROUPS for part in group.parts]
    assert sorted(parts) == sorted(account([]).parts)


def steps(first: int, last: int, at: float) -> Steps:
    return Steps(at=T + at, first=first, last=last, seconds=1, data_seconds=0)


LINES: list[Line] = [
    Began(at=T),
    Launched(at=T + 2, workers=4),
    steps(1, 9, 10),
    Lost(at=T + 12, planned=False),
    Launched(at=T + 14, workers=2),
    steps(6, 9, 20),
    Lost(at=T + 21, planned=True),
    Launched(at=T + 22, workers=4),
    steps(10, 12, 30),
    Ended(at=T + 31),
    Began(at=T + 1000),
    Launched(at=T + 1003, workers=1),
    steps(13, 13, 1005),
]


def test_interruptions_are_marked_where_the_run_went_on() -> None:
    marked = interruptions(timeline(LINES))
    assert marked == [("restart", 6), ("resize", 10), ("command", 13)]


def test_the_world_size_follows_launches_and_losses_and_leaves_out_the_time_between() -> None:
    at, workers = world_sizes(timeline(LINES))
    assert list(zip(at, workers, strict=True)) == [
        *[(0.0, 0), (0.0, 0), (2.0, 4), (12.0, 0), (14.0, 2), (21.0, 0), (22.0, 4), (31.0, 0)],
        *[(31.0, 0), (34.0, 1), (36.0, 1)],
    ]
