"""The headline numbers of a run, each with its unit, and how two runs differ in them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from panthalassa.report.read import RunData
from panthalassa.report.series import Series

TAIL = 100
"""Steps over which the last training loss is averaged, at most: of a short run, a tenth."""
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class Headline:
    """One number of one run."""

    name: str
    text: str
    """With its unit; what is not known says so."""
    note: str = ""
    value: float | None = None
    """To compare it with another run's."""
    compare: Literal["ratio", "total", "points", "no"] = "ratio"
    """Runs differ in it by per cent (in a total only if they did as many steps), by percentage points,
    or it is not to be compared."""


def headlines(run: RunData) -> list[Headline]:
    """The same for every run, in order."""
    return [
        _steps(run),
        _loss(run),
        _held_out(run),
        _speed(run),
        _mfu(run),
        *_energy(run),
        *_time(run),
        _tokens(run),
    ]


def difference(a: Headline, b: Headline, alike: bool = True) -> str:
    """What b is, seen from a; alike: whether the runs did as many steps."""
    unlike = a.compare == "no" or (a.compare == "total" and not alike)
    if unlike or a.value is None or b.value is None:
        return "–"
    if a.compare == "points":
        return signed(100 * (b.value - a.value), "points")
    return signed(100 * (b.value / a.value - 1), "%") if a.value else "–"


def signed(number: float, unit: str) -> str:
    if not math.isfinite(number):
        return "–"
    text = f"{abs(number):,.1f} {unit}"
    if round(number, 1) == 0:
        return text
    return ("−" if number < 0 else "+") + text


def si(number: float) -> str:
    """A number before its unit: in full below a million, else with a prefix: 1234567 is 1.23 M."""
    for factor, prefix in PREFIXES:
        if abs(number) >= factor:
            return f"{_three(number / factor)} {prefix}"
    return _three(number)


def _three(number: float) -> str:
    if not number or not math.isfinite(number):
        return f"{number:g}"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 3 h 20 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    for unit, big, part, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= big:
            whole, rest = divmod(round(seconds / small), big // small)
            return f"{whole} {unit} {rest} {part}"
    whole, rest = divmod(seconds, 60)
    return f"{whole} min {rest} s"


def count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _steps(run: RunData) -> Headline:
    step = run.last_step
    if run.steps is None:
        return Headline("step", f"{step:,}", "how many are planned is not known", compare="no")
    note = "complete" if step >= run.steps else f"{step / run.steps:.0%} of the planned steps"
    return Headline("step", f"{step:,} of {run.steps:,}", note, step, "no")


def _finite(series: Series) -> Series:
    good = np.isfinite(series.value)
    return Series(series.step[good], series.at[good], series.value[good])


def _loss(run: RunData) -> Headline:
    loss = _finite(run.series("loss"))
    if not len(loss.step):
        return Headline("training loss", "not known")
    last = loss.value[-max(1, min(TAIL, len(loss.value) // 10)) :]
    bad = len(run.series("loss").step) - len(loss.step)
    note = f"nats a {run.loss_unit}, mean of the last {count(len(last), 'step')}"
    note += f"; not finite in {count(bad, 'step')}" if bad else ""
    return Headline("training loss", f"{last.mean():.4f}", note, float(last.mean()))


def _held_out(run: RunData) -> Headline:
    loss = _finite(run.series("held_out_loss"))
    if not len(loss.step):
        note = "" if isinstance(run.metrics, str) else "no evaluation yet"
        return Headline("held-out loss", "not known", note)
    best = int(loss.value.argmin())
    note = f"after step {loss.step[-1]:,}"
    if best != len(loss.step) - 1:
        note += f"; lowest {loss.value[best]:.4f} after step {loss.step[best]:,}"
    return Headline("held-out loss", f"{loss.value[-1]:.4f}", note, float(loss.value[-1]))


def _median(run: RunData, metric: str) -> float | None:
    values = _finite(run.series(metric)).value
    return float(np.median(values)) if len(values) else None


def _speed(run: RunData) -> Headline:
    speed = _median(run, "tokens_per_second")
    if speed is None:
        return Headline("speed", "not known")
    return Headline("speed", f"{si(speed)} tokens/s", "median over steps", speed)


def _mfu(run: RunData) -> Headline:
    mfu = _median(run, "mfu")
    if mfu is None:
        return Headline("MFU", "not known")
    return Headline("MFU", f"{mfu:.1%}", "model FLOPs utilisation, median", mfu, "points")


def _energy(run: RunData) -> Iterator[Headline]:
    if isinstance(run.energy, str):
        yield Headline("energy an iteration", "not known", "see below")
        yield Headline("energy", "not known")
        return
    mean, bound = run.energy.j_per_iteration, run.energy.bound
    if mean is None:
        yield Headline("energy an iteration", "not known", "no step of which it is known")
    else:
        text = f"{si(mean)} J" + ("" if bound is None else f" ± {bound:.1%}")
        known = "bound of the error not known" if bound is None else "with the bound of the error"
        note = ", ".join(filter(None, (known, run.energy.source)))
        yield Headline("energy an iteration", text, note, mean)
    missing = run.energy.uncovered_seconds
    note = "of the whole run" + (f" but for {duration(missing)}" if missing else "")
    yield Headline("energy", f"{_three(run.energy.kwh)} kWh", note, run.energy.kwh, "total")


def _time(run: RunData) -> Iterator[Headline]:
    if isinstance(run.time, str):
        yield Headline("goodput", "not known")
        yield Headline("time", "not known")
        return
    found = run.time.goodput
    trained = duration(found.parts["productive"])
    yield Headline(
        "goodput", f"{found.fraction:.1%}", f"{trained} trained the model", found.fraction, "points"
    )
    counts = {"command": found.commands, "restart": found.restarts, "resize": found.resizes}
    note = ", ".join(count(number, what) for what, number in counts.items() if number)
    yield Headline("time", duration(found.seconds), note, found.seconds, "total")


def _tokens(run: RunData) -> Headline:
    if isinstance(run.languages, str):
        return Headline("trained on", "not known")
    positions = sum(language.positions for language in run.languages)
    note = f"positions of samples, in {count(len(run.languages), 'language')}"
    return Headline("trained on", f"{si(positions)} tokens", note, positions, "total")


def compared(runs: Sequence[RunData]) -> list[tuple[list[Headline], str]]:
    """The headlines of all runs side by side, and of two how the second differs from the first."""
    rows = zip(*map(headlines, runs), strict=True)
    alike = len({run.last_step for run in runs}) == 1
    return [(list(row), difference(*row, alike) if len(row) == 2 else "") for row in rows]
