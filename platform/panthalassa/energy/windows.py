"""Windows: the energy between two moments, as many of them at a time as anybody likes.

In come the names of what begins and ends; out come Measurements. The meter only ever adds up, so that
a window is the difference of two readings, and nested or overlapping ones do not know of each other.
What happens to the meter inside a window (a counter that falls, a GPU that is lost) marks it: its joules
are absent, and the reason is given. After a while a fresh meter is tried; later windows measure again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from panthalassa.energy.meters import Absent, Clock, Meter, MeterLost, bound

RETRY = 10.0
"""Seconds after which a lost meter is replaced by a fresh one, if there is one by then."""


@dataclass(frozen=True)
class Reading:
    """What a meter shows at a moment."""

    at: float
    """On the clock of the windows, in seconds."""
    joules: tuple[float, ...] | None
    """Of each device, since its meter was made; None when it is lost."""
    meter: int
    """Which of the meters that followed each other."""
    problem: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The energy of a window."""

    joules: float | None
    """None when it can not be known; never negative, and 0 only when that was measured."""
    seconds: float
    bound: float
    """The relative error of `joules`: of the sensor, and of the refresh periods at both ends."""
    source: str
    problem: str | None = None
    """Why there are no joules."""
    devices: tuple[float, ...] | None = None
    """Joules of each device."""


class Windows:
    """Windows over one meter; for use by one thread.

    renew: opens a meter on the same devices when the one before was lost.
    """

    def __init__(
        self, meter: Meter, renew: Callable[[], Meter | Absent], clock: Clock = time.perf_counter
    ) -> None:
        self.meter = meter
        self._renew = renew
        self._clock = clock
        self._number = 0
        self._lost_at: float | None = None
        self._open: dict[str, Reading] = {}

    def sample(self) -> Reading:
        """Read the meter now. Windows that begin or end together can share it."""
        now = self._clock()
        if self._lost_at is not None and now > self._lost_at + RETRY:
            self._try_another(now)
        try:
            return Reading(now, self.meter.read_each(), self._number)
        except MeterLost as error:
            if self._lost_at is None:
                self._lost_at = now
            return Reading(now, None, self._number, str(error))

    def begin(self, name: str, now: Reading | None = None) -> None:
        """Raises ValueError when a window of that name is open."""
        if name in self._open:
            raise ValueError(f"the window {name!r} is open: end it first")
        self._open[name] = now or self.sample()

    def end(self, name: str, now: Reading | None = None) -> Measurement:
        """Raises ValueError when no window of that name is open."""
        if name not in self._open:
            raise ValueError(f"no window {name!r} is open")
        return self.between(self._open.pop(name), now or self.sample())

    def between(self, begin: Reading, end: Reading) -> Measurement:
        """The energy between two readings."""
        seconds = end.at - begin.at
        error, source = bound(self.meter.refresh, seconds), self.meter.source
        problem = begin.problem or end.problem
        if begin.meter != end.meter and not problem:
            problem = "the meter was lost meanwhile"
        if problem or begin.joules is None or end.joules is None:
            return Measurement(None, seconds, error, source, problem)
        each = tuple(b - a for a, b in zip(begin.joules, end.joules, strict=True))
        return Measurement(sum(each), seconds, error, source, None, each)

    def close(self) -> None:
        """Let go of the devices."""
        self.meter.close()

    def _try_another(self, now: float) -> None:
        self._lost_at = now
        self.meter.close()
        fresh = self._renew()
        if isinstance(fresh, Absent):
            return
        if fresh.devices != self.meter.devices:  # a GPU that is gone
            fresh.close()
            return
        self.meter, self._lost_at = fresh, None
        self._number += 1
