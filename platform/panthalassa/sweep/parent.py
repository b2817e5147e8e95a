"""The sweep's own run in MLflow, of which those of its trials are children.

It is known by a mark in the sweep's folder, so that a sweep which goes on has the same one. A server
that is away costs the trials their parent and nothing else.
"""

import time
import uuid
from collections.abc import Sequence

from panthalassa.config import Config
from panthalassa.redact import without_secrets
from panthalassa.storage import Storage
from panthalassa.sweep.results import Trial
from panthalassa.tracking.mlflow_store import MlflowStore, Value, first_line, store_uri

MARK = "mlflow-mark"


class Parent:
    """Opens the run; `run_id` is empty when that is not possible, and `problem` tells why."""

    def __init__(self, config: Config, folder: Storage) -> None:
        self.uri, self.run_id = without_secrets(store_uri(config)), ""
        self.problem: str | None = None
        if not folder.exists(MARK):
            folder.write(MARK, uuid.uuid4().hex.encode())
        try:
            self._store = MlflowStore(store_uri(config), config.tracking, config.run.name)
            self._store.open("", folder.read(MARK).decode())
            self._store.set_status("RUNNING", 0)
            self.run_id = self._store.run_id
        except Exception as error:  # whatever MLflow meets, the sweep goes on
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.problem = (
            f"MLflow at {self.uri} has no run of this sweep, or not its end: "
            f"{without_secrets(first_line(error))}"
        )

    def close(self, best: Sequence[Trial], interrupted: bool) -> None:
        """Tell how the sweep ended, and what is best."""
        if not self.run_id:
            return
        now = int(time.time() * 1000)
        try:
            if best:
                found = best[0]
                metrics = {f"best/{name}": value for name, value in found.metrics.items()}
                self._store.log_metrics(
                    [Value(name, value, now, found.step) for name, value in metrics.items()]
                )
                self._store.log_tags(
                    {"best": found.run} | {k: str(v) for k, v in found.values.items()}
                )
            self._store.set_status("KILLED" if interrupted else "FINISHED", now)
        except Exception as error:  # as above
            self._fail(error)
