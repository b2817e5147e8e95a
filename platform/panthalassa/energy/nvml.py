"""GPUs through NVML: which of them a process sees, and two meters over them.

GPUs are known by UUID: an index means another GPU as soon as CUDA_VISIBLE_DEVICES is set. The counter's
value is renewed in steps, whose length differs between GPUs, so it is watched for a moment at the start.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pynvml

from panthalassa.energy.meters import Accumulator, Clock, MeterLost, NoCounter

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
SLOWEST = 0.1
"""Seconds between two values of the A100's counter at most; assumed of a GPU until it is known."""
PROBE = 1.0
"""Seconds for which a counter is watched at most."""
CHANGES = 12
"""Times between new values after which its refresh period is known."""
Renewal = tuple[float, float]
"""The last look at a counter that showed its old value, and the first that showed a new one: seconds."""


class _Nvml(Accumulator):
    """GPUs by UUID."""

    def __init__(self, gpu_uuids: Sequence[str], clock: Clock = time.monotonic) -> None:
        ask("NVML", pynvml.nvmlInit)
        try:
            self._handles = {u: ask(u, pynvml.nvmlDeviceGetHandleByUUID, u) for u in gpu_uuids}
            super().__init__(tuple(self._handles), clock)
        except MeterLost:
            shut()
            raise

    def close(self) -> None:
        if not self._closed.is_set():
            super().close()
            shut()


class NvmlCounter(_Nvml):
    """The GPU's own counter, in mJ since the driver was loaded (Volta and later).

    The constructor raises NoCounter for a GPU without one, MeterLost for every other failure.
    """

    source = "nvml counter"

    def __init__(self, gpu_uuids: Sequence[str], clock: Clock = time.monotonic) -> None:
        self.refresh = SLOWEST
        self.assumed = True
        super().__init__(gpu_uuids, clock)

    def probe(self) -> None:
        """Find out how often the counters are renewed, in the background."""
        self._start(self._watch, "nvml refresh")

    def counters(self) -> dict[str, float]:
        return {u: value / 1e3 for u, value in zip(self.devices, self._first, strict=True)}

    def _measure(self, device: str) -> int:
        function = pynvml.nvmlDeviceGetTotalEnergyConsumption
        return int(ask(device, function, self._handles[device]))

    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        if after < before:
            raise MeterLost(
                f"{device}: the energy counter fell from {before} to {after} mJ, as it does when "
                "the driver is loaded again"
            )
        return (after - before) / 1e3

    def _watch(self) -> None:
        until = time.monotonic() + PROBE
        last: dict[str, tuple[float, int]] = {}
        seen: dict[str, list[Renewal]] = {device: [] for device in self.devices}
        with contextlib.suppress(MeterLost):  # whoever reads will learn of it
            while time.monotonic() < until and not self._closed.wait(0.001):
                for device in self.devices:
                    began, value, ended = time.monotonic(), self._measure(device), time.monotonic()
                    before, known = last.get(device, (began, value))
                    if value != known:
                        seen[device].append((before, ended))
                    last[device] = began, value
                if all(len(periods(renewals)) >= CHANGES for renewals in seen.values()):
                    break
        found = [periods(renewals) for renewals in seen.values()]
        if all(len(device) > 1 for device in found):
            self.refresh, self.assumed = max(map(statistics.median, found)), False


def periods(renewals: Sequence[Renewal]) -> list[float]:
    """The seconds between renewals that follow each other, where both were seen closely.

    A process that is held up looks late, and may see two renewals as one; but not where each of the two
    looks took less than a third of what lies between them, if a counter is renewed at equal times. Where
    each took less than a fifth, as here, the seconds are right to a quarter.
    """
    found = []
    for before, after in itertools.pairwise(renewals):
        seconds = (after[0] + after[1] - before[0] - before[1]) / 2
        if max(before[1] - before[0], after[1] - after[0]) < seconds / 5:
            found.append(seconds)
    return found


class NvmlPower(_Nvml):
    """The GPU's power in mW, sampled by a thread and integrated by trapezoid.

    Its power of the moment where the driver tells that; else what the driver calls its usage, which is
    the mean over a second on GPUs since Ampere other than the A100.
    """

    source = "nvml power"
    period = 0.02
    refresh = 0.02
    longest_gap = 1.0

    def __init__(self, gpu_uuids: Sequence[str], clock: Clock = time.monotonic) -> None:
        self._of_the_moment: dict[str, bool] = {}
        super().__init__(gpu_uuids, clock)

    def _measure(self, device: str) -> int:
        handle = self._handles[device]
        if self._of_the_moment.get(device, True):
            power = _power_of_the_moment(device, handle)
            self._of_the_moment[device] = power is not None
            if power is not None:
                return power
        return int(ask(device, pynvml.nvmlDeviceGetPowerUsage, handle))

    def _gain(self, device: str, before: int, after: int, elapsed: float) -> float:
        return (before + after) / 2 * elapsed / 1e3


def _power_of_the_moment(device: str, handle: Any) -> int | None:
    """mW, or None when the driver does not tell. Raises MeterLost."""
    field = pynvml.NVML_FI_DEV_POWER_INSTANT
    try:
        (value,) = ask(device, pynvml.nvmlDeviceGetFieldValues, handle, [field])
    except NoCounter:
        return None
    if value.nvmlReturn == pynvml.NVML_SUCCESS:
        return int(value.value.uiVal)
    return None  # nvmlDeviceGetPowerUsage says why, if it fails as well


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The UUIDs of the GPUs that a process with this environment sees, in CUDA's order.

    CUDA_VISIBLE_DEVICES lists indices, UUIDs or their unique beginnings (`GPU-8932f9`), and `MIG-…`
    names; CUDA takes it up to the first entry that names no GPU. Without it all are visible. Raises
    MeterLost when NVML does not answer, or an index could mean either of two GPUs.
    """
    ask("NVML", pynvml.nvmlInit)
    try:
        every = [_at(index) for index in range(ask("NVML", pynvml.nvmlDeviceGetCount))]
        given = environ.get(VISIBLE)
        if given is None:
            return [uuid for uuid, _ in every]
        found: list[str] = []
        for entry in given.split(","):
            uuid = _visible(entry.strip(), every, environ.get(ORDER, "FASTEST_FIRST"))
            if uuid is None or uuid in found:
                break
            found.append(uuid)
        return found
    finally:
        shut()


def _at(index: int) -> tuple[str, str]:
    """UUID and name of the GPU that is in this place on the bus."""
    handle = ask(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index)
    uuid = ask(f"GPU {index}", pynvml.nvmlDeviceGetUUID, handle)
    return str(uuid), str(ask(uuid, pynvml.nvmlDeviceGetName, handle))


def _visible(entry: str, every: Sequence[tuple[str, str]], order: str) -> str | None:
    if entry.isdecimal():
        if int(entry) >= len(every):
            return None
        if order != "PCI_BUS_ID" and len({name for _, name in every}) > 1:
            raise MeterLost(
                f"{VISIBLE} names GPU {entry} of several kinds, which CUDA counts by speed and NVML by "
                f"place: set {ORDER}=PCI_BUS_ID, or name GPUs by UUID"
            )
        return every[int(entry)][0]
    if entry.startswith("MIG-"):
        return entry
    matching = [uuid for uuid, _ in every if entry and uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def shut() -> None:
    with contextlib.suppress(pynvml.NVMLError):  # the driver may be gone
        pynvml.nvmlShutdown()


def ask(subject: str, function: Callable[..., Any], *arguments: Any) -> Any:
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
