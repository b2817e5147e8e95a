"""MLflow gets each step of the spool once, whatever happens to its server and to whoever sends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import (
    MlflowServer,
    assert_whole,
    config_of,
    folder,
    points,
    tracked,
)
from nodes import Command
from s3 import BUCKET
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.tracking import mlflow_store, sender
from panthalassa.tracking.mlflow_store import MlflowStore
from panthalassa.tracking.replay import configuration, replay
from panthalassa.tracking.sender import POINTER, Sender
from panthalassa.tracking.spool import DRIVER, RANKS, Record, Spool, series
from panthalassa.train.checkpoint import committed, step_of

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "LONGEST_PAUSE", 1.0)


def config_for(tmp_path: Path, mlflow: MlflowServer, name: str) -> Config:
    config = config_of(tmp_path, name, mlflow.uri)
    folder(config).write("config.yaml", config.dump().encode())
    return config


def metrics(step: int) -> Record:
    return Record("metrics", 1e9 + step, step, {"loss": 5 / step, "mfu": 0.5})


def spool_of(config: Config, attempt: int = 1, first_step: int = 0) -> Spool:
    began = Record("attempt", 1e9, first_step, {})
    return Spool(folder(config).below(RANKS), began, attempt)


def whole_spool(config: Config, steps: int) -> None:
    """The spools of a run that ended, with something of every kind."""
    ranks = spool_of(config)
    for step in range(1, steps + 1):
        ranks.log(metrics(step))
    checkpoint = {"name": "checkpoint", "uri": "somewhere", "sha256": "ab" * 32}
    ranks.log(Record("artifact", 1e9, steps, checkpoint))
    ranks.close()
    first = Record("status", 1e9, 0, {"status": "RUNNING"})
    driver = Spool(folder(config).below(DRIVER), first, 1)
    driver.log(Record("parameters", 1e9, 0, {"train.steps": str(steps)}))
    driver.log(Record("dataset", 1e9, 0, {"name": "c", "uri": "s3://c", "sha256": FINGERPRINT}))
    driver.log(Record("status", 1e9, 0, {"status": "FINISHED"}))
    driver.close()


def send_all(config: Config) -> None:
    assert replay(config, folder(config), lambda sent, total: None) == []


@pytest.mark.parametrize("outage", ["killed", "paused"])
def test_a_server_that_goes_and_comes_back_leaves_no_gap(
    tmp_path: Path, mlflow: MlflowServer, outage: str
) -> None:
    config = config_for(tmp_path, mlflow, outage)
    ranks, sending = spool_of(config), Sender(config, folder(config))
    sending.start()

    def wait_for(step: int) -> None:
        while not (runs := tracked(config)) or points(config, runs[0], "loss")[-1:] < [(step, 0.0)]:
            assert sending._thread.is_alive()

    for step in range(1, 21):
        ranks.log(metrics(step))
    wait_for(20)
    mlflow.kill() if outage == "killed" else mlflow.send(signal.SIGSTOP)
    for step in range(21, 41):
        ranks.log(metrics(step))
    while sending.problem is None:
        assert sending._thread.is_alive()
    assert f"MLflow at {mlflow.uri} does not take the metrics" in sending.problem
    mlflow.start() if outage == "killed" else mlflow.send(signal.SIGCONT)
    for step in range(41, 61):
        ranks.log(metrics(step))
    wait_for(60)
    ranks.close()
    sending.close()
    assert sending.problem is None
    assert len(points(config, assert_whole(config), "loss")) == 60


def test_a_server_that_is_away_for_the_whole_run_is_filled_later(
    tmp_path: Path, mlflow: MlflowServer
) -> None:
    """The command that the summary names goes on where it was interrupted, and can be repeated."""
    config = config_for(tmp_path, mlflow, "later")
    mlflow.kill()
    sending = Sender(config, folder(config))
    sending.start()
    whole_spool(config, 1200)
    sending.close()
    told = re.search("panthalassa (track replay .*)", str(sending.problem))
    assert told
    command = [sys.executable, "-m", "panthalassa.cli", *told[1].split()]
    down = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert down.returncode == 1
    assert "the same command goes on" in down.stderr
    mlflow.start()
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"MLflow has all metrics of {folder(config).uri}" in done.stdout
    run = assert_whole(config)
    assert len(points(config, run, "loss")) == 1200
    assert (run.info.status, run.info.end_time) == ("FINISHED", 10**12)


KILLED = """
import os, signal, sys
from pathlib import Path

