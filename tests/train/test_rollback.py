"""Going back: the state of the good checkpoint, the samples behind the bad ones, and an honest audit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import Crash, Spoil, Stop, go, looping, open_run, same_on_all_ranks, tensors
from torch import distributed as dist

from panthalassa.errors import PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.train import checkpoint, restore
from panthalassa.train.audit import audit, audit_run, explain
from panthalassa.train.callback import Callback
from panthalassa.train.checkpointing import Checkpoints
from panthalassa.train.events import Notice, Step
from panthalassa.train.rollback import in_a_row, passed_over
from panthalassa.train.training_run import TrainingRun

BAD = [17, 18, 19]
"""Steps (from 0) that are spoilt; three in a row lead back to the checkpoint of step 16."""
SETTING = "guard.max_skips=3", "checkpoint.every=2", "evaluation.every=1000"


class Remember(Callback):
    """The state behind a step, before anything else happens there."""

    def __init__(self, step: int) -> None:
        self.step, self.state = step, {}

    def after_step(self, run: TrainingRun, step: Step) -> None:
        if run.step == self.step:
            self.state = tensors(run)


def gone_back(folder: str) -> tuple[list[str], list[str], bool]:
    run = open_run(looping(*SETTING), folder)
    good, back = Remember(16), Remember(20)
    events = go(run, Spoil(BAD, float("nan")), good, back, Stop(24))
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, 25))
    assert same_on_all_ranks(run.passed_over)
    assert run.passed_over == [(16, 20)]
    losses = [event.loss for event in events if isinstance(event, Step) and event.step > 20]
    assert all(loss < 6 for loss in losses)
    restored = open_run(looping(*SETTING), folder)  # begins attempt 2
    restore.load(restored.storage, "step-00000020", restored.state)
    state = tensors(restored)
    same = all(
        torch.equal(state[name].nan_to_num(), tensor.nan_to_num())
        for name, tensor in good.state.items()
    )
    return (
        [e.text for e in events if isinstance(e, Notice)],
        checkpoint.committed(run.storage),
        same,
    )


@pytest.fixture(scope="module")
def went_back(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("run")
    return folder, ranks(2, gone_back, str(folder))


def test_a_run_goes_back_in_state_and_on_in_data(went_back: tuple[Path, Any]) -> None:
    folder, found = went_back
    for notices, names, same in found:
        assert same, "the checkpoint of step 20 is the state of step 16"
        assert "step-00000018" not in names
        assert names[-3:] == ["step-00000020", "step-00000022", "step-00000024"]
        assert len(notices) == 4
        assert notices[-1] == (
            "step 20: 3 steps in a row were skipped; of the last, its gradient's norm was nan. The "
            f"run went back to {folder}/step-00000016 and goes on behind the samples of steps 17 "
            "to 20, on which it is not trained"
        )


def test_the_audit_passes_and_names_what_was_passed_over(went_back: tuple[Path, Any]) -> None:
    report = audit_run(open_storage(str(went_back[0])))
    assert report.problems == []
    lines = list(explain(report))
    assert "passed over after a rollback: steps 17 to 20, 16 samples" in lines
    assert not any("skipped" in line for line in lines), "they are named as passed over"
    assert lines[-1].endswith("exactly once, but for the passed over")


@pytest.mark.parametrize("story", [[], [(16, 19)], [(12, 20)], [(4, 8), (16, 20)]])
def test_another_story_in_the_checkpoint_than_in_the_ledger_fails(
    went_back: tuple[Path, Any], story: list[tuple[int, int]]
) -> None:
    run = open_storage(str(went_back[0]))
    commit = checkpoint.read_commit(run, checkpoint.committed(run)[-1])
    assert audit(run, commit.step, commit.phases, commit.passed_over).passed
    problems = audit(run, commit.step, commit.phases, story).problems
    assert len(problems) == 1
    assert problems[0].endswith("the ledger steps 17 to 20")


class CrashIn(Callback):
    """Ends the process in the middle of a rollback: at its save, or behind it."""

    def __init__(self, behind: bool) -> None:
        save = Checkpoints.save

        def crashing(checkpoints: Checkpoints, run: TrainingRun) -> None:
            if behind or not run.passed_over:
                save(checkpoints, run)
            if run.passed_over:
                raise Crash

        Checkpoints.save = crashing


def crashed(folder: str, behind: bool) -> None:
    run = open_run(looping(*SETTING), folder)
    go(run, CrashIn(behind), Spoil(BAD, float("nan")), Stop(24))


def went_on(folder: str) -> tuple[int, list[tuple[int, int]], list[str]]:
    run = open_run(looping(*SETTING), folder)
    first = run.step
    go(run, Spoil(BAD, float("nan")), Stop(24))
    return first, run.passed_over, checkpoint.committed(run.storage)


@pytest.mark.parametrize("behind", [False, True])
def test_after_a_crash_in_a_rollback_the_newest_checkpoint_is_the_truth(
    ranks: Any, tmp_path: Path, behind: bool
) -> None:
    ranks(2, crashed, str(tmp_path), behind)
    run = open_storage(str(tmp_path))
    report = audit_run(run)
    assert report.problems == []
    assert bool(report.passed_over) == behind
    for first, passed, names in ranks(2, went_on, str(tmp_path)):
        assert first == (20 if behind else 18)
        assert passed == [(16, 20)]
        assert "step-00000018" not in names
    report = audit_run(run)
    assert report.problems == []
    assert [back.first_step for back, _ in report.passed_over] == [16]


def fails(folder: str, spoilt: list[int], *settings: str) -> tuple[str, list[tuple[int, int]]]:
    run = open_run(looping(*SETTING, *settings), folder)
    with pytest.raises(PanthalassaError) as caught:
        go(run, Spoil(spoilt, float("nan")))
    dist.barrier()
    return str(caught.value), run.passed_over


def test_a_run_that_does_not_get_on_ends_and_says_why(ranks: Any, tmp_path: Path) -> None:
    for message, passed in ranks(
        2, fails, str(tmp_path), list(range(5, 40)), "guard.max_rollbacks=2"
    ):
        assert passed == [(4, 8), (8, 11)]
        assert "step 14: 3 steps in a row were skipped" in message
        assert "gone back 2 times" in message
        assert "guard.max_rollbacks=2" in message
    assert audit_run(open_storage(str(tmp_path))).problems == []


def test_without_a_checkpoint_to_go_back_to_the_run_ends(ranks: Any, tmp_path: Path) -> None:
    for message, _ in ranks(1, fails, str(tmp_path), [0, 1, 2]):
        assert "There is no checkpoint from before them" in message
        assert "train.optimizer.learning_rate" in message


@given(st.data())
def test_what_is_passed_over_covers_all_that_was_undone_once(data: st.DataObject) -> None:
    passed: list[tuple[int, int]] = []
    now, undone = 0, set()
    for _ in range(data.draw(st.integers(1, 8))):
        now += data.draw(st.integers(1, 10))
        inside = {step for first, end in passed for step in range(first + 1, end)}
        good = data.draw(st.sampled_from([s for s in range(now) if s not in inside]))
        before = len(passed) and passed[-1][1] == good
        passed = passed_over(passed, good, now)
        undone |= set(range(good, now))
        steps = [step for first, end in passed for step in range(first, end)]
        assert len(steps) == len(set(steps))
        assert set(steps) == undone
        assert passed == sorted(passed)
        assert passed[-1][1] == now
        assert not before or in_a_row(passed) > 1


def test_rollbacks_in_a_row_are_those_to_the_same_state() -> None:
    assert in_a_row(passed_over([], 4, 8)) == 1
    assert in_a_row(passed_over([(4, 8)], 4, 11)) == 2
    assert in_a_row(passed_over([(4, 8)], 8, 11)) == 2
    assert in_a_row(passed_over([(4, 8), (8, 11)], 4, 14)) == 3
    assert in_a_row(passed_over([(4, 8)], 10, 14)) == 1
    assert passed_over([(4, 8)], 2, 12) == [(2, 12)]
