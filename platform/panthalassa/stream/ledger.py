"""The ledger: what each step of a run was trained on, written while it runs.

Each attempt of a run (from a start or restart to its end) writes files of its own below `ledger/`, line
by line: first what it is, then for each step the number of samples that were trained and a digest of
which. The digest is the sum of a 128-bit hash of each sample, so that it does not depend on their order
or on who trained them; samples are hashed where they are read, from where they were found. Every line
carries a checksum of itself and all before it. `panthalassa.train.audit` reads all this back.

On a local disk each line is written at once; on object storage, where nothing can be appended, lines
are gathered into a new object every few seconds and before every checkpoint.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from panthalassa.corpus.manifest import Shard
from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Phase
from panthalassa.stream.order import Location
from panthalassa.stream.shuffle import scramble

FOLDER = "ledger"
INTERVAL = 5.0
"""Seconds between two objects of a ledger on object storage."""

REMEDY = "Restore it from a copy: without it nothing shows what the run was trained on."

Limbs = NDArray[np.int64]
"""A 128-bit sum as four sums of 32 bits, the lowest first: exact over 2**31 samples, and in float64
over 2**21 ranks."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attempt(_Line):
    """The first line of an attempt."""

    attempt: int = Field(ge=1)
    first_step: int = Field(ge=0)
    dp_size: int
    tp_size: int
    began: float
    """In seconds since 1970."""
    phases: list[Phase]
    """Those that the run went through and plans."""


class Consumed(_Line):
    """What one step was trained on."""

    step: int = Field(ge=0)
    samples: int = Field(ge=0)
    digest: str = Field(pattern="^[0-9a-f]{32}$")
    quarantined: list[int] = []
    """Samples of the global batch that were masked, because they could not be read."""


_LINE: TypeAdapter[Attempt | Consumed] = TypeAdapter(
    Annotated[Attempt | Consumed, Field(union_mode="left_to_right")]
)


