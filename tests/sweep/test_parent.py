"""A sweep's run in MLflow when the server is away while the sweep lasts."""

from dataclasses import replace
from pathlib import Path

import pytest
from ladders import RATE
from mlflow import MlflowClient
from mlflow_server import MlflowServer, config_of, tracked
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config_file import build
from panthalassa.run_config import keep
from panthalassa.storage import Storage, open_storage
from panthalassa.sweep.config import SweptConfig
from panthalassa.sweep.parent import Parent, ended_as
from panthalassa.sweep.results import Trial, record, trials
from panthalassa.tracking import replay, sender
from panthalassa.tracking.mlflow_store import PARENT
from panthalassa.tracking.tracker import Tracker

LOSSES = (4.0, 3.0, 5.0)
"""Of the finished trials; one more failed before it began."""


def sweep_of(folder: Path, uri: str) -> tuple[SweptConfig, Storage]:
    tree = config_of(folder, "sweep", uri).model_dump(mode="json")
    swept = {"space": {RATE: [1e-3, 2e-3, 3e-3, 4e-3]}, "search": "grid"}
    config = build(tree | {"sweep": swept}, [], "test", SweptConfig)
    place = open_storage(str(folder / "sweep"))
    keep(config, place)
    return config, place


def run_trials(config: SweptConfig, place: Storage, parent: str) -> None:
    """What the trials of a sweep leave, as far as MLflow is concerned."""
    for number in range(len(LOSSES) + 1):
        trial = Trial(number, f"sweep-{number:03d}", {RATE: 1e-3 * (number + 1)})
        if number == len(LOSSES):
            record(place, replace(trial, state="failed", problem="no such language"))
            continue
        own = config_of(place.root, trial.run, config.tracking.uri)
        tracking = own.tracking.model_copy(update={"parent": parent or None})
        own = own.model_copy(update={"tracking": tracking})
        run = place.below(trial.run)
        keep(own, run)
        tracker = Tracker(own, run, "0" * 64, 1)
        tracker.log(10, {"loss": LOSSES[number]})
        tracker.close()
        metrics = {"loss": LOSSES[number]}
        record(place, replace(trial, state="finished", step=10, metrics=metrics))


def assert_in_mlflow(config: SweptConfig, place: Storage) -> None:
    """The sweep has its best and all its trials as children, each once."""
    (parent,) = tracked(config)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/loss"] == 3.0
    assert parent.data.tags["best"] == "sweep-001"
    for number, loss in enumerate(LOSSES):
        (child,) = tracked(config_of(place.root, f"sweep-{number:03d}", config.tracking.uri))
        assert child.data.tags[PARENT] == parent.info.run_id
        assert child.data.metrics["loss"] == loss


def test_a_server_that_is_away_only_delays_the_sweep_and_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back at the sweep's end it gets the sweep, and by a replay all trials, as its children."""
    monkeypatch.setattr(sender, "FAILING", 0.2)
    monkeypatch.setattr(replay, "PAUSES", (0.1,))
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    try:
        _away_and_back(tmp_path / "runs", server)
    finally:
        server.kill()


def _away_and_back(runs: Path, server: MlflowServer) -> None:
    config, place = sweep_of(runs, server.uri)
    parent = Parent(config, place)
    assert parent.run_id == ""
    run_trials(config, place, parent.run_id)
    known = trials(place)
    parent.close(known, ended_as(known))
    assert f"panthalassa track replay {place.uri}" in str(parent.problem)
    refused = CliRunner().invoke(app, ["track", "replay", place.uri])
    assert refused.exit_code == 1, refused.output

    server.start()
    parent.close(known, ended_as(known))
    assert "the metrics of 3 trials have not arrived" in str(parent.problem)
    for _ in range(2):  # as often as one likes
        told = CliRunner().invoke(app, ["track", "replay", place.uri])
        assert told.exit_code == 0, told.output
        assert f"MLflow has all metrics of {place.uri}" in told.output
        assert_in_mlflow(config, place)
    child = config_of(place.root, "sweep-000", config.tracking.uri)
    (run,) = tracked(child)
    MlflowClient(server.uri).update_run(run.info.run_id, status="RUNNING")  # it was killed then
    known[0] = replace(known[0], state="stopped")
    parent = Parent(config, place)
    parent.close(known, ended_as(known))
    assert parent.problem is None
    (run,) = tracked(child)
    assert run.info.status == "KILLED"
