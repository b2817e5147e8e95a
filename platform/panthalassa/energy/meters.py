"""Joules, read where the hardware counts them.

In come the UUIDs of a rank's GPUs, or the root of the kernel's powercap tree; out comes a `Meter`
whose `read` gives the joules since it was made, or an `Absent` that says why there is none. The one
idea: each reading is compared with the one before, device by device, and once the energy in between
can not be known the meter is lost for good. It never returns zero, or a guess, in place of joules.
"""

import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pynvml

from panthalassa.errors import ConfigError, PanthalassaError

POWERCAP = Path("/sys/class/powercap")
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

    def read(self) -> float:
        """Joules since the meter was made; never less than before. Raises MeterLost."""

    def close(self) -> None:
        """Let go of the devices; a later `read` raises MeterLost. May be called twice."""


class _Accumulator(ABC):
    """Adds up the joules between readings, at each `read` and every `period` seconds.

    The first reading is made here: where it fails, so does the constructor, with MeterLost.
    """

    source: str
    period: float | None = None
    longest_gap = math.inf
    """Seconds between two readings after which what lies between is no longer known."""

    def __init__(self, devices: tuple[str, ...], clock: Clock = time.monotonic) -> None:
        self.devices = devices
        self._clock = clock
        self._joules = 0.0
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._time = clock()
        self._last = [self._measure(device) for device in devices]
        self._thread = threading.Thread(target=self._poll, name=self.source, daemon=True)
        if self.period is not None:
            self._thread.start()

    @abstractmethod
    def _measure(self, device: str) -> int:
        """What the device shows now, in its own unit. Raises MeterLost."""

    @abstractmethod
    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        """Joules between two measurements `elapsed` seconds apart. Raises MeterLost."""

    def read(self) -> float:
        with self._lock:
            self._advance()
            if self._lost is not None:
                raise MeterLost(self._lost)
            return self._joules

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._lost = self._lost or f"the {self.source} meter is closed"

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
            self._joules += sum(self._gain(*change, elapsed) for change in changes)
            self._time, self._last = now, values
        except MeterLost as error:
            self._lost = str(error)


class _Nvml(_Accumulator):
    """GPUs by UUID: an index means another GPU as soon as CUDA_VISIBLE_DEVICES is set."""

    def __init__(self, gpu_uuids: Sequence[str], clock: Clock = time.monotonic) -> None:
        _ask("NVML", pynvml.nvmlInit)
        try:
            self._handles = {u: _ask(u, pynvml.nvmlDeviceGetHandleByUUID, u) for u in gpu_uuids}
            super().__init__(tuple(self._handles), clock)
        except MeterLost:
            _shut_nvml()
            raise

    def close(self) -> None:
        if not self._closed.is_set():
            super().close()
            _shut_nvml()


class NvmlCounter(_Nvml):
    """The GPU's own counter, in mJ since the driver was loaded (Volta and later).

    The constructor raises NoCounter for a GPU without one, MeterLost for every other failure.
    """

    source = "nvml counter"

    def _measure(self, device: str) -> int:
        function = pynvml.nvmlDeviceGetTotalEnergyConsumption
        return int(_ask(device, function, self._handles[device]))

    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        if after < before:
            raise MeterLost(
                f"{device}: the energy counter fell from {before} to {after} mJ, as it does when "
                "the driver is loaded again"
            )
        return (after - before) / 1e3


class NvmlPower(_Nvml):
    """The GPU's power in mW, sampled by a thread and integrated by trapezoid.

    The A100 shows the power of the moment; other GPUs since Ampere its mean over one second.
    """

    source = "nvml power"
    period = 0.02
    longest_gap = 1.0

    def _measure(self, device: str) -> int:
        return int(_ask(device, pynvml.nvmlDeviceGetPowerUsage, self._handles[device]))

    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        return (before + after) / 2 * elapsed / 1e3


