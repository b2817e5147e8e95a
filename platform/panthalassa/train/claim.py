"""Which rank measures which device: each device once, however many ranks see it.

Every rank opens a meter on what it sees, all tell each other, and the lowest rank keeps a device. GPU
ranks see their own GPU; a rank that computes on the CPU sees the GPUs that its environment shows it,
when NVML is asked for by name, and else its host's RAPL zones.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.energy.meters import SENSOR, Absent, Meter
from panthalassa.energy.sources import Source, choose
from panthalassa.errors import PanthalassaError
from panthalassa.train.agreement import everywhere, together

OF_GPUS = ("GPU-", "MIG-")
"""How NVML's names of devices begin."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Claim:
    """What this rank measures: each device is measured by one rank."""

    meter: Meter | Absent
    names: tuple[str, ...]
    """The ledger's names of its devices."""
    opened: float
    """When, in seconds since 1970."""
    renew: Callable[[], Meter | Absent]
    blind: bool = False
    """Whether it has no power source that it should have."""

    @property
    def power(self) -> str:
        """The source of power, or why there is none."""
        if isinstance(self.meter, Absent):
            return self.meter.reason
        devices = len(self.meter.devices)
        return (
            f"{self.meter.source} of {devices} device{'s' * (devices > 1)} on the first rank; relative "
            f"error of a window: {SENSOR:.0%} + 2 x {self.meter.refresh * 1e3:.3g} ms / its length"
        )


def claim(config: Config, device: torch.device) -> Claim:
    """Open this rank's meter; every rank calls it, those that will stand by included.

    Raises PanthalassaError, on all ranks, for a source that was asked for and can not be read.
    """
    uuids = None
    if device.type == "cuda":
        uuids = [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    source = config.energy.source
    with together():
        meter = choose(source, uuids)
    opened = time.time()
    devices = () if isinstance(meter, Absent) else meter.devices
    keys = [_key(name) for name in devices]
    owners: dict[str, int] = {}
    for rank, key in everywhere([(dist.get_rank(), key) for key in keys]):
        owners.setdefault(key, rank)
    mine = [name for name, key in zip(devices, keys, strict=True) if owners[key] == dist.get_rank()]
    if isinstance(meter, Absent):
        return Claim(meter, (), opened, lambda: meter, blind=source != "none")
    if not mine:
        meter.close()
        absent = Absent("other ranks measure the devices that this one sees")
        return Claim(absent, (), opened, lambda: absent)
    renew = partial(_reopen, source, uuids if len(mine) == len(devices) else mine)
    if len(mine) < len(devices):
        meter.close()
        meter = renew()
    return Claim(meter, tuple(_name(name) for name in mine), opened, renew)


def _reopen(source: Source, uuids: Sequence[str] | None) -> Meter | Absent:
    try:
        return choose(source, uuids)
    except PanthalassaError as error:
        return Absent(str(error))


def _key(device: str) -> str:
    """What a device is told from all others by: GPUs by UUID, RAPL zones by the boot of their host."""
    return device if device.startswith(OF_GPUS) else f"{BOOT.read_text().strip()}/{device}"


def _name(device: str) -> str:
    return device if device.startswith(OF_GPUS) else f"{socket.gethostname()}/{device}"
