"""From a run's spool to MLflow: read on from where it was acknowledged, send, acknowledge.

What MLflow has is noted in `mlflow.json` of the run's folder, as bytes of each journal; what another
store got by a replay, in a file of its own. A crash between
sending and noting makes the next sender repeat some requests, which the store takes for what they are
(`mlflow_store`). Of a step that is repeated after a rollback MLflow has the first values, because its
histories only grow and shall not wait for a checkpoint; `spool.series` has the last ones.

A command sends from a thread as long as it runs, and at its end waits for the server for a moment only;
`panthalassa track replay` sends what is left. Of two commands on one run the later one sends.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, ValidationError

from panthalassa.config import Config
from panthalassa.journal import INTERVAL, newest_number, unread
from panthalassa.redact import without_secrets
from panthalassa.storage import Storage
from panthalassa.tracking.mlflow_store import BATCH, MlflowStore, Value, first_line, store_uri
from panthalassa.tracking.spool import DRIVER, RANKS, Record, decode

POINTER, ELSEWHERE, MARK = "mlflow.json", "mlflow-elsewhere.json", "metrics/mark"
LOOK = 1.0
"""Seconds between two looks for new records on a local disk."""
NOTE = 2.0
"""Seconds between two notes of what was sent."""
PATIENCE = 5.0
"""Seconds for which storage is asked again; the next look asks it anyway."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
SMALLEST = 50
"""Metrics in a request, at least: after a failure they are halved, for a server that takes too long."""
FAILING, SILENT = 5.0, 60.0
"""Seconds without progress after which the end of a run waits no longer: when MLflow fails, and when it
just does not answer (making a new sqlite file takes many)."""


class Acknowledged(BaseModel):
    """What MLflow has of a run's spool."""

    model_config = ConfigDict(extra="forbid")

    uri: str
    """Of the store, without credentials."""
    mark: str = ""
    """The tag by which the MLflow run is known."""
    run_id: str = ""
    """MLflow's own."""
    read: dict[str, dict[int, int]] = {}
    """Bytes by folder and number of the journal."""
    newest: dict[str, int] = {}
    """The highest step that was sent of each metric."""


@dataclass
class _Batch:
    """What goes to MLflow together, and what is acknowledged then."""

    after: Acknowledged
    values: list[Value] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    others: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if record.kind == "metrics":
            for name, value in record.values.items():
                if record.step > self.after.newest.get(name, -1):  # else it was repeated
                    self.after.newest[name] = record.step
                    at = int(record.at * 1000)
                    self.values.append(Value(name, float(value), at, record.step))
        elif record.kind == "tags":
            self.tags |= {name: str(value) for name, value in record.values.items()}
        elif record.kind == "artifact":
            name, uri, sha256 = (str(record.values[key]) for key in ("name", "uri", "sha256"))
            self.tags |= {name: uri, f"{name}.sha256": sha256}
        elif record.kind != "attempt":
            self.others.append(record)


