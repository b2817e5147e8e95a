"""The spool: every metric, parameter, tag and artifact of a run, first of all in the run's own folder.

What comes in are records; what goes out are lines below `metrics/`, which outlive the process that wrote
them and the server that is not there. There are two kinds of writers, each with journals of its own. The
first rank of an attempt writes `metrics/ranks`, and its lines are in place before the checkpoint is that
covers them; the driver of a command writes `metrics/driver`. Both are named by their epoch of the run's
lease. A line carries the CRC-32 of its text.

A call costs the caller some microseconds. A thread writes: on a local disk four times a second, on
object storage every few seconds.
"""

import json
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.journal import Journal, journals
from panthalassa.storage import Storage

RANKS, DRIVER = "metrics/ranks", "metrics/driver"
INTERVAL = 0.25
"""Seconds between two looks of the thread for records."""
CHECKSUM = 8
"""Characters of a line before its text."""

Kind = Literal["attempt", "metrics", "parameters", "tags", "dataset", "artifact", "status"]
Point = tuple[int, float, float]
"""A step, when its value was known in seconds since 1970, and the value."""


@dataclass(frozen=True)
class Record:
    """Something to be known of a run.

    `metrics` holds numbers. Of an `artifact` and a `dataset` there is a `name`, a `uri` and a `sha256`,
    of a `status` MLflow's word for it. `attempt` says that ranks go on from `step`, and how many.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    kind: Kind
    at: float
    """In seconds since 1970."""
    step: int
    """Steps done."""
    values: Mapping[str, float | int | str]


_RECORD = TypeAdapter(Record)


def encode(record: Record) -> str:
    """The line of a record, without its end."""
    text = json.dumps(vars(record), separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}"


def decode(line: bytes) -> Record:
    """The record of a line. Raises ValueError when it is not what was written."""
    start, text = line[: CHECKSUM + 1], line[CHECKSUM + 1 :].rstrip(b"\n")
    if start != b"%08x " % zlib.crc32(text):
        raise ValueError("is not what was written there")
    try:
        return _RECORD.validate_json(text)
    except ValidationError as error:
        raise ValueError("holds none of a run's metrics, or of a later version") from error


class Spool:
    """One writer's records. Nothing here raises: what can not be written is tried again.

    Any thread may `log`, and any may `flush`.
    """

    def __init__(self, folder: Storage, first: Record, number: int) -> None:
        """folder: RANKS or DRIVER of a run. first: the first record. number: of a journal that is this
        writer's alone."""
        self._waiting: deque[Record] = deque([first])
        self._moving = threading.Lock()
        self._journal = Journal(folder, number)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, daemon=True, name="spool")
        self._thread.start()

    def log(self, record: Record) -> None:
        """Have a record written; returns at once."""
        self._waiting.append(record)

    def flush(self) -> None:
        """Return when all of it outlives the machine, or can not for now."""
        with suppress(OSError):
            self._move()
            self._journal.write()
            self._journal.sync()

    def close(self) -> None:
        """Write what is left."""
        self._closing.set()
        self._thread.join()
        self.flush()

    def _write_until_closed(self) -> None:
        while not self._closing.wait(INTERVAL):
            self._move()
            if self._journal.due:
                with suppress(OSError):
                    self._journal.write()

    def _move(self) -> None:
        with self._moving:  # else two threads might exchange lines
            while self._waiting:
                self._journal.add(encode(self._waiting.popleft()))


def read(run: Storage) -> list[Record]:
    """The records of all attempts of a run, and then those of its commands; each as it was written.

    A last line that was cut off is left out. Raises PanthalassaError when one can not be read, or is
    not what was written.
    """
    return [record for folder in (RANKS, DRIVER) for record in _read(run.below(folder))]


def _read(folder: Storage) -> Iterator[Record]:
    try:
        for where, lines in journals(folder):
            for number, line in enumerate(lines, 1):
                try:
                    yield decode(line.encode())
                except ValueError as error:
                    raise PanthalassaError(
                        f"{where}: line {number} {error}. Restore the file from a copy, or delete the "
                        "line, and what it said is left out."
                    ) from error
    except OSError as error:
        raise PanthalassaError(f"{folder.uri} can not be read: {error}") from error


def series(run: Storage) -> dict[str, list[Point]]:
    """The values of each metric, by rising steps, each step once: as the history that stands has it.

    Steps that were rolled back are left out, or have the values of their repetition. Raises as `read`.
    """
    found: dict[str, list[Point]] = {}
    for folder in (RANKS, DRIVER):
        _enter(found, _read(run.below(folder)))
    return found


def _enter(found: dict[str, list[Point]], records: Iterable[Record]) -> None:
    """Add the values of records in order; one of a step undoes those of this and later steps."""
    for record in records:
        if record.kind == "attempt":
            for points in found.values():
                _cut(points, record.step + 1)
        elif record.kind == "metrics":
            for name, value in record.values.items():
                points = found.setdefault(name, [])
                _cut(points, record.step)
                points.append((record.step, record.at, float(value)))


def _cut(points: list[Point], step: int) -> None:
    while points and points[-1][0] >= step:
        points.pop()
