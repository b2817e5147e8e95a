"""Tracking in a real MLflow store, and without one: training goes on, and no secret is shown."""

import base64
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.redact import without_secrets
from panthalassa.storage import Storage, open_storage
from panthalassa.tracking.mlflow_tracker import POINTER, Tracker, store_uri

SECRET = "hunter2"


def config_of(directory: Path | str, name: str = "first", uri: str | None = None) -> Config:
    tree = {
        "run": {"name": name, "directory": str(directory)},
        "corpus": {"directory": "data/x"},
        "model": {"preset": "laptop"},
        "train": {"steps": 100, "global_batch": 8, "micro_batch": 4, "sequence_length": 64},
        "tracking": {"uri": uri},
    }
    return build(tree, [], "test", Config)


def folder(config: Config) -> Storage:
    return open_storage(config.run.directory).below(config.run.name)


def tracker_of(config: Config, **parameters: object) -> Tracker:
    return Tracker(config, folder(config), parameters or {"train.steps": 100})


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; its sqlite store takes seconds to make, so that all tests share it."""
    return tmp_path_factory.mktemp("runs")


def tracked(config: Config) -> list[Run]:
    """All runs of the name in the store beside the runs."""
    client = MlflowClient(f"sqlite:///{config.run.directory}/mlflow.db")
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment
    query = f"attributes.run_name = '{config.run.name}'"
    return list(client.search_runs([experiment.experiment_id], query))


def points(config: Config, run: Run, metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{config.run.directory}/mlflow.db")
    history = client.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def log_steps(tracker: Tracker, steps: range, extra: Mapping[str, float] | None = None) -> None:
    for step in steps:
        tracker.log(step, {"loss": 5 - step / 10, **(extra or {})})


def test_parameters_metrics_and_tags_arrive(runs: Path) -> None:
    config = config_of(runs, "arrives")
    tracker = tracker_of(config, **{"train.steps": 100, "model.preset": None, "prompts": ["Θ"]})
    tracker.log(0, {"held_out_loss": 8.5})
    log_steps(tracker, range(1, 4), {"mfu": 0.25})
    tracker.log(3, {"checkpoint_seconds": 1.5}, {"checkpoint": "runs/arrives/step-3"})
    tracker.log(4, {}, {"power": "no power source"})
    tracker.close()

    assert tracker.problem is None
    (run,) = tracked(config)
    assert run.data.params == {"train.steps": "100", "model.preset": "None", "prompts": "['Θ']"}
    assert run.data.tags["checkpoint"] == "runs/arrives/step-3"
    assert run.data.tags["power"] == "no power source"
    assert run.info.status == "FINISHED"
    assert points(config, run, "loss") == [(1, 4.9), (2, 4.8), (3, 4.7)]
    assert points(config, run, "mfu") == [(1, 0.25), (2, 0.25), (3, 0.25)]
    assert points(config, run, "held_out_loss") == [(0, 8.5)]
    assert points(config, run, "checkpoint_seconds") == [(3, 1.5)]


def test_a_second_driver_goes_on_in_the_same_mlflow_run(runs: Path) -> None:
    """Steps that it repeats are not tracked again, and those that it adds are."""
    config = config_of(runs, "resumed")
    first = tracker_of(config)
    log_steps(first, range(1, 7))
    first.close()
    second = tracker_of(config)
    for step in range(5, 9):
        second.log(step, {"loss": -1.0})
    second.log(6, {}, {"checkpoint": "step-6"})
    second.close()

    assert (first.problem, second.problem) == (None, None)
    (run,) = tracked(config)
    expected = [(step, 5 - step / 10) for step in range(1, 7)] + [(7, -1.0), (8, -1.0)]
    assert points(config, run, "loss") == expected
    assert run.data.tags["checkpoint"] == "step-6"


def test_steps_that_are_repeated_after_a_failure_do_not_appear_twice(runs: Path) -> None:
    """The driver lives on while its ranks start again from the last checkpoint."""
    config = config_of(runs, "rollback")
    tracker = tracker_of(config)
    log_steps(tracker, range(1, 6))
    tracker.log(5, {"held_out_loss": 4.0})
    tracker.log(3, {"loss": -1.0})
    for step in range(4, 8):
        tracker.log(step, {"loss": -1.0})
    tracker.log(5, {"held_out_loss": -1.0})
    tracker.close()

    (run,) = tracked(config)
    expected = [(step, 5 - step / 10) for step in range(1, 6)] + [(6, -1.0), (7, -1.0)]
    assert points(config, run, "loss") == expected
    assert points(config, run, "held_out_loss") == [(5, 4.0)]


def test_a_run_that_goes_on_with_other_settings_is_tracked_still(runs: Path) -> None:
    """MLflow refuses to change a parameter; the new value is kept as a tag."""
    config = config_of(runs, "longer")
    first = tracker_of(config, **{"train.steps": 10, "cluster.workers": 2})
    log_steps(first, range(1, 3))
    first.close()
    second = tracker_of(config, **{"train.steps": 20, "cluster.workers": 2, "new": 1})
    log_steps(second, range(3, 5))
    second.close()

    assert second.problem is None
    (run,) = tracked(config)
    assert run.data.params == {"train.steps": "10", "cluster.workers": "2", "new": "1"}
    assert run.data.tags["train.steps"] == "20"
    assert "cluster.workers" not in run.data.tags
    assert [step for step, _ in points(config, run, "loss")] == [1, 2, 3, 4]


def test_mlflow_shows_how_the_run_ended(runs: Path) -> None:
    """And that it is running again, when it goes on."""
    config = config_of(runs, "ended")
    for status in ("KILLED", "FAILED", "FINISHED"):
        tracker = tracker_of(config)
        tracker.close(status)
        assert tracker.problem is None
        assert [run.info.status for run in tracked(config)] == [status]


def test_another_run_folder_is_another_mlflow_run(runs: Path) -> None:
    configs = [config_of(runs, "here"), config_of(runs, "there")]
    for config in configs:
        tracker = tracker_of(config)
        log_steps(tracker, range(1, 3))
        tracker.close()
    ids = {run.info.run_id for config in configs for run in tracked(config)}
    assert len(ids) == 2


def test_more_metrics_than_one_request_takes_all_arrive(runs: Path) -> None:
    config = config_of(runs, "many")
    tracker = tracker_of(config)
    log_steps(tracker, range(1, 1101))
    tracker.close()
    (run,) = tracked(config)
    assert tracker.problem is None
    assert [step for step, _ in points(config, run, "loss")] == list(range(1, 1101))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_down_is_named_and_stops_nothing(
    tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = tracker_of(config_of(tmp_path))
    while tracker.problem is None:
        log_steps(tracker, range(1, 100))
        tracker._thread.join(0.05)
    log_steps(tracker, range(100, 200))  # it takes what comes after, too
    tracker.close()
    tracker.close()
    assert f"MLflow at {uri} does not take the metrics: " in tracker.problem
    assert len(tracker.problem.splitlines()) == 1
    assert not tracker._thread.is_alive()


def test_logging_never_waits_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the connection and never answers holds the tracker, not the training."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
        tracker = tracker_of(config_of(tmp_path))
        connection, _ = silent.accept()  # from here on the tracker waits
        log_steps(tracker, range(1, 5000))
        assert tracker._thread.is_alive()
        assert tracker.problem is None
        connection.close()  # the server gives up, and so does the tracker
        tracker.close()
    assert tracker.problem


@pytest.mark.parametrize("where", ["configuration", "environment"])
def test_a_secret_in_the_uri_is_never_shown(
    tmp_path: Path,
    closed_port: int,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uri = f"http://user:{SECRET}@127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = config_of(tmp_path, uri=uri if where == "configuration" else None)
    assert store_uri(config) == uri
    tracker = tracker_of(config)
    tracker.close()
    assert tracker.problem
    assert f"127.0.0.1:{closed_port}" in tracker.problem
    assert f"127.0.0.1:{closed_port}" in tracker.uri
    shown = capfd.readouterr()
    for text in (tracker.problem, tracker.uri, shown.out, shown.err):
        assert SECRET not in text


def test_a_secret_in_the_uri_opens_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown is shortened, what is sent is not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        uri = f"http://user:{SECRET}@127.0.0.1:{server.getsockname()[1]}"
        tracker = tracker_of(config_of(tmp_path, uri=uri))
        connection, _ = server.accept()
        request = connection.recv(1 << 16).decode()
        connection.close()
        tracker.close()
    credentials = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert f"Authorization: Basic {credentials}" in request


def test_a_secret_is_neither_a_parameter_nor_in_the_folder_of_the_run(runs: Path) -> None:
    uri = f"sqlite:///{runs}/mlflow.db?password={SECRET}"
    config = config_of(runs, "secretive", uri=uri)
    tracker = tracker_of(config, **{"tracking.uri": uri})
    tracker.close()
    assert tracker.problem is None
    (run,) = tracked(config)
    assert run.data.params["tracking.uri"] == tracker.uri
    assert SECRET not in tracker.uri
    assert SECRET.encode() not in folder(config).read(POINTER)
    again = tracker_of(config)
    again.close()
    assert len(tracked(config)) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        ("http://user:pass@host:5000", "http://***@host:5000"),
        ("postgresql://user:p@ss/word@host/db", "postgresql://***@host/db"),
        ("mysql://host/db?user=a&password=b&x=1", "mysql://host/db?user=a&password=***&x=1"),
        ("at http://a:b@host/api failed: why", "at http://***@host/api failed: why"),
        ("write to somebody@example.org", "write to somebody@example.org"),
    ],
)
def test_what_is_shown_of_a_uri(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_store_is_the_configured_one_then_the_environments_then_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_uri(config_of(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:1")
    assert store_uri(config_of(tmp_path)) == "http://environment:1"
    assert store_uri(config_of(tmp_path, uri="http://given:1")) == "http://given:1"
