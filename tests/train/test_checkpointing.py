"""When a run saves, and which of its checkpoints are kept."""

import math
from pathlib import Path

import pytest
from checkpoints import commit_by_hand
from hypothesis import given
from hypothesis import strategies as st
from phases import phase

from panthalassa.errors import CheckpointError
from panthalassa.storage import open_storage
from panthalassa.stream.ledger import Attempt, Ledger
from panthalassa.train import checkpoint
from panthalassa.train.checkpointing import DAY, healthy, interval, mean_time_between_failures
from panthalassa.train.events import Step

seconds = st.floats(1e-4, 1e3)
long = st.floats(60, 1e7)


def test_the_interval_is_youngs_when_nothing_bounds_it() -> None:
    assert interval(0.5, 1, 10_000, 1e6) == pytest.approx(100)
    assert interval(0.04, 1.9, DAY, 60) == pytest.approx(58.1), "bounded by what may be lost"
    assert interval(0.04, 50, DAY, 60) == 50, "no snapshot is taken while another is written"


@given(cost=seconds, write=seconds, between=long, most=seconds)
def test_a_death_costs_no_more_than_it_may_where_writing_allows_it(
    cost: float, write: float, between: float, most: float
) -> None:
    found = interval(cost, write, between, most)
    assert found >= write
    assert found + write <= max(most, 2 * write) * (1 + 1e-9)


@given(cost=seconds, write=seconds, between=long, most=seconds, more=st.floats(1, 100))
def test_dearer_snapshots_and_rarer_failures_never_shorten_the_interval(
    cost: float, write: float, between: float, most: float, more: float
) -> None:
    found = interval(cost, write, between, most)
    assert interval(cost * more, write, between, most) >= found
    assert interval(cost, write, between * more, most) >= found


@given(cost=seconds, between=long, other=st.floats(0.01, 100))
def test_no_other_interval_loses_less_time(cost: float, between: float, other: float) -> None:
    """To first order, a second of training loses cost / t to snapshots and t / 2 MTBF to failures."""
    best = interval(cost, 0, between, math.inf)

    def lost(t: float) -> float:
        return cost / t + t / (2 * between)

    assert lost(best) <= lost(best * other) * (1 + 1e-9)


def test_failures_are_expected_as_they_come() -> None:
    assert mean_time_between_failures(64, failures=0, seconds=0) == DAY / 64
    assert mean_time_between_failures(1, failures=9, seconds=9 * DAY) == DAY
    often = mean_time_between_failures(1, failures=100, seconds=6000)
    assert 60 < often < DAY / 100 + 60


def step(loss: float, grad_norm: float = 1.0) -> Step:
    return Step(
        step=1, at=0, loss=loss, grad_norm=grad_norm, learning_rate=0, tokens=1, seconds=1,
        data_seconds=0, tokens_per_second=1, mfu=0, joules=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("newest", "good"),
    [(step(2.5), True), (step(4.0), False), (step(0.1), True), (step(math.nan), False),
     (step(math.inf), False), (step(2.0, math.nan), False)],
)  # fmt: skip
def test_what_is_not_finite_or_spikes_is_not_healthy(newest: Step, good: bool) -> None:
    before = [2 + 0.2 * (-1) ** n for n in range(64)]  # a deviation of 0.2: six of them are 1.2
    assert healthy(newest, [*before, math.nan]) == good


def test_a_young_run_is_healthy_while_it_is_finite() -> None:
    assert healthy(step(9.0), [5.0, 5.0])
    assert not healthy(step(math.nan), [])