import mlflow

from panthalassa.config_file import load
from panthalassa.storage import open_storage
from panthalassa.tracking.mlflow_store import MlflowStore
from panthalassa.tracking.replay import replay
from panthalassa.tracking.sender import Sender

calls = when = 0

def dying(function):
    def call(*arguments, **named):
        die()  # before its effect
        answer = function(*arguments, **named)
        die()  # behind it
        return answer
    return call

def die():
    global calls
    calls += 1
    if calls == when:
        os.kill(os.getpid(), signal.SIGKILL)

for owner, name in [
    (MlflowStore, "open"), (MlflowStore, "log_metrics"), (MlflowStore, "log_tags"),
    (MlflowStore, "log_parameters"), (MlflowStore, "log_dataset"), (MlflowStore, "set_status"),
    (Sender, "_write_state"),
]:
    setattr(owner, name, dying(getattr(owner, name)))
run = Path(sys.argv[1])
status = signal.SIGKILL
while status == signal.SIGKILL:
    when += 1
    if not (child := os.fork()):
        replay(load(run / "config.yaml"), open_storage(str(run)), lambda sent, total: None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
print(when - 1, status)
"""


def test_a_sender_that_is_killed_anywhere_sends_nothing_twice_and_leaves_nothing_out(
    tmp_path: Path, mlflow: MlflowServer
) -> None:
    """Each next one is killed at its first, second, third … call, before or behind its effect."""
    config = config_for(tmp_path, mlflow, "killed-anywhere")
    whole_spool(config, 1200)
    command = [sys.executable, "-c", KILLED, folder(config).root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    kills, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    assert kills > 10
    run = assert_whole(config)
    assert len(points(config, run, "loss")) == 1200
    assert run.data.params == {"train.steps": "1200"}
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1


def test_a_server_that_is_too_slow_for_large_requests_gets_smaller_ones(
    tmp_path: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, mlflow, "slow")
    whole_spool(config, 400)
    log, sizes = MlflowStore.log_metrics, list[int]()

    def slow(store: MlflowStore, values: list[mlflow_store.Value]) -> None:
        log(store, values)
        sizes.append(len(values))
        if len(values) > 300:
            raise TimeoutError("it arrived, and the answer did not")

    monkeypatch.setattr(MlflowStore, "log_metrics", slow)
    send_all(config)
    assert len(points(config, assert_whole(config), "loss")) == 400
    assert len(sizes) > 3


def test_a_command_that_is_killed_leaves_no_gap_for_another_to_go_on(
    configure: Callable[..., Config], tmp_path: Path, mlflow: MlflowServer
) -> None:
    """What a checkpoint covers is not trained again, and so its metrics have to be there before it."""
    settings = "train.steps=60", "checkpoint.every=5", "evaluation.every=1000"
    config = configure(tmp_path, f"tracking.uri={mlflow.uri}", *settings)
    run, first = folder(config), Command(config, tmp_path, "first")
    try:
        first.wait_for(lambda text: committed(run)[-1:] >= ["step-00000020"], "checkpoint")
    finally:
        first.close()
    newest = step_of(committed(run)[-1])
    assert newest < 60, "it was over before it was killed"
    assert [step for step, *_ in series(run)["loss"]][:newest] == list(range(1, newest + 1))
    again = Command(config, tmp_path, "again")
    try:
        assert "complete, after step 60" in again.wait()
    finally:
        again.close()
    (tracked_run,) = tracked(config)
    steps = [step for step, _ in points(config, tracked_run, "loss")]
    assert steps == [step for step, *_ in series(run)["loss"]] == list(range(1, 61))
    assert tracked_run.info.status == "FINISHED"


def test_what_was_sent_is_not_read_again(
    tmp_path: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, mlflow, "offset")
    whole_spool(config, 10)
    send_all(config)
    later = spool_of(config, attempt=2, first_step=10)
    later.log(metrics(11))
    later.close()
    sent: list[int] = []

    def note(store: MlflowStore, values: list[mlflow_store.Value]) -> None:
        sent.extend(value.step for value in values)

    monkeypatch.setattr(MlflowStore, "log_metrics", note)
    send_all(config)
    assert sent == [11, 11]


def test_a_lost_note_of_what_was_sent_costs_time_only(tmp_path: Path, mlflow: MlflowServer) -> None:
    """The MLflow run has a mark of the run, and equal values are one to MLflow."""
    config = config_for(tmp_path, mlflow, "forgotten")
    whole_spool(config, 1200)
    send_all(config)
    state = sender.Acknowledged.model_validate_json(folder(config).read(POINTER))
    forgotten = sender.Acknowledged(uri=state.uri, mark=state.mark)
    folder(config).write(POINTER, forgotten.model_dump_json().encode())
    send_all(config)
    assert len(points(config, assert_whole(config), "loss")) == 1200


def test_another_store_gets_everything(tmp_path: Path, mlflow: MlflowServer) -> None:
    """And the first one nothing twice; it stays the run's own."""
    config = config_for(tmp_path, mlflow, "moved")
    whole_spool(config, 10)
    shutil.copy(mlflow.folder / "server.db", tmp_path / "another.db")  # without this run
    moved = configuration(folder(config), [f"tracking.uri=sqlite:///{tmp_path}/another.db"])
    for store in (moved, config, moved, configuration(folder(config), [])):
        send_all(store)
    for store in (config, moved):
        assert len(points(store, assert_whole(store), "loss")) == 10


def test_a_run_that_somebody_deletes_is_told_anew(tmp_path: Path, mlflow: MlflowServer) -> None:
    config = config_for(tmp_path, mlflow, "deleted")
    ranks, sending = spool_of(config), Sender(config, folder(config))
    ranks.log(metrics(1))
    ranks.flush()
    sending.send()
    (run,) = tracked(config)
    MlflowClient(mlflow.uri).delete_run(run.info.run_id)
    ranks.log(metrics(2))
    ranks.close()
    sending.start()
    sending.close()
    assert sending.problem is None
    assert len(points(config, assert_whole(config), "loss")) == 2


def test_steps_that_are_repeated_appear_once(tmp_path: Path, mlflow: MlflowServer) -> None:
    """As they were first: MLflow's histories only grow."""
    config = config_for(tmp_path, mlflow, "repeated")
    for attempt, first, loss in ((1, 0, 1.0), (2, 5, 2.0)):
        ranks = spool_of(config, attempt, first)
        for step in range(first + 1, first + 11):
            ranks.log(Record("metrics", 1e9 + step, step, {"loss": loss}))
        ranks.close()
        send_all(config)
    (run,) = tracked(config)
    expected = [(step, 1.0 if step <= 10 else 2.0) for step in range(1, 16)]
    assert points(config, run, "loss") == expected


def test_a_line_that_was_changed_is_named_and_left_out(
    tmp_path: Path, mlflow: MlflowServer
) -> None:
    config = config_for(tmp_path, mlflow, "rotten")
    whole_spool(config, 10)
    path = Path(folder(config).root) / RANKS / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"mfu", b"mfv")
    path.write_bytes(b"".join(lines))
    told = CliRunner().invoke(app, ["track", "replay", folder(config).uri]).output
    assert f"{RANKS}/000001: the line at byte {len(b''.join(lines[:3]))} is not what was" in told
    assert f"MLflow has what could be read of {folder(config).uri}" in told
    (run,) = tracked(config)
    steps = [step for step, _ in points(config, run, "loss")]
    assert steps == [1, 2, *range(4, 11)]


