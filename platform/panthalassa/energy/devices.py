"""The energy of a run by device: what each took, for whoever wants to look into it."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from panthalassa.energy.lines import Window


class Devices:
    """Adds up the windows of all commands, in order."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, int], dict[str, float]] = {}
        """Seconds, and joules by phase, of each device and the rank that read it."""
        self._peaks: dict[tuple[str, int], float] = {}
        self._nodes: dict[str, str] = {}
        """Where each device is."""

    def take(self, window: Window) -> None:
        for name, device in window.devices.items():
            self._nodes[name] = device.node
            row = self._totals.setdefault((name, device.rank), {"seconds": 0.0})
            row["seconds"] += device.seconds
            for phase, joules in device.joules.items():
                row[phase] = row.get(phase, 0.0) + joules
            if device.peak_watts is not None:
                known = self._peaks.get((name, device.rank), 0.0)
                self._peaks[name, device.rank] = max(known, device.peak_watts)

    def rows(self) -> Iterator[dict[str, str | int | float | None]]:
        """A row for each device and rank, in the order in which they came."""
        found = (key for row in self._totals.values() for key in row if key != "seconds")
        phases = list(dict.fromkeys(found))
        for (name, rank), row in self._totals.items():
            joules = _joules(row)
            yield {
                "node": self._nodes[name],
                "device": name,
                "rank": rank,
                "seconds": round(row["seconds"], 3),
                "joules": round(joules, 3),
                **{f"joules_{phase}": round(row.get(phase, 0.0), 3) for phase in phases},
                "mean_watts": round(joules / row["seconds"], 3) if row["seconds"] else None,
                "peak_watts": self._peaks.get((name, rank)),
            }

    def by_node(self) -> dict[str, tuple[int, float]]:
        """Devices and joules of each node, the most joules first: each device once, whoever read it."""
        joules: defaultdict[str, float] = defaultdict(float)
        for (name, _), row in self._totals.items():
            joules[self._nodes[name]] += _joules(row)
        devices = Counter(self._nodes.values())
        most = sorted(joules.items(), key=lambda item: -item[1])
        return {node: (devices[node], spent) for node, spent in most}


def _joules(row: dict[str, float]) -> float:
    return sum(value for name, value in row.items() if name != "seconds")
