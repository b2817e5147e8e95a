"""What the counters of an attempt's devices last showed: with that, those of the next attempt tell what
the devices took in between."""

import math
from collections.abc import Mapping

from panthalassa.energy.lines import Window


class Readings:
    """What the counters of an attempt's devices last showed, and what is known of the time since."""

    def __init__(self, counters: Mapping[str, float | None] | None = None) -> None:
        self._counters = dict(counters or {})
        self._took: dict[str, float] = {}
        """Joules of each device so far."""
        self._spent: list[tuple[float, float]] = []
        """Joules of all devices that lines have told of since, and when."""
        self._at = -math.inf
        """When the counters were read."""

    def note(self, at: float, joules: float) -> None:
        if at > self._at:
            self._spent.append((at, joules))

    def renew(self, window: Window) -> None:
        for name, device in window.devices.items():
            self._counters[name] = device.counter
            self._took[name] = self._took.get(name, 0.0) + sum(device.joules.values())
        self._at = window.at
        self._spent = [spent for spent in self._spent if spent[0] > window.at]

    def since(self, counters: Mapping[str, float | None]) -> tuple[float, float]:
        """Joules until these counters were read that no line tells of, and the share of the devices
        whose counters tell. Of lines, a device that is gone took its share."""
        gains = {}
        for name, before in self._counters.items():
            after = counters.get(name)
            if before is not None and after is not None and after >= before:
                gains[name] = after - before
        if not gains:
            return 0.0, 0.0
        of_devices = len(gains) / len(self._counters)
        spent = sum(joules for _, joules in self._spent)
        took = sum(self._took.values())
        share = sum(self._took.get(name, 0.0) for name in gains) / took if took else of_devices
        return max(0.0, sum(gains.values()) - spent * share), of_devices
