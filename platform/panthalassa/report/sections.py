"""The sections of the page in order: their figures, what they say, and the files behind them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from panthalassa.report import csv_files
from panthalassa.report.figures import BUCKETS, MOST_LANGUAGES
from panthalassa.report.languages import COUNTED
from panthalassa.report.packed import packed
from panthalassa.report.read import RunData


@dataclass(frozen=True)
class Panel:
    """A figure, or why there is none."""

    name: str
    title: str
    absent: str
    """Why it is not there; empty when it is."""
    file: str
    """Name of its CSV."""
    packed: str
    """Its CSV; empty when there is none."""


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    panels: list[Panel]


def sections(runs: Sequence[RunData], drawn: Sequence[str]) -> Iterator[Section]:
    """All sections; `drawn` are the names of the figures that there are."""

    def panel(name: str, title: str, absent: str, text: Callable[[], str]) -> Panel:
        there = name in drawn
        stem = re.sub("[^A-Za-z0-9._-]+", "_", "-".join(run.name for run in runs))[:100]
        content = packed(text()) if there else ""
        return Panel(name, title, "" if there else absent, f"{stem}-{name}.csv", content)

    def by_step(name: str, title: str, absent: str = "") -> Panel:
        metrics = csv_files.BY_STEP[name]
        why = absent or _reason(runs, "metrics") or f"{metrics[0]} was not measured"
        return panel(name, title, why, lambda: csv_files.steps_file(runs, metrics))

    no_power = _reason(runs, "energy")
    yield Section("Loss", _reading(runs), [by_step("loss", "Training and held-out loss")])
    speed = [by_step("speed", "Tokens a second"), by_step("mfu", "Model FLOPs utilisation")]
    yield Section("Speed", "", speed)
    joules = [
        by_step("joules", "Energy an iteration", no_power),
        by_step("kwh", "Energy so far", no_power),
    ]
    yield Section("Energy", _of_energy(runs), joules)
    timed = [
        panel(
            f"goodput-{number}",
            "What every second went to" + (f": {run.name}" if len(runs) > 1 else ""),
            _reason([run], "time") or "no time has passed yet",
            partial(csv_files.goodput_file, run),
        )
        for number, run in enumerate(runs)
    ]
    yield Section("Goodput", OF_TIME, timed)
    world = panel("world", "Ranks", _reason(runs, "time"), lambda: csv_files.world_file(runs))
    yield Section("World size", OF_WORLD, [world])
    nothing = _reason(runs, "languages") or "nothing has been trained on yet"
    spoken = panel(
        "languages", "Share of each language", nothing, lambda: csv_files.languages_file(runs)
    )
    yield Section("Data by language", _of_languages(runs), [spoken])
    yield Section(
        "Checkpoints",
        OF_CHECKPOINTS,
        [by_step("checkpoints", "Time a checkpoint took", "no checkpoint was timed")],
    )


OF_TIME = (
    "Each bar is a stretch of the run's time, without the time between commands, in which nothing ran. "
    "Every second counts once; steps that were trained again later count as lost."
)
OF_WORLD = "The ranks that the driver asked for, from when on; 0 while there were none."
OF_CHECKPOINTS = (
    "Circles: from the copy of the state to its commit. Crosses: how long the training loop stood "
    "still. The table lists what the run's folder holds now."
)


def _reason(runs: Sequence[RunData], part: str) -> str:
    """Why a part is absent, of the runs in which it is."""
    reasons = [(run.name, getattr(run, part)) for run in runs]
    told = [(name, reason) for name, reason in reasons if isinstance(reason, str)]
    return "; ".join(f"{name}: {reason}" if len(runs) > 1 else reason for name, reason in told)


def _reading(runs: Sequence[RunData]) -> str:
    """How to read the figures over steps."""
    size = max(-(-len(run.series("loss").step) // BUCKETS) for run in runs)
    points = "Each point is a step. "
    if size > 1:
        points = (
            f"Each point is the mean of {size} steps, the band behind it goes from the lowest to the "
            "highest of them. "
        )
    files = f"The CSV files have every step, to {csv_files.DIGITS} digits."
    if not csv_files.is_complete(runs, ("loss",)):
        files = (
            f"The CSV files have more than {csv_files.MOST_ROWS:,} steps to hold, so that each row "
            "stands for several, with their mean, lowest and highest value."
        )
    return (
        f"{points}Dots on a dashed line: held-out loss. Crosses: a loss that is not finite. Vertical "
        "lines: where the run went on after ranks were lost (dashed), after a resize (dotted), or with "
        f"another command (dash-dot). {files}"
    )


def _of_energy(runs: Sequence[RunData]) -> str:
    told = [_reason(runs, "energy")]
    measured = [run.energy for run in runs if not isinstance(run.energy, str)]
    if measured:
        told = [
            "Joules of all devices that were measured; so far: also what was lost, or spent between "
            "steps.",
            *told,
        ]
    if any(energy.bound is not None for energy in measured):
        thinned = any(len(run.series("joules").step) > BUCKETS for run in runs)
        told.insert(1, f"The {'inner ' if thinned else ''}band is the bound of the error.")
    if len(measured) > 1:
        told.append(
            "Whether the runs are comparable, and how well their difference is known, is told by "
            "`panthalassa energy compare`."
        )
    return " ".join(told)


def _of_languages(runs: Sequence[RunData]) -> str:
    most = max(
        (len(run.languages) for run in runs if not isinstance(run.languages, str)), default=0
    )
    shown = f"Shown are the first {MOST_LANGUAGES} of {most}. " if most > MOST_LANGUAGES else ""
    return shown + COUNTED