class SampleHashes:
    """128-bit hashes of a corpus's samples: of the shard's SHA-256 and the place in the shard."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        digests = b"".join(bytes.fromhex(shard.sha256)[:16] for shard in shards)
        self._keys = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64)

    def limbs(self, location: Location) -> Limbs:
        """The hash of each sample at `location`: [n, 4]."""
        place = np.zeros(len(location.row), dtype=np.uint64)
        for part in (location.row_group, location.row, location.part):
            place = scramble(place ^ part.astype(np.uint64))
        keys = self._keys[location.shard]
        words = np.stack(
            (scramble(keys[:, 0] ^ place), scramble(keys[:, 1] ^ scramble(place))), axis=1
        )
        halves = np.stack((words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)), axis=2)
        return halves.reshape(-1, 4).astype(np.int64)


def digest_of(limbs: Sequence[float] | Limbs) -> str:
    """The digest (hexadecimal) of a sum of limbs [4]."""
    value = sum(int(limb) << (32 * number) for number, limb in enumerate(limbs))
    return f"{value % (1 << 128):032x}"


class Ledger:
    """One attempt's ledger, open for writing.

    A line that can not be written is kept and the error raised by the next `flush`, because a step is
    no place at which all ranks can fail together.
    """

    def __init__(self, run: Storage, attempt: Attempt) -> None:
        self._storage = run.below(FOLDER)
        self._attempt = attempt.attempt
        self._part = 0
        self._chain = ""
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self._append(attempt)
        with self._named_errors():
            try:
                self._storage.create(self._file(), self._lines[0].encode())
            except FileExistsError:
                raise self._taken_over() from None
        self._written()

    def record(self, consumed: Consumed) -> None:
        """Note a step. Never raises."""
        self._append(consumed)
        if self._storage.is_local or time.monotonic() > self._flushed + INTERVAL:
            with suppress(PanthalassaError):
                self._write()

    def flush(self) -> None:
        """Return when all of it outlives the machine. Raises PanthalassaError when it can not."""
        self._write()
        if self._storage.is_local:
            with open(self._storage.path(self._file()), "rb") as file:
                os.fsync(file.fileno())

    def check_newest(self) -> None:
        """Raises PanthalassaError when a later attempt has begun, as of another command on this run.

        Before each checkpoint, so that of two who train one run only the later one saves.
        """
        with self._named_errors():
            if self._storage.exists(_file(self._storage, self._attempt + 1, 0)):
                raise self._taken_over()

    def _taken_over(self) -> PanthalassaError:
        return PanthalassaError(
            f"another command goes on with this run: its ledger {self._storage.uri} has a later attempt "
            f"than this one, number {self._attempt}. This one ends and saves nothing more; choose "
            "another run.name to train beside the other."
        )

    def _file(self) -> str:
        return _file(self._storage, self._attempt, self._part)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PanthalassaError(
                f"ledger {self._storage.uri} can not be written: {error}. Make room or mend the "
                "storage; the same command then goes on from the last checkpoint."
            ) from error

    def _write(self) -> None:
        if not self._lines:
            return
        data = "".join(self._lines).encode()
        with self._named_errors():
            if self._storage.is_local:
                _append_whole(Path(self._storage.path(self._file())), data)
            else:
                self._storage.write(self._file(), data)
        self._written()

    def _written(self) -> None:
        self._lines = []
        self._part += 1
        self._flushed = time.monotonic()

    def _append(self, line: _Line) -> None:
        text = json.dumps(line.model_dump(exclude_defaults=True), separators=(",", ":"))
        self._chain = _link(self._chain, text)
        self._lines.append(f"{text} {self._chain}\n")


def _file(ledger: Storage, attempt: int, part: int) -> str:
    """The file of an attempt; on object storage it has many parts."""
    return f"{attempt:06d}.jsonl" if ledger.is_local else f"{attempt:06d}-{part:06d}.jsonl"


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def _link(chain: str, text: str) -> str:
    return hashlib.sha256(f"{chain} {text}".encode()).hexdigest()[:16]


def next_attempt(run: Storage) -> int:
    """The number of a new attempt of a run."""
    return max((int(name) for name in _parts(run)), default=0) + 1


@dataclass(frozen=True)
class Account:
    """An attempt as its ledger tells it."""

    attempt: Attempt
    steps: list[Consumed]


def accounts(run: Storage) -> Iterator[Account]:
    """The attempts of a run, in order.

    A last line that was cut off by a crash is ignored. Raises PanthalassaError when anything else is
    not what was written.
    """
    for name, files in sorted(_parts(run).items()):
        storage, chain = run.below(FOLDER), ""
        where = f"ledger {storage.uri}/{files[0] if len(files) == 1 else name}"
        lines = b"".join(storage.read(file) for file in files).decode(errors="replace").split("\n")
        found: list[Attempt | Consumed] = []
        for number, line in enumerate(lines[:-1], 1):
            text, _, link = line.rpartition(" ")
            chain = _link(chain, text)
            if link != chain:
                raise PanthalassaError(
                    f"{where}: line {number} is not what was written there. {REMEDY}"
                )
            try:
                found.append(_LINE.validate_json(text))
            except ValidationError as error:
                raise PanthalassaError(
                    f"{where}: line {number} is no ledger's. {REMEDY}"
                ) from error
        if not found:
            continue  # it ended before its first line was whole
        first, *steps = found
        consumed = [line for line in steps if isinstance(line, Consumed)]
        if not isinstance(first, Attempt) or len(consumed) < len(steps):
            raise PanthalassaError(
                f"{where} does not begin with its attempt, or has two of them. {REMEDY}"
            )
        yield Account(first, consumed)


def _parts(run: Storage) -> dict[str, list[str]]:
    """The files of each attempt by its number, in order."""
    if not run.exists(FOLDER):
        return {}
    found: dict[str, list[str]] = {}
    for file, _ in run.below(FOLDER).files():
        name, _, suffix = file.partition(".")
        if suffix == "jsonl" and name[:6].isdigit():
            found.setdefault(name[:6], []).append(file)
    return found
