"""The goodput ledger: when the driver was through with what, one line each, below `goodput/` of the run.

Consecutive steps are merged, so that a run of weeks leaves a line for some seconds.
`panthalassa.train.goodput` tells from these lines what the time went to.
"""

import time
from typing import Annotated

from pydantic import Field, TypeAdapter

from panthalassa.line_ledger import Began, CommandLedger, Ledger, Lost, Waited
from panthalassa.storage import Storage
from panthalassa.train import events
from panthalassa.train.goodput import (
    Goodput,
    Launched,
    Line,
    Spent,
    Steps,
    Walk,
)

FOLDER = "goodput"
MERGED = 5.0
"""Seconds of steps in one line, when nothing comes between them."""

_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
LEDGER: Ledger[Line] = Ledger(FOLDER, _LINE, "time")


class GoodputLedger(CommandLedger[Line, Walk]):
    """The time of one command. Nothing here raises."""

    begin = Walk

    def __init__(self, run: Storage, began: float, number: int) -> None:
        """began: when the command did, in seconds since 1970. number: its epoch of the lease."""
        super().__init__(LEDGER, run, number)
        self._steps: Steps | None = None
        """To be merged with those that follow."""
        self.note(Began(at=began, number=number, before=self.before()))

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
        self._enter_steps()
        self.enter(line)

    def goodput(self) -> Goodput:
        """Of the run so far, or of this command alone when the earlier ones can not be read."""
        self._enter_steps()
        return self.walked().goodput()

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
        if seconds >= MERGED or not isinstance(self.newest, Steps):
            self._enter_steps()

    def _enter_steps(self) -> None:
        if self._steps:
            self.enter(self._steps)
            self._steps = None


def read(run: Storage) -> list[Line]:
    """The lines of all commands of a run. Raises as `Ledger.read`."""
    return LEDGER.read(run)