def test_the_newest_are_kept_and_a_healthy_one_before_them(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    for at, good in ((9, True), (10, True), (11, False), (100, False), (2000, False)):
        commit_by_hand(run, at, good)
    run.write("spool/metrics", b"not a checkpoint")
    assert checkpoint.known_good(run, 10**6) == "step-00000010"
    for _ in range(2):
        checkpoint.clean(run, keep=2, step=2000)
        assert run.folders() == ["spool", "step-00000010", "step-00000100", "step-00002000"]
    commit_by_hand(run, 3000)
    commit_by_hand(run, 4000)
    commit_by_hand(run, 5000)
    checkpoint.clean(run, keep=2, step=5000)
    kept = ["step-00003000", "step-00004000", "step-00005000"]
    assert checkpoint.committed(run) == kept
    assert checkpoint.known_good(run, 10**6) == "step-00005000"


def test_a_folder_without_its_commit_is_never_chosen_and_may_be_another_saves(
    tmp_path: Path,
) -> None:
    run = open_storage(str(tmp_path))
    for at in (1, 2):
        commit_by_hand(run, at)
    run.write("step-00000003/__0_0.distcp", b"a crash came before the commit, or did not")
    assert checkpoint.committed(run) == ["step-00000001", "step-00000002"]
    checkpoint.clean(run, keep=1, step=2)
    assert checkpoint.torn(run) == ["step-00000003"]


def test_what_is_set_aside_stays_until_enough_newer_ones_have_come(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    for _ in range(2):
        commit_by_hand(run, 8)
        checkpoint.set_aside(run, "step-00000008")
    aside = ["corrupt-step-00000008", "corrupt-step-00000008-2"]
    for at in (4, 8, 12):
        commit_by_hand(run, at)
        checkpoint.clean(run, keep=2, step=at)
        assert [name for name in run.folders() if name.startswith("corrupt")] == aside
    commit_by_hand(run, 16)
    checkpoint.clean(run, keep=2, step=16)
    assert run.folders() == ["step-00000008", "step-00000012", "step-00000016"]


def test_a_run_without_a_folder_has_no_checkpoints(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path / "new"))
    assert checkpoint.committed(run) == []
    assert checkpoint.newest(run) is None
    assert checkpoint.known_good(run, 10**6) is None
    checkpoint.clean(run, keep=1, step=1)


def test_the_newest_commit_that_can_be_read_is_found_without_reading_files(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    for at in (1, 2):
        commit_by_hand(run, at)
    run.write("step-00000002/checkpoint.json", b"{}")
    found = checkpoint.newest(run)
    assert found is not None
    assert found[0] == "step-00000001"
    run.write("step-00000001/checkpoint.json", b"no JSON")
    with pytest.raises(CheckpointError, match="All are left as they are"):
        checkpoint.newest(run)


def test_checkpoints_that_lost_their_commits_are_no_crashed_saves(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write("step-00000001/__0_0.distcp", b"one crashed save")
    assert checkpoint.newest(run) is None
    run.write("step-00000002/__0_0.distcp", b"its commit was lost")
    with pytest.raises(
        CheckpointError, match=r"step-00000001/checkpoint.json is missing.*left as they"
    ):
        checkpoint.newest(run)
    commit_by_hand(run, 3)
    found = checkpoint.newest(run)
    assert found is not None
    assert found[0] == "step-00000003"


def test_another_format_is_refused_and_not_taken_for_corrupt(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    commit_by_hand(run, 1)
    run.write("step-00000002/checkpoint.json", b'{"format": 2}')
    with pytest.raises(CheckpointError, match="has format 2, and this version reads 4"):
        checkpoint.newest(run)


def test_what_is_committed_after_the_run_has_gone_on_from_elsewhere_does_not_count(
    tmp_path: Path,
) -> None:
    """As by a rank that was paused behind its last look at the lease: attempt 2 begins at step 8."""
    run = open_storage(str(tmp_path))
    for number, first in ((1, 0), (2, 8)):
        Ledger(
            run,
            Attempt(
                attempt=number, first_step=first, dp_size=1, tp_size=1, began=0.0, phases=[phase(0)]
            ),
        )
    commit_by_hand(run, 8, attempt=1)
    commit_by_hand(run, 12, attempt=1)

    def newest() -> str:
        found = checkpoint.newest(run)
        assert found is not None
        return found[0]

    assert newest() == "step-00000008"
    commit_by_hand(run, 10, attempt=2)
    assert newest() == "step-00000010"
    checkpoint.clean(run, keep=2, step=10)
    assert checkpoint.committed(run) == ["step-00000008", "step-00000010"]
    commit_by_hand(run, 12, attempt=2)
    assert newest() == "step-00000012"
