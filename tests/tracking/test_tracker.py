"""Tracking in a real MLflow store, and without one: training goes on, and no secret is shown."""

import base64
import itertools
import re
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow_server import assert_whole, config_of, folder, points, tracked

from panthalassa.config import Config
from panthalassa.errors import ConfigError
from panthalassa.redact import without_secrets
from panthalassa.tracking import sender
from panthalassa.tracking.mlflow_store import store_uri
from panthalassa.tracking.sender import POINTER
from panthalassa.tracking.spool import RANKS, Record, Spool, series
from panthalassa.tracking.tracker import Tracker

SECRET = "hunter2"
FINGERPRINT = "0123456789abcdef" * 4


COMMANDS = itertools.count(1)


def tracker_of(config: Config) -> Tracker:
    """Of a command that comes after all others."""
    return Tracker(config, folder(config), FINGERPRINT, next(COMMANDS))


def ranks_of(config: Config, attempt: int, first_step: int = 0) -> Spool:
    """What the ranks of an attempt write."""
    began = Record("attempt", 0.0, first_step, {})
    return Spool(folder(config).below(RANKS), began, attempt)


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; its sqlite store takes seconds to make, so that all tests share it."""
    return tmp_path_factory.mktemp("runs")


def log_steps(tracker: Tracker, steps: range, extra: Mapping[str, float] | None = None) -> None:
    for step in steps:
        tracker.log(step, {"loss": 5 - step / 10, **(extra or {})})


def test_a_run_says_what_it_is(runs: Path) -> None:
    """Its configuration, corpus, code, packages, nodes, checkpoints and metrics."""
    config = config_of(runs, "arrives")
    tracker = tracker_of(config)
    ranks = ranks_of(config, 1)
    ranks.log(Record("metrics", 100.5, 1, {"loss": 4.5, "mfu": 0.25}))
    ranks.log(Record("metrics", 101.5, 2, {"loss": 4.25, "mfu": 0.5}))
    checkpoint = {"name": "checkpoint", "uri": "runs/arrives/step-2", "sha256": "ab" * 32}
    ranks.log(Record("artifact", 102, 2, checkpoint))
    ranks.close()
    tracker.log(2, {"goodput": 0.75})
    for name in ("a", "b"):
        tracker.node(2, name, "8 x CPU, 1 x GPU", {"cpu_utilization_percentage": 50.0})
    tracker.close()

    assert tracker.problem is None
    (run,) = tracked(config)
    assert run.data.params["train.steps"] == "100"
    assert run.data.params["evaluation.prompts"] == "[]"
    assert run.data.params["model.preset"] == "laptop"
    tags = run.data.tags
    assert (tags["checkpoint"], tags["checkpoint.sha256"]) == ("runs/arrives/step-2", "ab" * 32)
    assert tags["hardware"] == "2 x (8 x CPU, 1 x GPU)"
    assert tags["panthalassa"] == version("panthalassa")
    assert f"torch=={version('torch')}" in tags["packages"]
    if (Path(__file__).parents[2] / ".git").exists():
        assert re.match("[0-9a-f]{40}", tags["mlflow.source.git.commit"])
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.source == "data/x"
    assert FINGERPRINT.startswith(dataset.dataset.digest)
    assert {tag.key: tag.value for tag in dataset.tags}["sha256"] == FINGERPRINT
    assert run.info.status == "FINISHED"
    assert points(config, run, "loss") == [(1, 4.5), (2, 4.25)]
    assert points(config, run, "mfu") == [(1, 0.25), (2, 0.5)]
    assert points(config, run, "goodput") == [(2, 0.75)]
    assert points(config, run, "system/b/cpu_utilization_percentage") == [(2, 50.0)]


def test_a_second_command_goes_on_in_the_same_mlflow_run(runs: Path) -> None:
    """Steps that it repeats are not sent again; the spool tells both, and the last stands."""
    config = config_of(runs, "resumed")
    for attempt, steps in ((1, range(1, 7)), (2, range(5, 9))):
        tracker, ranks = tracker_of(config), ranks_of(config, attempt, steps[0] - 1)
        for step in steps:
            ranks.log(Record("metrics", step, step, {"loss": attempt + step / 10}))
        ranks.close()
        tracker.close()
        assert tracker.problem is None

    (run,) = tracked(config)
    expected = [(step, (1 if step < 7 else 2) + step / 10) for step in range(1, 9)]
    assert points(config, run, "loss") == expected
    assert len(run.inputs.dataset_inputs) == 1
    stands = [(step, (1 if step < 5 else 2) + step / 10) for step in range(1, 9)]
    assert [(step, value) for step, _, value in series(folder(config))["loss"]] == stands


def test_a_run_that_goes_on_with_other_settings_is_tracked_still(runs: Path) -> None:
    """MLflow refuses to change a parameter; the new value is kept as a tag."""
    config = config_of(runs, "longer")
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 200})})
    for settings in (config, longer):
        tracker = tracker_of(settings)
        tracker.close()
        assert tracker.problem is None
    (run,) = tracked(config)
    assert run.data.params["train.steps"] == "100"
    assert run.data.tags["train.steps"] == "200"
    assert "cluster.workers" not in run.data.tags


def test_mlflow_shows_how_the_run_ended(runs: Path) -> None:
    """And that it is running again, when it goes on."""
    config = config_of(runs, "ended")
    for status in ("KILLED", "FAILED", "FINISHED"):
        tracker = tracker_of(config)
        tracker.close(status)
        assert tracker.problem is None
        assert [run.info.status for run in tracked(config)] == [status]


def test_a_run_can_be_the_child_of_another(runs: Path) -> None:
    """As those of a sweep are."""
    sweep = config_of(runs, "sweep")
    tracker_of(sweep).close()
    (parent,) = tracked(sweep)
    config = config_of(runs, "trial")
    below = config.tracking.model_copy(update={"parent": parent.info.run_id})
    tracker_of(config.model_copy(update={"tracking": below})).close()
    (child,) = tracked(config)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_another_run_folder_is_another_mlflow_run(runs: Path) -> None:
    configs = [config_of(runs, "here"), config_of(runs, "there")]
    for config in configs:
        tracker = tracker_of(config)
        log_steps(tracker, range(1, 3))
        tracker.close()
    ids = {run.info.run_id for config in configs for run in tracked(config)}
    assert len(ids) == 2


def test_the_later_of_two_commands_has_the_last_word(runs: Path) -> None:
    """The earlier one ends when it finds out, as a failure; the run goes on."""
    config = config_of(runs, "taken-over")
    earlier = tracker_of(config)
    until = time.monotonic() + 60
    while not tracked(config):
        assert time.monotonic() < until
        time.sleep(0.1)
    later = tracker_of(config)
    later.log(1, {"goodput": 0.5})
    earlier.close("FAILED")
    later.close("FINISHED")
    assert (earlier.problem, later.problem) == (None, None)
    (run,) = tracked(config)
    assert run.info.status == "FINISHED"
    assert points(config, run, "goodput") == [(1, 0.5)]


def test_more_metrics_than_one_request_takes_all_arrive(runs: Path) -> None:
    config = config_of(runs, "many")
    tracker = tracker_of(config)
    log_steps(tracker, range(1, 1101))
    tracker.close()
    assert tracker.problem is None
    assert len(points(config, assert_whole(config), "loss")) == 1100


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
    config = config_of(tmp_path)
    tracker = tracker_of(config)
    while tracker.problem is None:
        time.sleep(0.05)
    log_steps(tracker, range(1, 200))  # it takes what comes after, too
    tracker.close()
    assert f"MLflow at {uri} does not take the metrics: " in tracker.problem
    assert f"panthalassa track replay {folder(config).uri}" in tracker.problem
    assert len(tracker.problem.splitlines()) == 1
    assert len(series(folder(config))["loss"]) == 199


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
        monkeypatch.setattr(sender, "SILENT", 2.0)
        config = config_of(tmp_path)
        tracker = tracker_of(config)
        silent.settimeout(60)
        connection, _ = silent.accept()  # from here on the sender waits
        log_steps(tracker, range(1, 5000))
        assert tracker.problem is None
        tracker.close()
        assert "no answer" in str(tracker.problem)
        connection.close()
    assert len(series(folder(config))["loss"]) == 4999


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
    tracker = tracker_of(config)
    tracker.close()
    assert tracker.problem is None
    (run,) = tracked(config)
    assert run.data.params["tracking.uri"] == tracker.uri
    assert SECRET not in tracker.uri
    for path in Path(folder(config).root).rglob("*.json*"):
        assert SECRET not in path.read_text()
    assert (Path(folder(config).root) / POINTER).exists()
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


@pytest.mark.parametrize("uri", ["foo://user:secret@x", "./mlruns", "file:///mlruns", "http://"])
def test_what_is_no_store_is_refused_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.uri=.*expected an MLflow server") as given:
        store_uri(config_of(tmp_path, uri=uri))
    assert "secret" not in str(given.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI="):
        store_uri(config_of(tmp_path))
