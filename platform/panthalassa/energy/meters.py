"""What a meter is: joules, read where the hardware counts them, and lost for good once that is in doubt.

In come devices that show a counter or their power (`nvml`, `rapl`; `sources` chooses); out comes a
`Meter` whose `read` gives the joules since it was made, or an `Absent` that says why there is none. The
one idea: each reading is compared with the one before, device by device, and once the energy in between
can not be known the meter is lost for good. It never returns zero, or a guess, in place of joules.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from panthalassa.errors import PanthalassaError

SENSOR = 0.05
"""The relative error of the sensors: NVIDIA gives ±5 % for its GPUs."""
PERIODS = 10
"""A window of fewer refresh periods gets no figure of its own."""
Clock = Callable[[], float]


class MeterLost(PanthalassaError):
    """The energy can not be read, now or ever again by this meter; the message says why."""


class NoCounter(MeterLost):
    """The GPU or its driver has no energy counter; its power may still be read."""


@dataclass(frozen=True)
class Absent:
    """There is no meter; `reason` tells a person why, and what mends it."""

    reason: str


class Meter(Protocol):
    source: str
    """How the joules are had: `nvml counter`, `nvml power` or `rapl`."""
    devices: tuple[str, ...]
    """What they are the sum of: UUIDs of GPUs, or names of RAPL zones."""
    refresh: float
    """Seconds between two values that the hardware shows."""
    assumed: bool
    """Whether these are a limit that is known of such hardware, because no value was seen to change."""

    def read(self) -> float:
        """Joules since the meter was made; never less than before. Raises MeterLost."""

    def read_each(self) -> tuple[float, ...]:
        """The same of each device. Raises MeterLost."""

    def counters(self) -> dict[str, float]:
        """Joules that each device had counted before the meter was made, since its driver was loaded;
        empty where the hardware does not tell."""

    def close(self) -> None:
        """Let go of the devices; a later `read` raises MeterLost. May be called twice."""


def bound(refresh: float, seconds: float, windows: int = 1) -> float:
    """The relative error of the energy of `windows` windows, `seconds` long in all.

    That of the sensor, and up to one refresh period at each end of each window.
    """
    return SENSOR + 2 * refresh * windows / seconds if seconds > 0 else math.inf


class Accumulator(ABC):
    """Adds up the joules between readings, at each `read` and every `period` seconds.

    The first reading is made here: where it fails, so does the constructor, with MeterLost.
    """

    source: str
    refresh: float
    assumed = False
    period: float | None = None
    longest_gap = math.inf
    """Seconds between two readings after which what lies between is no longer known."""

    def __init__(self, devices: tuple[str, ...], clock: Clock = time.monotonic) -> None:
        self.devices = devices
        self._clock = clock
        self._joules = (0.0,) * len(devices)
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._time = clock()
        self._first = self._last = [self._measure(device) for device in devices]
        self._threads: list[threading.Thread] = []
        if self.period is not None:
            self._start(self._poll, self.source)

    @abstractmethod
    def _measure(self, device: str) -> int:
        """What the device shows now, in its own unit. Raises MeterLost."""

    @abstractmethod
    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        """Joules between two measurements `elapsed` seconds apart. Raises MeterLost."""

    def read(self) -> float:
        return math.fsum(self.read_each())

    def read_each(self) -> tuple[float, ...]:
        with self._lock:
            self._advance()
            if self._lost is not None:
                raise MeterLost(self._lost)
            return self._joules

    def counters(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._lost = self._lost or f"the {self.source} meter is closed"

    def _start(self, target: Callable[[], None], name: str) -> None:
        """Run something in a thread that looks at `_closed`."""
        self._threads.append(threading.Thread(target=target, name=name, daemon=True))
        self._threads[-1].start()

    def _poll(self) -> None:
        while self._lost is None and not self._closed.wait(self.period):
            with self._lock:
                self._advance()

    def _advance(self) -> None:
        """Add what came since the last reading, or note why it is not known. Needs the lock."""
        if self._lost is not None:
            return
        try:
            now = self._clock()
            elapsed = now - self._time
            if elapsed > self.longest_gap:
                raise MeterLost(f"{self.source} was not read for {elapsed:.1f} s: process stalled")
            values = [self._measure(device) for device in self.devices]
            changes = zip(self.devices, self._last, values, strict=True)
            gains = [self._gain(*change, elapsed) for change in changes]
            self._joules = tuple(map(sum, zip(self._joules, gains, strict=True)))
            self._time, self._last = now, values
        except MeterLost as error:
            self._lost = str(error)
