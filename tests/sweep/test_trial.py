"""A trial's record: what its run reports, and what its sweep has decided meanwhile."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune

from panthalassa.config import Energy
from panthalassa.energy.ledger import EnergyLedger
from panthalassa.energy.lines import Metering, Steps
from panthalassa.errors import CheckpointError
from panthalassa.storage import Storage, open_storage
from panthalassa.sweep.branch import branch
from panthalassa.sweep.results import Trial, read, record
from panthalassa.sweep.search import Halving, propose
from panthalassa.sweep.space import load
from panthalassa.sweep.trial import Progress
from panthalassa.train.events import Ended, Evaluated, Ready, Step

LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "sweep-laptop.yaml"

Follow = Callable[..., tuple[Storage, Progress]]


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follow:
    """A trial's record and what follows its run, in a sweep that only listens."""
    monkeypatch.setattr(tune, "report", lambda told: None)

    def follow(*overrides: str, own_power: bool = True) -> tuple[Storage, Progress]:
        plan, folder = load(LAPTOP, list(overrides)), open_storage(str(tmp_path))
        trial = Trial(0, "t0", plan.draw(0))
        record(folder, trial)
        config = plan.trial(trial.run, trial.values, "", None)
        return folder, Progress(plan, folder, config, trial, own_power)

    return follow


def test_a_verdict_stands_when_the_run_evaluates_once_more_before_it_stops(
    following: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, progress = following()

    def stop(told: object) -> None:
        record(folder, replace(read(folder, 0), state="stopped"))

    monkeypatch.setattr(tune, "report", stop)
    progress.show(Evaluated(step=10, loss=5.0, tokens=100))
    assert progress.stopping.is_set()
    progress.show(Evaluated(step=20, loss=4.9, tokens=100))
    progress.close()
    known = read(folder, 0)
    assert (known.state, known.step, sorted(known.looks)) == ("stopped", 20, [10, 20])


def test_evaluations_that_a_killed_command_lost_come_from_the_checkpoint(following: Follow) -> None:
    folder, progress = following()
    done = tuple(Evaluated(step, loss, 100) for step, loss in ((0, 9.0), (10, 5.0), (90, 4.0)))
    progress.show(Ready(1000, 1000, 1, 1, 1e12, True, 90, done, "none"))
    progress.show(Ended(90, interrupted=False))
    progress.close()
    known = read(folder, 0)
    assert (known.state, known.metrics["loss"]) == ("finished", 4.0)
    assert sorted(known.looks) == [10, 90]


def test_a_trial_without_the_objective_fails_and_leaves_nothing_to_trip_over(
    following: Follow,
) -> None:
    folder, progress = following(
        "sweep.objective=j_per_token", "sweep.within=", "sweep.search=tpe", "energy.source=auto"
    )
    progress.show(Evaluated(step=10, loss=5.0, tokens=100))
    assert progress.stopping.is_set()
    progress.close()
    known = read(folder, 0)
    assert known.state == "failed"
    assert "reports no j_per_token" in str(known.problem)
    plan = load(LAPTOP, ["sweep.objective=j_per_token", "sweep.within=", "sweep.search=tpe"])
    assert propose(plan, [known])
    Halving(plan, [known])


@pytest.mark.parametrize("own_power", [True, False])
def test_energy_that_others_share_is_no_trials_own(following: Follow, own_power: bool) -> None:
    folder, progress = following(own_power=own_power)
    with EnergyLedger(folder.below("t0"), Energy(), 1e9, 1) as ledger:
        ledger.note(Metering(at=1e9, source="rapl", refresh=0.001, devices={"a": 0.0}))
        steps = Steps(
            at=1e9 + 9, first=1, seconds=[1.0], tokens=[10], joules=[50.0], data_wait=[0.0]
        )
        ledger.note(steps)
    progress.show(Evaluated(step=10, loss=5.0, tokens=100))
    assert read(folder, 0).metrics.get("j_per_token") == (5.0 if own_power else None)


def test_steps_are_on_record_from_time_to_time(
    following: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panthalassa.sweep.trial.BEAT", 0.0)
    folder, progress = following()
    for step in (1, 2):
        progress.show(Step(step, 0.0, 5.0, 1.0, 1e-3, 100, 0.1, 0.0, 1e3, 0.4, None))
        assert read(folder, 0).step == step


def test_a_branch_without_a_checkpoint_fails_instead_of_starting_anew(tmp_path: Path) -> None:
    runs = open_storage(str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint from which to branch"):
        branch(runs.below("parent"), runs.below("child"))
