"""A ledger of typed lines in a run's folder: each command writes a journal of its own, and knows those
before it."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.journal import Journal, journals
from panthalassa.storage import Storage

PATIENCE = 1.0
"""Seconds for which a write to object storage is tried again: the driver has more to do meanwhile."""

L = TypeVar("L", bound=BaseModel)


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


class Writer(Generic[L]):
    """One command's lines. Nothing here raises: what can not be written is tried again with the next."""

    def __init__(self, ledger: Ledger[L], run: Storage, began: float) -> None:
        """began: when the command did, in seconds since 1970."""
        self.folder = replace(run.below(ledger.folder), patience=PATIENCE)
        self.lines: list[L] = []
        """Of this command."""
        self._ledger = ledger
        self._number = int(began * 1000)  # higher than that of any command before
        self._journal = Journal(self.folder, self._number)

    def enter(self, line: L) -> None:
        self.lines.append(line)
        self._journal.add(line.model_dump_json())
        if self._journal.due:
            self.write()

    def write(self) -> None:
        with suppress(OSError):
            self._journal.write()

    def every(self) -> list[L]:
        """Of all commands so far, or of this one alone when the earlier ones can not be read."""
        earlier: list[L] = []
        with suppress(PanthalassaError):
            earlier = self._earlier
        return [*earlier, *self.lines]

    def end(self) -> None:
        """Write what is left; another command may have ended since the earlier ones were read."""
        self.write()
        self.__dict__.pop("_earlier", None)

    @cached_property
    def _earlier(self) -> list[L]:
        return list(self._ledger.lines(self.folder, self._number))