class Rapl(_Accumulator):
    """The counters of a node's CPU packages and their DRAM, in µJ (Linux `powercap`, intel-rapl).

    They wrap around, the smallest after 65 kJ, minutes at full load: a thread reads them often
    enough to see each wrap. The constructor raises MeterLost when a zone is missing or forbidden.
    """

    source = "rapl"
    period = 1.0
    longest_gap = 30.0

    def __init__(self, root: Path = POWERCAP, clock: Clock = time.monotonic) -> None:
        self._zones = _rapl_zones(root)
        self._ranges = {n: _number(z / "max_energy_range_uj") for n, z in self._zones.items()}
        super().__init__(tuple(self._zones), clock)

    def _measure(self, device: str) -> int:
        return _number(self._zones[device] / "energy_uj")

    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        if after >= before:
            return (after - before) / 1e6
        wrapped = after - before + self._ranges[device]
        if not 0 <= wrapped <= self._ranges[device] / 2:
            raise MeterLost(
                f"{device}: the energy counter fell from {before} to {after} µJ, which is no "
                f"wrap-around at {self._ranges[device]}"
            )
        return wrapped / 1e6


def choose(
    source: Literal["auto", "nvml", "rapl", "none"],
    gpu_uuids: Sequence[str],
    rapl_root: Path = POWERCAP,
) -> Meter | Absent:
    """The meter of a rank: NVML when it has GPUs, RAPL when it has none, or the source asked for.

    `gpu_uuids` are NVML's names of the rank's GPUs (`GPU-…`, `MIG-…`). A GPU rank never falls back
    to the CPU's joules. Under `auto` a missing source is an Absent; one that was asked for by name
    raises ConfigError.
    """
    if source == "none":
        return Absent("energy is not measured: energy.source=none")
    try:
        if source == "nvml" or (source == "auto" and gpu_uuids):
            return _nvml(gpu_uuids)
        return Rapl(rapl_root)
    except MeterLost as error:
        if source == "auto":
            no_gpu = "" if gpu_uuids else "this rank has no GPU; "
            return Absent(f"no power source: {no_gpu}{error}")
        raise ConfigError(
            f"energy.source={source} can not be read: {error}. Mend that, or set "
            "energy.source=auto, which trains without energy figures where there is no source"
        ) from error


def _nvml(gpu_uuids: Sequence[str]) -> Meter:
    if not gpu_uuids:
        raise MeterLost("this rank has no GPU (cluster.gpus_per_worker=0?)")
    try:
        return NvmlCounter(gpu_uuids)
    except NoCounter:
        return NvmlPower(gpu_uuids)


def _shut_nvml() -> None:
    with contextlib.suppress(pynvml.NVMLError):  # the driver may be gone
        pynvml.nvmlShutdown()


def _ask(subject: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call NVML; its errors become MeterLost, or NoCounter where a quantity does not exist."""
    try:
        return function(*arguments)
    except pynvml.NVMLError_LibraryNotFound as error:
        raise MeterLost(
            "NVML library not found (libnvidia-ml.so.1 comes with the NVIDIA driver; containers "
            "need NVIDIA_DRIVER_CAPABILITIES=utility)"
        ) from error
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound) as error:
        raise NoCounter(f"{subject}: {function.__name__}: {error}") from error
    except pynvml.NVMLError as error:
        raise MeterLost(f"{subject}: {function.__name__}: {error}") from error


def _rapl_zones(root: Path) -> dict[str, Path]:
    """Packages and their DRAM by name. Core and uncore lie within a package, and psys around it."""
    zones = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        name = _text(zone / "name")
        if name.startswith("package-"):
            zones[name] = zone
        elif name == "dram":
            package = root / zone.name.rpartition(":")[0]
            zones[f"{_text(package / 'name')}/dram"] = zone
    if not any(name.startswith("package-") for name in zones):
        raise MeterLost(f"{root} has no intel-rapl zone (containers hide it: mount the node's)")
    return zones


def _number(path: Path) -> int:
    text = _text(path)
    if not text.isdecimal():
        raise MeterLost(f"{path} holds {text!r}, not a number")
    return int(text)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except PermissionError as error:
        raise MeterLost(
            f"{path} may not be read by this user; after each boot of the node, as root: "
            f"chmod a+r {path.parent.parent}/intel-rapl:*/{path.name}"
        ) from error
    except OSError as error:
        raise MeterLost(f"{path} can not be read: {error.strerror}") from error
