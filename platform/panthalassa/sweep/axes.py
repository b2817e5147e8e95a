"""The axes of parallel coordinates: the values of each key over all trials, as places between 0 and 1.

What a key's values are decides its axis: names side by side, numbers on a line, and numbers that span
decades (or were drawn on a logarithmic scale) on a logarithmic one. Keys that are the same in all
trials have none; keys that always change together share one.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from panthalassa.config_file import flatten
from panthalassa.sweep.results import Trial

DECADES = 100.0
"""Numbers above 0 whose largest is so many times the smallest get a logarithmic axis."""
TICKS = 6
"""Different values up to which each has a tick of its own."""
CLOSEST = 0.06
"""Share of the axis below which a tick would touch the one before it."""


@dataclass(frozen=True)
class Axis:
    """A key or a metric; `places` are in the order of the trials, NaN where a trial has no value."""

    name: str
    also: tuple[str, ...]
    """Keys that change whenever this one does."""
    places: list[float]
    ticks: dict[float, str]


def axes(trials: Sequence[Trial], log_keys: Collection[str] = ()) -> Iterator[Axis]:
    """One axis for each key, or group of keys, that differs between trials."""
    flat = [flatten(trial.values) for trial in trials]
    groups: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(key for values in flat for key in values):
        column = [repr(values.get(key)) for values in flat]
        kinds = list(dict.fromkeys(column))
        pattern = tuple(kinds.index(value) for value in column)
        if len(kinds) == 1:
            continue
        if len(kinds) == len(trials):  # nothing says that two such keys belong together
            pattern = (len(groups), *pattern)
        groups.setdefault(pattern, []).append(key)
    for key, *also in groups.values():
        yield axis(key, [values.get(key) for values in flat], key in log_keys, tuple(also))


def metric_axis(trials: Sequence[Trial], metric: str) -> Axis:
    """The axis of a metric, on which a trial without it has no place."""
    return axis(metric, [trial.metrics.get(metric) for trial in trials])


def axis(name: str, values: Sequence[Any], log: bool = False, also: tuple[str, ...] = ()) -> Axis:
    known = [value for value in values if value is not None]
    if not all(_is_number(value) for value in known):
        kinds = sorted({_text(value) for value in known})
        place = {kind: (i + 0.5) / len(kinds) for i, kind in enumerate(kinds)}
        places = [math.nan if value is None else place[_text(value)] for value in values]
        return Axis(name, also, places, {place[kind]: _short(kind) for kind in kinds})
    numbers = sorted({float(value) for value in known if math.isfinite(value)})
    if not numbers:
        return Axis(name, also, [math.nan] * len(values), {})
    low, high = numbers[0], numbers[-1]
    log = low > 0 and (log or high >= DECADES * low)

    def place_of(value: float) -> float:
        if low == high:
            return 0.5
        if log:  # whose ratios may be larger than numbers are
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def value_at(place: float) -> float:
        if log:
            return math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
        return low + place * (high - low)

    shown = numbers if len(numbers) <= TICKS else [value_at(i / 4) for i in range(5)]
    ticks: dict[float, str] = {}
    for value in shown:
        if not ticks or place_of(value) - max(ticks) >= CLOSEST:
            ticks[place_of(value)] = number(value)
    places = [
        place_of(float(value)) if value is not None and math.isfinite(value) else math.nan
        for value in values
    ]
    return Axis(name, also, places, ticks)


def number(value: float) -> str:
    """With the digits that count, in little room: 6.2e-4, 0.265, 4096, 12,500, 1.25e+07."""
    size = abs(value)
    if 1e3 <= size < 1e6:
        return f"{value:.0f}" if size < 1e4 else f"{value:,.0f}"
    return f"{value:.1e}".replace("e-0", "e-") if 0 < size < 0.01 else f"{value:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return number(value) if _is_number(value) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 16 else text[:15] + "…"
