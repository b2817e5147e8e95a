"""The lines of the energy ledger: what the ranks measured and the driver knows, each when it was over.

Joules are of all devices that are measured, unless a line lists them by device. Absent (null) joules
could not be read; they are never zero for that. A device is known by its host and its UUID or RAPL zone.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from panthalassa import line_ledger
from panthalassa.line_ledger import Ended, LedgerLine, Lost, Waited

Joules = dict[str, float | None]
"""By what they were spent on: see `Phase`."""
Phase = Literal["start", "data_wait", "step", "evaluation", "checkpoint", "other"]
"""What a rank spends energy on."""


class Began(line_ledger.Began):
    """A command began; with its factors for what the meters do not see."""

    pue: float | None = None
    grid_kg_per_kwh: float | None = None


class Metering(LedgerLine):
    """The ranks of an attempt have opened their meters."""

    kind: Literal["metering"] = "metering"
    source: str
    refresh: float
    """Seconds between two values of the slowest device."""
    devices: dict[str, float | None]
    """Each device once, with the joules it had counted since its driver was loaded, if it tells."""
    blind: int = 0
    """Ranks that should measure and can not."""


class Steps(LedgerLine):
    """Optimizer steps from `first` on, nothing in between; the first of a run is number 1."""

    kind: Literal["steps"] = "steps"
    first: int
    seconds: list[float]
    tokens: list[int]
    """Positions that each step processed."""
    joules: list[float | None]
    """Of each step, waiting for its samples included."""
    data_wait: list[float | None]
    """The part of these joules in which it waited, where that took long enough to tell."""
    before: Joules = Field(default_factory=dict)
    """What was spent between the step before the first and the first, if anything was done then."""

    @property
    def last(self) -> int:
        return self.first + len(self.seconds) - 1


class Rest(LedgerLine):
    """What was spent behind the last step of an attempt that ended in order."""

    kind: Literal["rest"] = "rest"
    joules: Joules


class Device(BaseModel):
    """One device in a reporting window."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int
    """That read it."""
    seconds: float
    joules: dict[str, float]
    """By phase, as far as they are known."""
    mean_watts: float | None
    peak_watts: float | None
    """The highest mean power over a second or more; None in a window too short for that."""
    counter: float | None
    """Joules since the driver was loaded, at the end of the window."""
    problem: str | None = None
    """Why a part of the joules is absent."""
    node: str = ""
    """The host that it is in."""


class Window(LedgerLine):
    """A reporting window, some seconds long: the detail by device."""

    kind: Literal["window"] = "window"
    refresh: float
    devices: dict[str, Device]


def merged(first: Window, second: Window) -> Window:
    """One window over two of the same devices that follow each other."""
    devices = dict(first.devices)
    for name, after in second.devices.items():
        before = devices.get(name)
        devices[name] = _merged(before, after) if before else after
    return Window(at=second.at, refresh=max(first.refresh, second.refresh), devices=devices)


def _merged(before: Device, after: Device) -> Device:
    phases = dict.fromkeys([*before.joules, *after.joules])
    joules = {p: round(before.joules.get(p, 0.0) + after.joules.get(p, 0.0), 3) for p in phases}
    seconds = before.seconds + after.seconds
    peaks = [watts for watts in (before.peak_watts, after.peak_watts) if watts is not None]
    return Device(
        rank=after.rank,
        seconds=round(seconds, 6),
        joules=joules,
        mean_watts=round(sum(joules.values()) / seconds, 3) if seconds > 0 else None,
        peak_watts=max(peaks, default=None),
        counter=after.counter,
        problem=before.problem or after.problem,
        node=after.node,
    )


class StoodBy(LedgerLine):
    """A device of a rank that trains nothing, since the last such line."""

    kind: Literal["stood_by"] = "stood_by"
    device: str
    seconds: float
    joules: float | None


Line = Began | Waited | Lost | Ended | Metering | Steps | Rest | Window | StoodBy
LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
