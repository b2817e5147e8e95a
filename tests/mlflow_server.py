"""A real MLflow server (sqlite) on loopback, which can be killed, paused and started again; and runs to
track in it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from s3 import free_port

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.storage import Storage, open_storage
from panthalassa.tracking.spool import series

PATIENCE = 120


class MlflowServer:
    """The server of one store; the store outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--default-artifact-root", str(self.folder / "artifacts")),
            *("--host", "127.0.0.1", "--port", str(self.port)),
        ]
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nothing but the tracking server
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            told = (self.folder / "server.log").read_text()
            assert self._process.poll() is None, told
            assert time.monotonic() < until, told
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        assert self._process
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    folder.mkdir(parents=True, exist_ok=True)
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


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


def tracked(config: Config, uri: str | None = None) -> list[Run]:
    """All MLflow runs of the name, in the store that the configuration names or beside the runs."""
    client = _client(config, uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    if experiment is None:
        return []
    query = f"attributes.run_name = '{config.run.name}'"
    return list(client.search_runs([experiment.experiment_id], query))


def points(
    config: Config, run: Run, metric: str, uri: str | None = None
) -> list[tuple[int, float]]:
    """Steps and values of a metric as MLflow has it, each as often as it has it."""
    history = _client(config, uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def assert_whole(config: Config) -> Run:
    """MLflow has the spool's series, each step once, in one run; returns that.

    Nodes are looked at by the clock, and so may tell twice of a step: then MLflow has the first.
    """
    (run,) = tracked(config)
    for metric, expected in series(folder(config)).items():
        found = points(config, run, metric)
        twice = [step for step, count in Counter(step for step, _ in found).items() if count > 1]
        assert twice == [], metric
        known = [(step, value) for step, _, value in expected]
        assert found == known or metric.startswith("system/"), metric
    return run


def _client(config: Config, uri: str | None) -> MlflowClient:
    return MlflowClient(uri or config.tracking.uri or f"sqlite:///{config.run.directory}/mlflow.db")
