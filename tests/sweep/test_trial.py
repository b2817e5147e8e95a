"""A trial's record: what its run reports, and what its sweep has decided meanwhile."""

from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune

from panthalassa.storage import open_storage
from panthalassa.sweep.results import Trial, read, record
from panthalassa.sweep.space import load
from panthalassa.sweep.trial import Progress
from panthalassa.train.events import Evaluated

LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "sweep-laptop.yaml"


def test_a_verdict_stands_when_the_run_evaluates_once_more_before_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = load(LAPTOP, []), open_storage(str(tmp_path))
    trial = Trial(0, "t0", plan.draw(0))
    record(folder, trial)
    config = plan.trial(trial.run, trial.values, "", None)
    progress = Progress(plan, folder, config, trial)

    def stop(told: object) -> None:
        record(folder, replace(read(folder, 0), state="stopped"))

    monkeypatch.setattr(tune, "report", stop)
    progress.show(Evaluated(step=10, loss=5.0, tokens=100))
    assert progress.stopping.is_set()
    progress.show(Evaluated(step=20, loss=4.9, tokens=100))
    progress.close()
    known = read(folder, 0)
    assert (known.state, known.step, sorted(known.looks)) == ("stopped", 20, [10, 20])
