"""The figures of a report, by Bokeh: runs in, one plot each out, drawn by the browser from arrays.

A run has the same colour in every figure. Figures by step share their horizontal range, and so do those
by time: who zooms in one sees the same stretch in the others. Colours of what is around the data come
from the page's style sheet (`--bk-…`), which knows light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.model import Model
from bokeh.models import (
    ColumnDataSource,
    DataRange1d,
    HoverTool,
    NumeralTickFormatter,
    Range,
)
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure
from bokeh.themes import Theme
from bokeh.transform import dodge
from numpy.typing import NDArray

from panthalassa.energy.meters import bound
from panthalassa.report.goodput_figure import UNITS, Unit, draw_goodput
from panthalassa.report.languages import Language
from panthalassa.report.marks import interruptions, world_sizes
from panthalassa.report.read import RunData
from panthalassa.report.series import Buckets, Series, bucket

BUCKETS = 1000
"""Points of a line in a figure."""
MOST_LANGUAGES = 30
"""Bars of a figure; the rest is in the file."""
RUN_COLOURS = ("#3f87d6", "#d9730d")
"""Of the run and the one beside it: told apart by the colour-blind, readable on light and on dark."""
HEIGHT = 300

Plots = dict[str, Model]


def draw(runs: Sequence[RunData]) -> Plots:
    """All figures for which there is data, by name."""
    plots: Plots = {}
    _by_step(runs, plots)
    _by_time(runs, plots)
    if any(run.languages and not isinstance(run.languages, str) for run in runs):
        plots["languages"] = _languages(runs)
    return plots


THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "sizing_mode": "stretch_width",
                "toolbar_location": "above",
                "outline_line_color": None,
                "background_fill_color": None,  # the page's
                "border_fill_color": None,
                "min_border_right": 12,
            },
            "Toolbar": {"logo": None},
            "Axis": {
                "axis_label_text_font_style": "normal",
                "axis_label_text_font": "system-ui, sans-serif",
                "major_label_text_font": "system-ui, sans-serif",
                "axis_label_text_font_size": "12px",
                "major_label_text_font_size": "11px",
                "minor_tick_line_color": None,
                "major_tick_in": 0,
                "axis_line_width": 1,
            },
            "BasicTicker": {"desired_num_ticks": 5},
        }
    }
)


def plot(y: str, x: str = "steps", height: int = HEIGHT, **ranges: Any) -> figure:
    """An empty plot with the tools that all have; `x` and `y` are the labels of its axes."""
    made = figure(
        height=height,
        tools="box_zoom,pan,wheel_zoom,reset,save",
        active_drag="box_zoom",
        active_scroll=None,  # the wheel scrolls the page
        x_axis_label=x,
        y_axis_label=y,
        **{name: given for name, given in ranges.items() if given is not None},
    )
    made.xgrid.visible = False
    made.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    return made


def hover(made: figure, renderer: "GlyphRenderer[Any]", rows: Mapping[str, str]) -> None:
    tooltips = [("run", "$name"), *rows.items()]
    made.add_tools(HoverTool(renderers=[renderer], tooltips=tooltips, visible=False))


def _by_step(runs: Sequence[RunData], plots: Plots) -> None:
    """The figures over optimizer steps."""
    wanted = {
        "loss": ("loss", f"nats a {runs[0].loss_unit}", "0.[000]"),
        "speed": ("tokens_per_second", "tokens / s", "0.[00]a"),
        "mfu": ("mfu", "MFU", "0.[0]%"),
        "joules": ("joules", "J / iteration", "0.[00]a"),
    }
    shared: Range | None = None
    for name, (metric, label, ticks) in wanted.items():
        if not any(len(run.series(metric).step) for run in runs):
            continue
        made = plots[name] = plot(label, x_range=shared)
        shared = made.x_range
        made.yaxis.formatter = NumeralTickFormatter(format=ticks)
        for run, colour in zip(runs, RUN_COLOURS, strict=False):
            buckets = bucket(run.series(metric), BUCKETS)
            error = _error(run, buckets.size) if name == "joules" else None
            _draw_metric(made, run.name, colour, buckets, error)
            _draw_interruptions(made, run, colour)
            if name == "loss":
                _draw_held_out(made, run.name, colour, run.series("held_out_loss"))
                _draw_not_finite(made, run.name, colour, buckets)
    if any(len(run.series("kwh_so_far").step) for run in runs):
        plots["kwh"] = _kwh(runs, shared)
    saves = ("checkpoint_seconds", "stall_seconds")
    if any(len(run.series(metric).step) for run in runs for metric in saves):
        plots["checkpoints"] = _checkpoints(runs, shared)


def _error(run: RunData, steps: int) -> float | None:
    """The relative error of the joules of so many steps in a row."""
    seconds = run.series("step_seconds").value
    if isinstance(run.energy, str) or not len(seconds):
        return None
    found = bound(run.energy.refresh, float(np.median(seconds)) * steps)
    return found if math.isfinite(found) else None


def _draw_metric(
    made: figure, name: str, colour: str, buckets: Buckets, error: float | None
) -> None:
    """A line through the means, a band from the lowest to the highest value, and one of the error."""
    data: dict[str, NDArray[Any]] = {
        "step": ((buckets.first + buckets.last) / 2).astype(np.float32),
        "first": buckets.first.astype(np.int32),
        "last": buckets.last.astype(np.int32),
        "mean": buckets.mean.astype(np.float32),
        "low": buckets.low.astype(np.float32),
        "high": buckets.high.astype(np.float32),
    }
    if error is not None:
        data |= {"under": data["mean"] * (1 - error), "over": data["mean"] * (1 + error)}
    source = ColumnDataSource(data)
    if buckets.size > 1:
        made.varea("step", "low", "high", source=source, color=colour, fill_alpha=0.22)
    if error is not None:
        made.varea("step", "under", "over", source=source, color=colour, fill_alpha=0.22)
    line = made.line("step", "mean", source=source, color=colour, line_width=1.7, name=name)
    if len(buckets.mean) == 1:  # a line of one point shows nothing
        made.scatter("step", "mean", source=source, color=colour, size=6)
    rows = {"steps": "@first{0,0} to @last{0,0}", "mean": "@mean{0,0.[0000]}"}
    rows |= {"lowest": "@low{0,0.[0000]}", "highest": "@high{0,0.[0000]}"}
    if buckets.size == 1:
        rows = {"step": "@first{0,0}", "value": "@mean{0,0.[0000]}"}
    hover(made, line, rows)


def _draw_held_out(made: figure, name: str, colour: str, series: Series) -> None:
    data = {"step": series.step.astype(np.int32), "loss": series.value.astype(np.float32)}
    source = ColumnDataSource(data)
    made.line("step", "loss", source=source, color=colour, line_dash=[6, 3], line_width=1.2)
    dots = made.scatter("step", "loss", source=source, size=8, color=colour, name=name)
    dots.glyph.line_color = "#ffffff"
    hover(made, dots, {"step": "@step{0,0}", "held-out loss": "@loss{0.[0000]}"})


def _draw_not_finite(made: figure, name: str, colour: str, buckets: Buckets) -> None:
    """Crosses at the upper edge of the values: such a step has no place of its own."""
    if not len(buckets.not_finite):
        return
    steps = buckets.not_finite[:BUCKETS].astype(np.int32)
    top = float(buckets.high.max()) if len(buckets.high) else 0.0
    source = ColumnDataSource({"step": steps, "top": np.full(len(steps), top)})
    marks = made.scatter("step", "top", source=source, marker="x", size=10, name=name)
    marks.glyph.line_color, marks.glyph.line_width = colour, 2
    hover(made, marks, {"step": "@step{0,0}", "loss": "not finite"})


def _draw_interruptions(made: figure, run: RunData, colour: str) -> None:
    if isinstance(run.time, str):
        return
    dashes = {"restart": "dashed", "resize": "dotted", "command": "dotdash"}
    found = interruptions(run.time.timeline)
    for kind, dash in dashes.items():
        steps = [step for what, step in found if what == kind]
        if steps:
            source = ColumnDataSource({"step": np.array(steps, np.int32)})
            made.vspan("step", source=source, color=colour, line_dash=dash, line_alpha=0.75)


def _kwh(runs: Sequence[RunData], shared: Range | None) -> figure:
    made = plot("kWh so far", x_range=shared)
    made.yaxis.formatter = NumeralTickFormatter(format="0.[0000]a")
    for run, colour in zip(runs, RUN_COLOURS, strict=False):
        kwh = run.series("kwh_so_far")
        chosen = np.arange(0, len(kwh.step), max(1, len(kwh.step) // BUCKETS))
        data = {"step": kwh.step[chosen].astype(np.int32), "kwh": kwh.value[chosen]}
        source = ColumnDataSource(data)
        line = made.line("step", "kwh", source=source, color=colour, line_width=2, name=run.name)
        hover(made, line, {"step": "@step{0,0}", "kWh": "@kwh{0.[000000]}"})
    return made


def _checkpoints(runs: Sequence[RunData], shared: Range | None) -> figure:
    made = plot("seconds", height=220, x_range=shared, y_range=DataRange1d(start=0))
    for run, colour in zip(runs, RUN_COLOURS, strict=False):
        kinds = {"checkpoint_seconds": "circle", "stall_seconds": "x"}
        for metric, marker in kinds.items():
            series = run.series(metric)
            data = {"step": series.step.astype(np.int32), "seconds": series.value}
            source = ColumnDataSource(data)
            dots = made.scatter("step", "seconds", source=source, marker=marker, size=7)
            dots.name = run.name
            dots.glyph.line_color, dots.glyph.fill_color, dots.glyph.fill_alpha = (
                colour,
                colour,
                0.5,
            )
            what = "loop stood still" if metric == "stall_seconds" else "until it was durable"
            hover(made, dots, {"step": "@step{0,0}", what: "@seconds{0.[000]} s"})
    return made


def _by_time(runs: Sequence[RunData], plots: Plots) -> None:
    """The figures over the time of the runs, without the time between their commands."""
    timed = [run for run in runs if not isinstance(run.time, str)]
    longest = max(
        (run.time.goodput.seconds for run in timed if not isinstance(run.time, str)), default=0
    )
    if not longest:
        return
    unit = next(unit for unit in UNITS if longest >= unit.least)
    shared: Range | None = None
    x = f"{unit.name} of the run's time"
    for number, run in enumerate(runs):
        if not isinstance(run.time, str) and run.time.timeline.spans:
            made = plot("share of the time", x, 240, x_range=shared, y_range=(0, 1))
            shared = made.x_range
            draw_goodput(made, run.time.timeline, unit)
            plots[f"goodput-{number}"] = made
    plots["world"] = _world(runs, unit, shared)


def _world(runs: Sequence[RunData], unit: Unit, shared: Range | None) -> figure:
    x = f"{unit.name} of the run's time"
    made = plot("ranks", x, 220, x_range=shared, y_range=DataRange1d(start=0))
    for run, colour in zip(runs, RUN_COLOURS, strict=False):
        if not isinstance(run.time, str):
            at, workers = world_sizes(run.time.timeline)
            source = ColumnDataSource({"at": np.array(at) / unit.seconds, "workers": workers})
            line = made.step(
                "at",
                "workers",
                source=source,
                mode="after",
                color=colour,
                line_width=2,
                name=run.name,
            )
            hover(made, line, {"ranks": "@workers", "from": f"@at{{0,0.[00]}} {unit.name}"})
    return made


def _languages(runs: Sequence[RunData]) -> figure:
    """Bars of the share of each language, the most trained first."""
    shares = [shares_of(run.languages) for run in runs]
    names = sorted(
        dict.fromkeys(name for share in shares for name in share),
        key=lambda name: -max(share.get(name, 0.0) for share in shares),
    )[:MOST_LANGUAGES]
    height = 100 + (16 + 10 * (len(runs) - 1)) * len(names)
    made = plot(
        "", "share of the samples", height, x_range=DataRange1d(start=0), y_range=names[::-1]
    )
    made.xgrid.visible, made.ygrid.visible = True, False
    made.xaxis.formatter = NumeralTickFormatter(format="0.[0]%")
    width = 0.8 / len(runs)
    for number, (run, share, colour) in enumerate(zip(runs, shares, RUN_COLOURS, strict=False)):
        data = {"name": names, "share": [share.get(name, 0.0) for name in names]}
        middle = dodge("name", width * ((len(runs) - 1) / 2 - number), range=made.y_range)
        bars = made.hbar(
            y=middle,
            right="share",
            height=width * 0.9,
            source=ColumnDataSource(data),
            color=colour,
            name=run.name,
        )
        hover(made, bars, {"language": "@name", "share": "@share{0.[00]%}"})
    return made


def shares_of(found: list[Language] | str) -> dict[str, float]:
    """The share of the samples by language; empty when it is not known."""
    if isinstance(found, str):
        return {}
    whole = sum(language.samples for language in found)
    return {language.name: language.samples / whole for language in found}