def test_a_spool_in_object_storage_is_followed(
    s3: str, tmp_path: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panthalassa.journal.INTERVAL", 0.0)
    monkeypatch.setattr("panthalassa.journal.FULL", 2000)
    monkeypatch.setattr(sender, "INTERVAL", 0.2)
    config = config_of(f"s3://{BUCKET}/{tmp_path.name}", "stored", mlflow.uri)
    sending, ended = Sender(config, folder(config)), threading.Event()
    sending.start()
    ranks = spool_of(config)
    for step in range(1, 301):
        ranks.log(metrics(step))
        ended.wait(0.01)
    ranks.close()
    sending.close()
    assert sending.problem is None
    assert len(points(config, assert_whole(config), "loss")) == 300


def test_replay_wants_a_run_with_metrics_and_a_store_that_it_may_enter(
    tmp_path: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PanthalassaError, match="no run at"):
        configuration(folder(config_of(tmp_path, "absent")), [])
    config = config_for(tmp_path, mlflow, "empty")
    with pytest.raises(PanthalassaError, match="no run with metrics at"):
        send_all(config)
    folder(config).write(POINTER, b'{"uri": "http://***@host:1"}')
    with pytest.raises(PanthalassaError, match="its credentials are not kept"):
        configuration(folder(config), [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:1")
    assert configuration(folder(config), []).tracking.uri == os.environ["MLFLOW_TRACKING_URI"]
