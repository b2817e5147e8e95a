"""The ledger: what each step of a run was trained on, written while it runs.

Each attempt of a run (from a start or restart to its end) writes files of its own below `ledger/`, named
by its epoch of the run's lease, line by line: first what it is, then for each step the number of samples
that were trained and a digest of which. The digest is the sum of a 128-bit hash of each sample, so that
it does not depend on their order or on who trained them; samples are hashed where they are read, from
where they were found. Every line carries a checksum of itself and all before it.
`panthalassa.train.audit` reads all this back.

On a local disk each line is written at once; on object storage, where nothing can be appended, every few
seconds and before every checkpoint.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from panthalassa.corpus.manifest import Shard
from panthalassa.errors import PanthalassaError
from panthalassa.journal import Chain, Journal, journals, newest_number
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Phase
from panthalassa.stream.order import Location
from panthalassa.stream.shuffle import scramble

FOLDER = "ledger"

REMEDY = "Restore it from a copy: without it nothing shows what the run was trained on."

Limbs = NDArray[np.int64]
"""A 128-bit sum as four sums of 32 bits, the lowest first: exact over 2**31 samples, and in float64
over 2**21 ranks."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attempt(_Line):
    """The first line of an attempt."""

    attempt: int = Field(ge=1)
    """Its epoch of the run's lease: higher than that of any attempt before."""
    before: int | None = None
    """The attempt before it, 0 for none; if not given, the number before its own."""
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
    images: int = Field(default=0, ge=0)
    """How many of the samples are from shards with images."""
    skipped: bool = False
    """Whether the guard left out the update: the samples were read, and changed nothing."""


class PassedOver(_Line):
    """A rollback: the steps [first_step, end_step) were undone and are not trained again.

    It holds when a checkpoint says so, too: what an attempt noted behind the last one is undone.
    """

    first_step: int = Field(ge=0)
    end_step: int = Field(ge=1)


Line = Attempt | Consumed | PassedOver
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(union_mode="left_to_right")])


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
    no place at which all ranks can fail together. One thread may flush while another records.
    """

    def __init__(self, run: Storage, attempt: Attempt) -> None:
        self._uri = run.below(FOLDER).uri
        self.entry = attempt
        self._journal = Journal(run.below(FOLDER), attempt.attempt)
        self._chain = Chain()
        self._append(attempt)
        with self._named_errors():
            try:
                self._journal.create()
            except FileExistsError:
                raise PanthalassaError(
                    f"the ledger {self._uri} has an attempt {attempt.attempt}, which did not have the "
                    "lease of the run. Choose another run.name."
                ) from None

    def record(self, line: Consumed | PassedOver) -> None:
        """Note a step or a rollback. Never raises, nor waits for a `flush`: then the next writes it."""
        self._append(line)
        if self._journal.due:
            with suppress(OSError):
                self._journal.write()

    def flush(self) -> None:
        """Return when all of it outlives the machine. Raises PanthalassaError when it can not."""
        with self._named_errors():
            self._journal.write()
            self._journal.sync()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PanthalassaError(
                f"ledger {self._uri} can not be written: {error}. Make room or mend the "
                "storage; the same command then goes on from the last checkpoint."
            ) from error

    def _append(self, line: _Line) -> None:
        text = json.dumps(line.model_dump(exclude_defaults=True), separators=(",", ":"))
        self._journal.add(self._chain.seal(text))


def newest_attempt(run: Storage, before: float = math.inf) -> int:
    """The newest attempt of a run that began `before` another; 0 for none. Raises OSError."""
    return newest_number(run.below(FOLDER), before)


def later_attempts(run: Storage, number: int) -> Iterator[Attempt]:
    """Those behind an attempt, as far as their first lines can be read. Raises OSError."""
    for _, lines in journals(run.below(FOLDER), after=number):
        text, _, _ = next(lines, "").rpartition(" ")
        with suppress(ValidationError):
            yield Attempt.model_validate_json(text)


@dataclass(frozen=True)
class Account:
    """An attempt as its ledger tells it."""

    attempt: Attempt
    steps: list[Consumed]
    passed_over: list[PassedOver] = field(default_factory=list)


def accounts(run: Storage) -> Iterator[Account]:
    """The attempts of a run, in order.

    A last line that was cut off by a crash is ignored. Raises PanthalassaError when anything else is
    not what was written.
    """
    for place, lines in journals(run.below(FOLDER)):
        where, chain = f"ledger {place}", Chain()
        found: list[Line] = []
        for number, line in enumerate(lines, 1):
            if (text := chain.unseal(line)) is None:
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
        first, *rest = found
        consumed = [line for line in rest if isinstance(line, Consumed)]
        passed_over = [line for line in rest if isinstance(line, PassedOver)]
        if not isinstance(first, Attempt) or len(consumed) + len(passed_over) < len(rest):
            raise PanthalassaError(
                f"{where} does not begin with its attempt, or has two of them. {REMEDY}"
            )
        yield Account(first, consumed, passed_over)
