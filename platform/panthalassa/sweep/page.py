"""The page of a sweep: trials as lines over their keys, the front, a table, and a ladder's loss law.

Trials go in, as they are on record, and one HTML file comes out, made as the report of a run is
(`report.page`): it needs no network, fits a phone, and what a trial says is nothing but text in it.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from panthalassa.config_file import flatten
from panthalassa.errors import ConfigError
from panthalassa.report.figures import Plots
from panthalassa.report.headlines import Headline
from panthalassa.report.packed import packed, table
from panthalassa.report.template import fill
from panthalassa.storage import Storage
from panthalassa.sweep.axes import axes, number
from panthalassa.sweep.figures import LABELS, draw_front, draw_law, draw_parallel
from panthalassa.sweep.ladder import Study, explain
from panthalassa.sweep.pareto import front, frugal
from panthalassa.sweep.results import Trial, asked

FILE, LAW_FILE = "sweep.html", "scaling.html"
WITHIN = 0.01
"""Share above the best loss within which the page names the trial of the least energy."""


class Panel(NamedTuple):
    """A figure, if it is drawn, and what is said of it."""

    name: str
    title: str
    text: str
    rows: Sequence[tuple[str, str]] = ()


def write_page(
    folder: Storage,
    trials: Sequence[Trial],
    ladder: Study | None = None,
    answers: Sequence[tuple[str, str]] = (),
) -> str:
    """Write the page of the sweep in `folder` there, and tell where.

    answers: what was asked of the ladder's law, as rows. Raises PanthalassaError when there is no sweep,
    or the folder can not be written.
    """
    file = LAW_FILE if ladder else FILE
    objectives, log_keys = _asked(folder)
    plots: Plots = {"parallel": draw_parallel(trials, objectives, log_keys)}
    if drawn := draw_front(trials, _pair(objectives)):
        plots["front"] = drawn
    if ladder:
        plots["law"] = draw_law(ladder)
    header, *rows = _table(trials)
    also = {key for one in axes(trials) for key in one.also}  # told by the first of their group
    shown = [i for i, name in enumerate(header) if name not in also]
    text = fill(
        "sweep/page.html",
        plots,
        name=folder.uri.rstrip("/").rpartition("/")[2],
        uri=folder.uri,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        cards=list(_cards(trials, objectives)),
        panels=list(_panels(trials, objectives, ladder, answers)),
        header=[header[i] for i in shown],
        rows=[[_cell(row[i]) for i in shown] for row in rows],
        packed=packed(table(header, rows)),
    )
    try:
        folder.write(file, text.encode())
    except OSError as error:
        raise ConfigError(f"{folder.uri}/{file} can not be written: {error}") from error
    return f"{folder.uri}/{file}"


def _asked(folder: Storage) -> tuple[list[str], list[str]]:
    """A sweep's objectives, and the keys that it draws on a logarithmic scale."""
    found = asked(folder)
    space = found["space"].items()
    log_keys = [key for key, drawn in space if isinstance(drawn, dict) and drawn.get("log")]
    return found["objective"], log_keys


def _pair(objectives: Sequence[str]) -> Sequence[str]:
    """Two metrics for the front: the objectives, or the one and the speed."""
    beside = "loss" if objectives[0] != "loss" else "tokens_per_second"
    return [*objectives, beside][:2]


def _cards(trials: Sequence[Trial], objectives: Sequence[str]) -> Iterator[Headline]:
    states = {s: [t for t in trials if t.state == s] for s in ("stopped", "failed", "running")}
    rest = ", ".join(f"{len(found)} {state}" for state, found in states.items() if found)
    done = sum(trial.state == "finished" for trial in trials)
    yield Headline("trials", f"{done} of {len(trials)} finished", rest)
    for metric in objectives:
        if best := front(trials, [metric]):
            value = number(best[0].metrics[metric])
            yield Headline(f"best {_label(metric)}", value, f"trial {best[0].number}")
    if len(objectives) > 1:
        names = ", ".join(str(trial.number) for trial in front(trials, objectives))
        yield Headline("on the front", names or "none", "trials that none beats in both")
    if (thrifty := frugal(trials, WITHIN)) is not None:
        joules = number(thrifty.metrics["joules"])
        note = f"joules, of trials within {WITHIN:.0%} of the best loss: trial {thrifty.number}"
        yield Headline("least energy", joules, note)


def _label(metric: str) -> str:
    return LABELS.get(metric, metric)


def _panels(
    trials: Sequence[Trial],
    objectives: Sequence[str],
    ladder: Study | None,
    answers: Sequence[tuple[str, str]],
) -> Iterator[Panel]:
    if ladder:
        yield Panel("law", "Loss law", OF_LAW, [*explain(ladder), *answers])
    groups = [one for one in axes(trials) if one.also]
    together = "".join(f" With {one.name} change {', '.join(one.also)}." for one in groups)
    yield Panel("parallel", "Trials", OF_PARALLEL + together)
    x, y = (_label(metric).partition(" (")[0] for metric in _pair(objectives))
    yield Panel("front", f"{x[0].upper()}{x[1:]} against {y}", OF_FRONT)


OF_PARALLEL = (
    "Each line is a trial, from key to key; blue is the best in the first metric, orange the worst. "
    "Dashed: stopped before its last step. Grey with a cross: failed. Dotted: still running."
)
OF_FRONT = (
    "The line connects the trials that no other beats in both. Hollow: trials that did not finish, "
    "which do not count."
)
OF_LAW = (
    "Dots are finished trials, solid lines the law at their sizes, the dashed line the lowest loss that "
    "the law gives for a budget. Bands are 95 % intervals of the law, without the noise of a single "
    "run; there are none as long as its exponents are not known."
)


def _table(trials: Sequence[Trial]) -> Iterator[list[object]]:
    """A header, and a row for each trial; None where it has no value."""
    keys = [key for one in axes(trials) for key in (one.name, *one.also)]
    metrics = list(dict.fromkeys(metric for trial in trials for metric in trial.metrics))
    yield ["trial", "state", "steps", *keys, *metrics, "problem"]
    for trial in trials:
        values = flatten(trial.values) | trial.metrics
        told = (values.get(name) for name in (*keys, *metrics))
        yield [trial.number, trial.state, trial.step, *told, trial.problem]


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)
