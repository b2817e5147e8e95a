"""The driver's end of tracking: what it knows of the run goes to its spool, and all spools to MLflow.

What the ranks know (losses, checkpoints, how many they are) they spool themselves, so that it is safe
before the checkpoint is that covers it. The driver adds where the run comes from, the load of its nodes,
and how it ended.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from panthalassa.config import Config
from panthalassa.config_file import flatten
from panthalassa.redact import without_secrets
from panthalassa.storage import Storage
from panthalassa.tracking.mlflow_store import store_uri
from panthalassa.tracking.provenance import provenance
from panthalassa.tracking.sender import Sender
from panthalassa.tracking.spool import DRIVER, Kind, Record, Spool

PATIENCE = 1.0
"""Seconds for which a write to object storage is tried again: the next one writes it anyway."""


class Tracker:
    """Tracks one command of a run. Calls return at once, and nothing here raises."""

    def __init__(self, config: Config, run: Storage, fingerprint: str, command: int) -> None:
        """fingerprint: SHA-256 of the corpus's manifest. command: the command's epoch of the lease."""
        folder = replace(run.below(DRIVER), patience=PATIENCE)
        began = Record("status", time.time(), 0, {"status": "RUNNING"})
        self._spool = Spool(folder, began, command)
        self._sender = Sender(config, run, command)
        self._add("parameters", parameters(config))
        corpus = config.corpus.directory
        self._add("dataset", {"name": corpus[-200:], "uri": corpus, "sha256": fingerprint})
        # git may take its time
        self._asking = threading.Thread(target=lambda: self.tag(provenance()), daemon=True)
        self._asking.start()
        self._hardware: dict[str, str] = {}
        """By the names of nodes."""
        self._sender.start()

    @property
    def uri(self) -> str:
        """The MLflow store, without credentials."""
        return self._sender.uri

    @property
    def problem(self) -> str | None:
        """Why MLflow does not have all, if so."""
        return self._sender.problem

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics after `step` steps."""
        self._add("metrics", metrics, step)

    def artifact(self, name: str, uri: str, sha256: str) -> None:
        """Where a file is, and what it is."""
        self._add("artifact", {"name": name, "uri": uri, "sha256": sha256})

    def tag(self, tags: Mapping[str, str]) -> None:
        self._add("tags", tags)

    def node(self, step: int, name: str, hardware: str, load: Mapping[str, float]) -> None:
        """How busy a node is at a step, as MLflow's system metrics."""
        self.log(step, {f"system/{name}/{key}": value for key, value in load.items()})
        if self._hardware.get(name) != hardware:
            self._hardware[name] = hardware
            alike = Counter(self._hardware.values())
            self.tag({"hardware": "; ".join(f"{n} x ({text})" for text, n in alike.items())})

    def _add(self, kind: Kind, values: Mapping[str, float | str], step: int = 0) -> None:
        self._spool.log(Record(kind, time.time(), step, values))

    def close(self, status: str = "FINISHED") -> None:
        """Wait until all is sent, or MLflow makes no progress; `status` is how it shall show the run."""
        self._asking.join()
        self._add("status", {"status": status})
        self._spool.close()
        self._sender.close()


def parameters(config: Config) -> dict[str, str]:
    """The resolved configuration, flat, without credentials."""
    store = store_uri(config)
    return {
        key: without_secrets(store) if value == store else str(value)
        for key, value in flatten(config.model_dump(mode="json")).items()
    }
