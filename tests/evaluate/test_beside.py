"""Checkpoints are asked while their run trains on, and nothing that happens there ends the training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from panthalassa.config import Config
from panthalassa.config_evaluation import Asked, Beside
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.beside import Besides, beside
from panthalassa.evaluate.results import read_results
from panthalassa.storage import open_storage
from panthalassa.train.events import Ended, Event, Notice, Saved
from panthalassa.train.run import Outcome, pretrain


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "choices"
    folder.mkdir()
    row = {"prompt": "kate", "choices": ["mori", "su na"], "answer": 0}
    (folder / "test.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    return folder


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_a_run_that_trains_has_its_checkpoints_asked(
    configure: Callable[..., Config], data: Path, tmp_path: Path
) -> None:
    tasks = json.dumps([{"name": "choices", "data": str(data)}])
    config = configure(tmp_path, "train.steps=8", f"evaluation.beside.tasks={tasks}")
    events: list[Event] = []
    pretrain(config, beside(config, events.append))
    assert [event.step for event in events if isinstance(event, Ended)] == [8]
    newest = Path(config.run.directory, "small", "evaluations", "step-00000008")
    results = read_results(open_storage(str(newest)))
    assert results.tasks["choices"].metrics["accuracy"].whole.n == 8
    assert any(line.startswith("step-00000008, choices: accuracy ") for line in notices(events))


def test_one_at_a_time_and_the_newest_next(
    undisturbed: Outcome, data: Path, finished: Path
) -> None:
    run = open_storage(str(finished / "runs" / "small"))
    events: list[Event] = []
    section = Beside(tasks=[Asked(name="choices", data=str(data))], every=2)
    watch = Besides(run, section, events.append)
    saved = [Saved(step, run.uri, 0.1, 1) for step in range(4, 24, 4)]
    for event in saved:
        watch(event)
    watch(Ended(24, interrupted=False))
    told = [line for line in notices(events) if "choices: accuracy " in line]
    assert len(told) == 1  # the one that waited finds the same checkpoint, which is not asked again
    assert len([line for line in notices(events) if "is evaluated already" in line]) == 1
    assert [event for event in events if isinstance(event, Saved)] == saved


def test_what_goes_wrong_there_is_told_alone(
    undisturbed: Outcome, data: Path, finished: Path
) -> None:
    run = open_storage(str(finished / "runs" / "small"))
    events: list[Event] = []
    watch = Besides(run, Beside(tasks=[Asked(name="choices", data="/nowhere")]), events.append)
    watch(Saved(4, run.uri, 0.1, 1))
    watch(Ended(24, interrupted=False))
    (line,) = notices(events)
    assert line.startswith("the evaluation beside the training failed: ")
    assert "/nowhere" in line


def test_tasks_that_can_not_be_asked_are_refused_before_the_training(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(tmp_path, "evaluation.beside.tasks=[{name: choices, data: /nowhere}]")
    with pytest.raises(PanthalassaError, match="/nowhere"):
        beside(config, print)
    without = configure(tmp_path)
    assert beside(without, print) is print
