"""One door to MLflow: a run in a store, and what is sent to it, in requests that can be repeated.

MLflow's stores in a database (all that it still recommends) keep a value once, however often it is sent
with the same step and time. So whoever does not know whether a request arrived sends it again.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from panthalassa.config import Config, Tracking
from panthalassa.errors import ConfigError
from panthalassa.redact import without_secrets
from panthalassa.storage import open_storage

BATCH = 1000
"""Metrics in one request, the most that MLflow takes."""
FEW = 100
"""Parameters or tags in one request, the most that MLflow takes."""
MARK, PARENT = "panthalassa.run", "mlflow.parentRunId"
LONGEST_PARAMETER, LONGEST_DIGEST = 6000, 36
STORES = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://\S|databricks(://\S|$)")


class Value(NamedTuple):
    name: str
    value: float
    at: int
    """In milliseconds since 1970."""
    step: int


def store_uri(config: Config) -> str:
    """The MLflow store of a run: the configuration's, the environment's, or a local sqlite file.

    Raises ConfigError for what names neither a server nor a database.
    """
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        if not STORES.match(given):
            key = "tracking.uri" if config.tracking.uri else "MLFLOW_TRACKING_URI"
            raise ConfigError(
                f"{key}={without_secrets(given)}: expected an MLflow server, as http://host:5000, or a "
                "database, as sqlite:///absolute/path.db or postgresql://user@host/name"
            )
        return given
    runs = open_storage(config.run.directory)
    return f"sqlite:///{runs.path('mlflow.db') if runs.is_local else os.path.abspath('mlflow.db')}"


class MlflowStore:
    """A store, and one run in it. What MLflow raises passes through."""

    def __init__(self, uri: str, tracking: Tracking, name: str) -> None:
        # A server that is down shall be found out in seconds, not in MLflow's minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow  # takes seconds, so here and not at the top

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient(uri)
        self._experiment, self._parent, self._name = tracking.experiment, tracking.parent, name
        self.run_id = ""

    def open(self, run_id: str, mark: str) -> bool:
        """Go on with the run of that id, or else the one that bears `mark`, or else a new one.

        Returns whether it is the one of that id. `mark`: a tag that no other run has, so that a request
        for a new one can be repeated.
        """
        if run_id and self._knows(run_id):
            self.run_id = run_id
            return True
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._create_experiment()
        if not (marked := self._marked(experiment, mark)):
            tags = {MARK: mark} | ({PARENT: self._parent} if self._parent else {})
            own = self._client.create_run(experiment, run_name=self._name, tags=tags).info.run_id
            marked = self._marked(experiment, mark)
            if marked[0] != own:  # another command was as fast
                self._client.delete_run(own)
        self.run_id = marked[0]
        return False

    def _marked(self, experiment: str, mark: str) -> list[str]:
        """The ids of the runs that bear a mark, in an order that all agree on."""
        found = self._client.search_runs([experiment], f"tags.`{MARK}` = '{mark}'")
        ordered = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
        return [str(run.info.run_id) for run in ordered]

    def _create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(self._experiment))
        except MlflowException:  # somebody else did
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _knows(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def log_metrics(self, values: Sequence[Value]) -> None:
        """At most BATCH of them."""
        from mlflow.entities import Metric

        metrics = [Metric(value.name, value.value, value.at, value.step) for value in values]
        self._client.log_batch(self.run_id, metrics=metrics)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for some in _some(tags):
            self._client.log_batch(self.run_id, tags=[RunTag(*item) for item in some])

    def log_parameters(self, given: Mapping[str, str]) -> None:
        """MLflow refuses to change a parameter: what a resumed run sets anew becomes a tag."""
        from mlflow.entities import Param

        short = {name: value[:LONGEST_PARAMETER] for name, value in given.items()}
        known = self._client.get_run(self.run_id).data.params
        for some in _some({name: value for name, value in short.items() if name not in known}):
            self._client.log_batch(self.run_id, params=[Param(*item) for item in some])
        self.log_tags({name: v for name, v in short.items() if known.get(name, v) != v})

    def log_dataset(self, name: str, uri: str, sha256: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = "s3" if uri.startswith("s3://") else "local"
        dataset = Dataset(name, sha256[:LONGEST_DIGEST], kind, uri)
        tags = [InputTag("mlflow.data.context", "training"), InputTag("sha256", sha256)]
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def adopt(self, run_id: str, ended: str | None) -> None:
        """Make another run of the store a child of this one.

        ended: how it did, for one whose command was killed before it could say so.
        """
        self._client.set_tag(run_id, PARENT, self.run_id)
        if ended and self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, ended)

    def set_status(self, status: str, at: int) -> None:
        """status: RUNNING, or how the run ended `at` milliseconds since 1970."""
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status, at)


def _some(items: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    rest = iter(items.items())
    while some := list(islice(rest, FEW)):
        yield some


def first_line(error: BaseException) -> str:
    """What an error of MLflow's says, as short as possible."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
