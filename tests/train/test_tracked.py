"""A run is in its spool and in MLflow, step by step, whatever happens to the server on its way."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow_server import assert_whole, mlflow_server, tracked
from processes import worker_pids

from panthalassa.config import Config
from panthalassa.storage import open_storage
from panthalassa.tracking import sender
from panthalassa.tracking.replay import replay
from panthalassa.tracking.spool import read, series
from panthalassa.train.checkpoint import COMMIT, Commit
from panthalassa.train.events import Event, Step
from panthalassa.train.run import Outcome, pretrain

Configure = Callable[..., Config]


def test_a_run_leaves_a_series_of_each_metric(undisturbed: Outcome) -> None:
    history, settings = undisturbed.history, undisturbed.config.run
    run = open_storage(settings.directory).below(settings.name)
    found = series(run)
    whole = {
        "loss": [(step.step, step.at, step.loss) for step in history.steps],
        "grad_norm": [(step.step, step.at, step.grad_norm) for step in history.steps],
        "learning_rate": [(step.step, step.at, step.learning_rate) for step in history.steps],
        "tokens_per_second": [
            (step.step, step.at, step.tokens_per_second) for step in history.steps
        ],
        "mfu": [(step.step, step.at, step.mfu) for step in history.steps],
        "step_seconds": [(step.step, step.at, step.seconds) for step in history.steps],
        "data_seconds": [(step.step, step.at, step.data_seconds) for step in history.steps],
    }
    assert {name: found[name] for name in whole} == whole
    measured = [step.step for step in history.steps if step.joules is not None]
    assert [step for step, *_ in found.get("joules", [])] == measured
    held_out = [(step, value) for step, _, value in found["held_out_loss"]]
    assert held_out == [(event.step, event.loss) for event in history.evaluations]
    for name in ("checkpoint_seconds", "stall_seconds"):
        assert [step for step, *_ in found[name]] == [4, 8, 12, 16, 20, 24]
    assert [step for step, *_ in found["goodput"]] == [24]


def test_mlflow_knows_what_the_run_was_made_of(undisturbed: Outcome) -> None:
    config = undisturbed.config
    run = assert_whole(config)
    tags = run.data.tags
    assert run.info.status == "FINISHED"
    assert tags["attempt"] == "1"
    assert tags["attempt.1"].endswith("after step 0: 2 data-parallel x 1 tensor-parallel ranks")
    assert run.data.params["train.steps"] == "24"
    (dataset,) = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in dataset.tags}[
        "sha256"
    ] == undisturbed.manifest.fingerprint
    saved = undisturbed.history.saved
    assert saved
    assert tags["checkpoint"] == saved.uri
    commit = Commit.model_validate_json(Path(saved.uri, COMMIT).read_text())
    assert tags["checkpoint.sha256"] == commit.sha256
    system = {name.rpartition("/")[2] for name in run.data.metrics if name.startswith("system/")}
    assert {"cpu_utilization_percentage", "system_memory_usage_megabytes"} <= system
    assert tags["hardware"].startswith(f"1 x ({os.cpu_count()} x ")


def test_steps_that_were_lost_and_repeated_stand_once(configure: Configure, tmp_path: Path) -> None:
    """The ranks are killed between two checkpoints, and the run goes on in the same MLflow run."""
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if isinstance(event, Step) and event.step >= 10 and not killed:
            killed.append(event.step)
            for pid in worker_pids():
                os.kill(pid, signal.SIGKILL)

    config = configure(tmp_path, "train.steps=30", "checkpoint.every=8")
    outcome = pretrain(config, kill_once)
    run = open_storage(config.run.directory).below(config.run.name)
    last = {step.step: step.loss for step in outcome.history.steps}
    assert [step for step, *_ in series(run)["loss"]] == list(range(1, 31))
    assert {step: loss for step, _, loss in series(run)["loss"]} == last
    attempts = [record.step for record in read(run) if record.kind == "attempt"]
    assert attempts[0] == 0
    assert attempts[1] >= 8
    (tracked_run,) = tracked(config)
    assert tracked_run.data.tags["attempt"] == "2"
    assert {"attempt.1", "attempt.2"} <= set(tracked_run.data.tags)


def test_a_server_that_is_killed_paused_and_restarted_meanwhile_misses_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "LONGEST_PAUSE", 1.0)
    starting: list[threading.Thread] = []
    with mlflow_server(tmp_path / "server") as server:

        def disturb(event: Event) -> None:
            if isinstance(event, Step):
                if event.step == 20:
                    server.send(signal.SIGSTOP)
                elif event.step == 40:
                    server.kill()
                elif event.step == 60:
                    starting.append(threading.Thread(target=server.start))
                    starting[0].start()

        config = configure(tmp_path, f"tracking.uri={server.uri}", "train.steps=100")
        outcome = pretrain(config, disturb)
        assert len(outcome.history.steps) == 100
        starting[0].join()
        if outcome.tracking_problem:  # the run was over before the server was back
            run = open_storage(config.run.directory).below(config.run.name)
            assert replay(config, run, lambda sent, total: None) == []
        found = assert_whole(config)
        assert found.info.status == "FINISHED"
        assert found.data.metrics["loss"] == pytest.approx(outcome.history.steps[-1].loss)