class Sender:
    """Sends one run's spool. `send` does it here; `start` and `close` have a thread do it."""

    def __init__(
        self,
        config: Config,
        run: Storage,
        command: int | None = None,
        tell: Callable[[int], None] = lambda sent: None,
        pointer: str = POINTER,
    ) -> None:
        """command: the number of the driver's journal; a later one ends the sending.
        tell: gets the bytes of the spool that MLflow has, as they grow.
        pointer: where it is noted what MLflow has; ELSEWHERE for a store that is not the run's own."""
        self._tell, self._pointer = tell, pointer
        self._config, self._command = config, command
        self._run = replace(run, patience=PATIENCE)
        self._secret_uri = store_uri(config)
        self.uri = without_secrets(self._secret_uri)
        self.damaged: list[str] = []
        """Lines that are not what was written, and are left out."""
        self._error: Exception | None = None
        self._store: MlflowStore | None = None
        self._state = self._written = Acknowledged(uri=self.uri)
        self._noted = self._progress = time.monotonic()
        self._most = BATCH
        """Metrics in the next request."""
        self._done = self._abandoned = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True, name="MLflow")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Return when all is sent, or MLflow makes no progress."""
        self._closing.set()
        self._progress = time.monotonic()
        while self._thread.is_alive() and not self._abandoned:
            self._thread.join(0.1)
            silence = time.monotonic() - self._progress
            self._abandoned = silence > (FAILING if self._error else SILENT)

    @property
    def problem(self) -> str | None:
        """Why MLflow does not have all, and what sends the rest; None when it has."""
        if self._done or (self._error is None and not self._abandoned):
            return None
        reason = without_secrets(first_line(self._error)) if self._error else "no answer"
        return (
            f"MLflow at {self.uri} does not take the metrics: {reason}. They are kept; when it is back: "
            f"panthalassa track replay {self._run.uri}"
        )

    def _send_until_closed(self) -> None:
        pause = FIRST_PAUSE
        while not self._abandoned and not self._done:
            closing = self._closing.is_set()
            try:
                self.send()
            except Exception as error:  # whatever MLflow meets, training goes on
                self._error = error
                time.sleep(FIRST_PAUSE) if closing else self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._error, pause = None, FIRST_PAUSE
            self._done = self._done or closing
            self._closing.wait(0 if self._done else LOOK if self._run.is_local else INTERVAL)

    def send(self) -> None:
        """Send what the spool has. Raises whatever MLflow and the storage do."""
        own = self._command or 0  # whose journal is not there before its first lines are
        last = max(own, newest_number(self._run.below(DRIVER)))
        if 0 < own < last:
            self._done = True  # another command goes on with this run, and sends
            return
        store = self._store = self._store or self._open()
        try:
            for batch in self._batches(last):
                self._pass_on(store, batch)
                if self._abandoned:
                    return
        except Exception:
            self._most = max(SMALLEST, self._most // 2)
            self._store = None  # perhaps somebody has deleted the run
            raise
        finally:
            self._note()

    def _open(self) -> MlflowStore:
        store = MlflowStore(self._secret_uri, self._config.tracking, self._config.run.name)
        with suppress(FileNotFoundError, ValidationError):
            self._state = Acknowledged.model_validate_json(self._run.read(self._pointer))
        if self._state.uri != self.uri:  # another store may have nothing yet
            self._state = Acknowledged(uri=self.uri, mark=self._state.mark)
        if not self._state.mark:
            self._state.mark = self._mark()
            self._write_state()
        if not store.open(self._state.run_id, self._state.mark):
            self._state = Acknowledged(uri=self.uri, mark=self._state.mark, run_id=store.run_id)
            self._write_state()
        self._progress = time.monotonic()
        return store

    def _mark(self) -> str:
        """The mark of this run, the same for all who ask at once."""
        with suppress(FileExistsError):
            self._run.create(MARK, uuid.uuid4().hex.encode())
        return self._run.read(MARK).decode()

    def _batches(self, last: int) -> Iterator[_Batch]:
        """What is not acknowledged, in order; of how the run ended, the last command's word."""
        batch = self._batch()
        for folder in (RANKS, DRIVER):
            known: Mapping[int, int] = self._state.read.get(folder, {})
            for number, offset, piece in unread(self._run.below(folder), known):
                for line in piece.splitlines(keepends=True):
                    record = self._decode(line, f"{folder}/{number:06d}", offset)
                    offset += len(line)
                    if record and (record.kind != "status" or number == last):
                        if len(batch.values) + len(record.values) > self._most:
                            yield batch
                            batch = self._batch()
                        batch.add(record)
                    batch.after.read.setdefault(folder, {})[number] = offset
        if batch.after.read != self._state.read:
            yield batch

    def _batch(self) -> _Batch:
        return _Batch(self._state.model_copy(deep=True))

    def _decode(self, line: bytes, where: str, offset: int) -> Record | None:
        try:
            return decode(line)
        except ValueError as error:
            told = f"{self._run.uri}/{where}: the line at byte {offset} {error}; it is left out"
            if told not in self.damaged:
                self.damaged.append(told)
            return None

    def _pass_on(self, store: MlflowStore, batch: _Batch) -> None:
        if batch.values:
            store.log_metrics(batch.values)
        store.log_tags(batch.tags)
        for record in batch.others:
            values = {name: str(value) for name, value in record.values.items()}
            if record.kind == "parameters":
                store.log_parameters(values)
            elif record.kind == "dataset":
                store.log_dataset(values["name"], values["uri"], values["sha256"])
            else:
                store.set_status(values["status"], int(record.at * 1000))
        self._state = batch.after
        self._most = min(BATCH, self._most + SMALLEST)
        self._progress = time.monotonic()
        self._tell(_bytes(self._state))
        if self._progress > self._noted + NOTE:
            self._note()

    def _note(self) -> None:
        if self._state is not self._written:
            with suppress(OSError):  # then some requests will be repeated
                self._write_state()

    def _write_state(self) -> None:
        self._noted = time.monotonic()
        self._run.write(self._pointer, self._state.model_dump_json().encode())
        self._written = self._state


def _bytes(state: Acknowledged) -> int:
    return sum(size for sizes in state.read.values() for size in sizes.values())
