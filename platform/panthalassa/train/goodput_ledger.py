"""The goodput ledger: when the driver was through with what, one line each, below `goodput/` of the run.

Each command writes a journal of its own. Consecutive steps are merged, so that a run of weeks leaves a
line for some seconds. `panthalassa.train.goodput` tells from these lines what the time went to.
"""

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.journal import Journal, journals
from panthalassa.storage import Storage
from panthalassa.train import events
from panthalassa.train.goodput import (
    Began,
    Ended,
    Goodput,
    Launched,
    Line,
    Lost,
    Spent,
    Steps,
    Waited,
    account,
)

FOLDER = "goodput"
MERGED = 5.0
"""Seconds of steps in one line, when nothing comes between them."""
PATIENCE = 1.0
"""Seconds for which a write to object storage is tried again: the driver has more to do meanwhile."""

_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


class GoodputLedger:
    """Writes the lines of one command; as a context, also that it ended.

    Nothing here raises. A line that can not be written is tried again with the next one.
    """

    def __init__(self, run: Storage, began: float | None = None) -> None:
        """began: when the command did, in seconds since 1970."""
        began = began or time.time()
        self._folder = replace(run.below(FOLDER), patience=PATIENCE)
        self._number = int(began * 1000)  # higher than that of any command before
        self._journal = Journal(self._folder, self._number)
        self._lines: list[Line] = []
        self._steps: Steps | None = None
        """To be merged with those that follow."""
        self.note(Began(at=began))

    def __enter__(self) -> "GoodputLedger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.note(Ended(at=time.time()))
        self._write()
        self.__dict__.pop("_earlier", None)  # another command may have ended meanwhile

    def add(self, event: events.Event) -> None:
        """Enter what an event tells of the time."""
        match event:
            case events.Step():
                self._add_step(event)
            case events.Spent():
                self.note(Spent(at=event.at, what=event.what, seconds=event.seconds))
            case events.Started(part="compile"):
                self.note(Spent(at=event.at, what="compile", seconds=event.seconds))
            case events.Waited():
                self.note(Waited(at=time.time(), seconds=event.seconds))
            case events.Launched():
                self.note(Launched(at=time.time(), workers=event.workers))
            case events.Lost():
                self.note(Lost(at=time.time(), planned=event.planned))

    def note(self, line: Line) -> None:
        """Enter what the driver knows itself."""
        self._enter_steps()
        self._enter(line)

    def goodput(self) -> Goodput:
        """Of the run so far, or of this command alone when the earlier ones can not be read."""
        self._enter_steps()
        earlier: list[Line] = []
        with suppress(PanthalassaError):
            earlier = self._earlier
        return account([*earlier, *self._lines])

    @cached_property
    def _earlier(self) -> list[Line]:
        """The lines of the commands before this one. Raises PanthalassaError."""
        return list(_read(self._folder, self._number))

    def _add_step(self, step: events.Step) -> None:
        """Merge steps; but one that follows anything else stays alone, for it may end a recovery."""
        first, seconds, data_seconds = step.step, step.seconds, step.data_seconds
        before = self._steps
        if before and before.last + 1 == step.step:
            first = before.first
            seconds += before.seconds
            data_seconds += before.data_seconds
        else:
            self._enter_steps()
        self._steps = Steps(
            at=step.at, first=first, last=step.step, seconds=seconds, data_seconds=data_seconds
        )
        if seconds >= MERGED or not isinstance(self._lines[-1], Steps):
            self._enter_steps()

    def _enter_steps(self) -> None:
        if self._steps:
            self._enter(self._steps)
            self._steps = None

    def _enter(self, line: Line) -> None:
        self._lines.append(line)
        self._journal.add(line.model_dump_json())
        if self._journal.due:
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            self._journal.write()


def read(run: Storage) -> list[Line]:
    """The lines of all commands of a run, in order; a last one that was cut off is left out.

    Raises PanthalassaError when there are none, or they are not what was written.
    """
    lines = list(_read(run.below(FOLDER)))
    if not lines:
        raise PanthalassaError(f"no run with an account of its time at {run.uri}")
    return lines


def _read(folder: Storage, before: float = math.inf) -> Iterator[Line]:
    try:
        for where, lines in journals(folder, before):
            for number, line in enumerate(lines, 1):
                try:
                    yield _LINE.validate_json(line)
                except ValidationError as error:
                    raise PanthalassaError(
                        f"{where}: line {number} is none of a run's account of its time. Restore it "
                        "from a copy, or delete the file, and the account leaves out that command."
                    ) from error
    except OSError as error:
        raise PanthalassaError(f"{folder.uri} can not be read: {error}") from error
