"""The energy counters of a node's CPU packages and their DRAM, from the kernel's powercap tree."""

import time
from pathlib import Path

from panthalassa.energy.meters import Accumulator, Clock, MeterLost

POWERCAP = Path("/sys/class/powercap")


class Rapl(Accumulator):
    """The counters of a node's CPU packages and their DRAM, in µJ (Linux `powercap`, intel-rapl).

    They wrap around, the smallest after 65 kJ, minutes at full load: a thread reads them often
    enough to see each wrap. The constructor raises MeterLost when a zone is missing or forbidden.
    """

    source = "rapl"
    refresh = 0.001
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
