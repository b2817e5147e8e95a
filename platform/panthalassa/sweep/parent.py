"""The sweep's own run in MLflow, of which those of its trials are children.

It is known by a mark in the sweep's folder, so that a sweep which goes on has the same one. What it
shows comes from the records. So a server that is away delays it, and nothing else: it is made when the
server is there, at the sweep's end or by `replay`, and trials that had begun without it are then made
its children.
"""

import time
import uuid
from collections.abc import Callable, Sequence

from panthalassa.config_file import build
from panthalassa.errors import PanthalassaError
from panthalassa.redact import without_secrets
from panthalassa.run_config import kept_tree
from panthalassa.storage import Storage
from panthalassa.sweep.config import SweptConfig
from panthalassa.sweep.pareto import best
from panthalassa.sweep.results import Trial, all_failed, trials
from panthalassa.tracking import replay as of_a_run
from panthalassa.tracking.mlflow_store import MlflowStore, Value, first_line, store_uri
from panthalassa.tracking.sender import Acknowledged
from panthalassa.tracking.spool import DRIVER

MARK = "mlflow-mark"
ENDED = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""How a trial in such a state ended, in MLflow's words."""


class Parent:
    """Opens the run; `run_id` is empty as long as that is not possible, and `problem` tells why."""

    def __init__(self, config: SweptConfig, folder: Storage) -> None:
        self.uri, self.run_id = without_secrets(store_uri(config)), ""
        self.problem: str | None = None
        self._config, self._folder = config, folder
        if not folder.exists(MARK):
            folder.write(MARK, uuid.uuid4().hex.encode())
        self._try(self._open)

    def close(self, known: Sequence[Trial], status: str) -> None:
        """Tell what is best, and how the sweep ended (MLflow's word); have all trials as children."""
        self._try(lambda: self._close(known, status))

    def _try(self, send: Callable[[], None]) -> None:
        try:
            send()
            self.problem = None
        except Exception as error:  # whatever MLflow meets, the sweep goes on
            self.problem = (
                f"{self.uri} does not have all of the sweep: {without_secrets(first_line(error))}. It "
                f"is kept; when MLflow is back: panthalassa track replay {self._folder.uri}"
            )

    def _open(self) -> None:
        store = MlflowStore(store_uri(self._config), self._config.tracking, self._config.run.name)
        store.open("", self._folder.read(MARK).decode())
        store.set_status("RUNNING", 0)
        self._store, self.run_id = store, store.run_id

    def _close(self, known: Sequence[Trial], status: str) -> None:
        if not self.run_id:
            self._open()
        now = int(time.time() * 1000)
        if found := best(known, self._config.sweep):
            first, metrics = found[0], found[0].metrics.items()
            self._store.log_metrics(
                [Value(f"best/{name}", value, now, first.step) for name, value in metrics]
            )
            values = {name: str(value) for name, value in first.values.items()}
            self._store.log_tags({"best": first.run} | values)
        self._store.set_status(status, now)
        late = 0
        for trial in known:
            run = self._folder.below(trial.run)
            if (there := of_a_run.acknowledged(run)).uri != self.uri:
                there = Acknowledged(uri=self.uri)  # this store has nothing of it
            if there.run_id:
                self._store.adopt(there.run_id, ENDED.get(trial.state))
            late += of_a_run.incomplete(run, there)
        if late:
            raise PanthalassaError(f"the metrics of {late} trials have not arrived")


def ended_as(known: Sequence[Trial], interrupted: bool = False) -> str:
    """How a sweep ended, in MLflow's words."""
    if interrupted or not all(trial.over for trial in known):
        return "KILLED"
    return "FAILED" if all_failed(known) else "FINISHED"


def replay(folder: Storage, overrides: list[str], show: Callable[[int, int], None]) -> list[str]:
    """Send what MLflow does not have of a sweep and its trials, as `tracking.replay` does of a run.

    `show` gets how many trials are sent, and how many there are. Returns what was left out.
    Raises PanthalassaError as that, and for a damaged record.
    """
    found = build(kept_tree(folder), overrides, folder.uri, SweptConfig)
    config = of_a_run.in_its_store(found, folder, overrides)
    known, left_out = trials(folder), list[str]()
    for number, trial in enumerate(known, 1):
        run = folder.below(trial.run)
        if run.exists(DRIVER):  # else it failed before it began
            own = of_a_run.configuration(run, overrides)
            left_out += of_a_run.replay(own, run, lambda sent, all: None)
        show(number, len(known))
    parent = Parent(config, folder)
    parent.close(known, ended_as(known))
    if parent.problem:
        raise PanthalassaError(parent.problem)
    return left_out
