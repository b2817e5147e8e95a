"""Metrics to MLflow, from a thread of its own, so that neither its start nor its absence costs a step.

Without a server an sqlite file beside the runs is the store. The MLflow run of a training run goes on
when that is resumed: its id is kept in the run's folder, and steps that were tracked already are not
tracked twice.
"""

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from panthalassa.config import Config
from panthalassa.redact import without_secrets
from panthalassa.storage import Storage, open_storage

BATCH = 1000
"""Metrics in one request, the most that MLflow takes."""
POINTER = "mlflow.json"

Metrics = Mapping[str, float]


def store_uri(config: Config) -> str:
    """The MLflow store of a run: the configuration's, the environment's, or a local sqlite file."""
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    runs = open_storage(config.run.directory)
    return f"sqlite:///{runs.path('mlflow.db') if runs.is_local else os.path.abspath('mlflow.db')}"


class Tracker:
    """Tracks one run. Calls return at once; `close` waits until all is sent, or says why it is not."""

    def __init__(self, config: Config, run: Storage, parameters: Mapping[str, Any]) -> None:
        self._store = store_uri(config)
        self.uri = without_secrets(self._store)
        self.problem: str | None = None
        self._config, self._run, self._parameters = config, run, parameters
        self._queue: queue.SimpleQueue[tuple[int, int, Metrics, Mapping[str, str]] | None]
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Metrics, tags: Mapping[str, str] | None = None) -> None:
        self._queue.put((step, int(time.time() * 1000), metrics, tags or {}))

    def close(self, status: str = "FINISHED") -> None:
        """Wait until all is sent, or is known not to be; `status` is how MLflow shall show the run."""
        self._status = status
        self._queue.put(None)
        self._thread.join()

    def _send_until_closed(self) -> None:
        # A server that is down shall be found out in seconds, not in MLflow's minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            self._open()
            while self._send_what_is_there():
                time.sleep(1.0)
        except Exception as error:  # whatever MLflow meets, training goes on
            reason = without_secrets(_first_line(error))
            self.problem = f"MLflow at {self.uri} does not take the metrics: {reason}"

    def _open(self) -> None:
        import mlflow  # takes seconds, so here and not at the top
        from mlflow.entities import Param, RunTag

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient(self._store)
        self._run_id = self._find_run() or self._create_run()
        history = self._client.get_metric_history(self._run_id, "loss")
        self._tracked = max((metric.step for metric in history), default=-1)
        self._sent: dict[str, int] = {}
        given = {
            key: (self.uri if value == self._store else str(value))[:6000]
            for key, value in self._parameters.items()
        }
        # MLflow refuses to change a parameter: what a resumed run sets anew becomes a tag.
        known = self._client.get_run(self._run_id).data.params
        values = [Param(key, value) for key, value in given.items() if key not in known]
        anew = [
            RunTag(key, value) for key, value in given.items() if known.get(key, value) != value
        ]
        for start in range(0, len(values), 100):
            self._client.log_batch(self._run_id, params=values[start : start + 100])
        self._client.log_batch(self._run_id, tags=anew)

    def _find_run(self) -> str | None:
        if not self._run.exists(POINTER):
            return None
        pointer = json.loads(self._run.read(POINTER))
        if pointer["uri"] != self.uri:
            return None
        self._client.update_run(pointer["run_id"], status="RUNNING")
        return str(pointer["run_id"])

    def _create_run(self) -> str:
        name = self._config.tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(name)
        )
        run = self._client.create_run(experiment_id, run_name=self._config.run.name)
        run_id = str(run.info.run_id)
        self._run.write(POINTER, json.dumps({"uri": self.uri, "run_id": run_id}).encode())
        return run_id

    def _send_what_is_there(self) -> bool:
        """Send all that waits, in batches; False when the tracker was closed."""
        from mlflow.entities import Metric, RunTag

        metrics: list[Any] = []
        tags: list[Any] = []
        going_on = True
        while not self._queue.empty():
            item = self._queue.get()
            if item is None:
                going_on = False
                break
            step, at, values, labels = item
            tags += [RunTag(key, value) for key, value in labels.items()]
            for key, value in values.items():
                if step > self._sent.get(key, self._tracked):  # else repeated after a failure
                    self._sent[key] = step
                    metrics.append(Metric(key, value, at, step))
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])
        if tags:
            self._client.log_batch(self._run_id, tags=tags)
        if not going_on:
            self._client.set_terminated(self._run_id, self._status)
        return going_on


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as a flat one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
