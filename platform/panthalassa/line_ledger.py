"""A ledger of typed lines in a run's folder: each command writes a journal of its own, and knows those
before it. Each line carries a checksum of itself and all before it, and each command tells which came
before it: so a changed line is refused, and a journal that is gone is missed.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.journal import Chain, Journal, journals, newest_number
from panthalassa.storage import Storage

MOST = 1000
"""Lines of a command that wait until those of earlier commands can be read."""
PATIENCE = 1.0
"""Seconds for which a write to object storage is tried again: the driver has more to do meanwhile."""


class LedgerLine(BaseModel):
    """What the driver or a rank enters when something is over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float
    """In seconds since 1970."""


class Began(LedgerLine):
    """A command began."""

    kind: Literal["began"] = "began"
    number: int | None = None
    """Its epoch of the run's lease."""
    before: int | None = None
    """That of the journal before this one; 0 when there was none, None when nobody could look."""


class Commands:
    """How many commands' journals are missing, by what each says of the one before it."""

    def __init__(self) -> None:
        self.missing = 0
        self._last: int | None = 0

    def note(self, began: Began) -> None:
        self.missing += began.before not in (None, self._last)
        self._last = began.number


def told_missing(commands: int) -> str:
    s = "s" * (commands > 1)
    return f"{commands} earlier command{s}, whose journal{s} in the run's folder can not be read"


class Waited(LedgerLine):
    """The driver waited for capacity."""

    kind: Literal["waited"] = "waited"
    seconds: float


class Lost(LedgerLine):
    """The ranks of an attempt ended before the run was complete."""

    kind: Literal["lost"] = "lost"
    planned: bool
    """They were told to: to leave a node, or to go on with more ranks or fewer."""


class Ended(LedgerLine):
    """The command ended. Absent when the driver was killed."""

    kind: Literal["ended"] = "ended"


L = TypeVar("L", bound=LedgerLine)
Taken = TypeVar("Taken", bound=LedgerLine, contravariant=True)
W = TypeVar("W", bound="Walk[Any]")


@dataclass(frozen=True)
class Ledger(Generic[L]):
    """Of one kind: the folder below a run's, what its lines are, and what they account for."""

    folder: str
    line: TypeAdapter[L]
    what: str

    def read(self, run: Storage) -> list[L]:
        """The lines of all commands of a run, in order; a last one that was cut off is left out.

        Raises PanthalassaError when there are none, or they are not what was written.
        """
        lines = list(self.lines(run.below(self.folder)))
        if not lines:
            raise PanthalassaError(f"no run with an account of its {self.what} at {run.uri}")
        return lines

    def lines(self, folder: Storage, before: float = math.inf) -> Iterator[L]:
        """Of the journals with a number lower than `before`. Raises as `read`."""
        try:
            for where, lines in journals(folder, before):
                chain = Chain()
                for number, line in enumerate(lines, 1):
                    try:
                        yield self.line.validate_json(chain.unseal(line) or "")
                    except ValidationError as error:
                        raise PanthalassaError(
                            f"{where}: line {number} of a run's account of its {self.what} is not what "
                            "was written there. Restore it from a copy, or delete the file, and the "
                            "account says that this command is missing."
                        ) from error
        except OSError as error:
            raise PanthalassaError(f"{folder.uri} can not be read: {error}") from error


class Walk(Protocol[Taken]):
    """What accounts for lines, one after the other."""

    def take(self, line: Taken) -> None: ...


class CommandLedger(ABC, Generic[L, W]):
    """Writes the lines of one command; as a context, also that it ended. Nothing here raises: what can
    not be written is tried again with the next.

    It accounts for all lines, those of earlier commands first, and keeps none of them.
    """

    begin: Callable[[], W]
    """Makes what accounts for them."""

    def __init__(self, ledger: Ledger[L], run: Storage, number: int) -> None:
        """number: the command's epoch of the lease, higher than that of any command before."""
        self.folder = replace(run.below(ledger.folder), patience=PATIENCE)
        self.newest: L | None = None
        """The newest line of this command."""
        self._waiting: list[L] = []
        """Its lines that are not accounted for, as long as the earlier ones are not read."""
        self._walk: W | None = None
        self._ledger = ledger
        self._number = number
        self._journal, self._chain = Journal(self.folder, number), Chain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.note(Ended(at=time.time()))
        self._write()

    def before(self) -> int | None:
        """What a Began says of the journal before this one."""
        with suppress(OSError):
            return newest_number(self.folder, self._number)
        return None

    @abstractmethod
    def note(self, line: L | Ended) -> None:
        """Enter a line, behind all that was to be merged before it."""

    def walked(self) -> W:
        """What has accounted for the lines of all commands so far, or of this one alone when the earlier
        ones can not be read."""
        if self._walk:
            return self._walk
        known, walk = True, self.begin()
        try:
            for line in self._ledger.lines(self.folder, self._number):
                walk.take(line)
        except PanthalassaError:
            known, walk = False, self.begin()
        for line in self._waiting:
            walk.take(line)
        if known or len(self._waiting) > MOST:
            self._walk, self._waiting = walk, []
        return walk

    def enter(self, line: L) -> None:
        self.newest = line
        if self._walk:
            self._walk.take(line)
        else:
            self._waiting.append(line)
            if len(self._waiting) > MOST:
                self.walked()
        self._journal.add(self._chain.seal(line.model_dump_json()))
        if self._journal.due:
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            self._journal.write()
