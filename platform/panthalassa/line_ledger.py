"""A ledger of typed lines in a run's folder: each command writes a journal of its own, and knows those
before it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.journal import Journal, journals
from panthalassa.storage import Storage

PATIENCE = 1.0
"""Seconds for which a write to object storage is tried again: the driver has more to do meanwhile."""


class LedgerLine(BaseModel):
    """What the driver or a rank enters when something is over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float
    """In seconds since 1970."""


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
                for number, line in enumerate(lines, 1):
                    try:
                        yield self.line.validate_json(line)
                    except ValidationError as error:
                        raise PanthalassaError(
                            f"{where}: line {number} is none of a run's account of its {self.what}. "
                            "Restore it from a copy, or delete the file, and the account leaves out "
                            "that command."
                        ) from error
        except OSError as error:
            raise PanthalassaError(f"{folder.uri} can not be read: {error}") from error


class CommandLedger(ABC, Generic[L]):
    """Writes the lines of one command; as a context, also that it ended. Nothing here raises: what can
    not be written is tried again with the next."""

    def __init__(self, ledger: Ledger[L], run: Storage, number: int) -> None:
        """number: the command's epoch of the lease, higher than that of any command before."""
        self.folder = replace(run.below(ledger.folder), patience=PATIENCE)
        self.lines: list[L] = []
        """Of this command."""
        self._ledger = ledger
        self._number = number
        self._journal = Journal(self.folder, number)

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
        self.__dict__.pop("_earlier", None)  # another command may have ended since they were read

    @abstractmethod
    def note(self, line: L | Ended) -> None:
        """Enter a line, behind all that was to be merged before it."""

    def every(self) -> list[L]:
        """Of all commands so far, or of this one alone when the earlier ones can not be read."""
        earlier: list[L] = []
        with suppress(PanthalassaError):
            earlier = self._earlier
        return [*earlier, *self.lines]

    def enter(self, line: L) -> None:
        self.lines.append(line)
        self._journal.add(line.model_dump_json())
        if self._journal.due:
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            self._journal.write()

    @cached_property
    def _earlier(self) -> list[L]:
        return list(self._ledger.lines(self.folder, self._number))
