"""The goodput time line: what each stretch of a run's time went to, as stacked shares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure

from panthalassa.report.series import Floats
from panthalassa.train.goodput import Part, Timeline

STRETCHES = 240
"""Bars of the figure."""


@dataclass(frozen=True)
class Unit:
    """A unit of time for an axis that is at least `least` seconds long."""

    name: str
    seconds: float
    least: float


UNITS = (
    Unit("days", 86400, 3 * 86400),
    Unit("hours", 3600, 2 * 3600),
    Unit("minutes", 60, 180),
    Unit("seconds", 1, 0),
)


@dataclass(frozen=True)
class Group:
    """Parts of the time that are shown as one."""

    name: str
    parts: tuple[Part, ...]
    colour: str


GROUPS = (
    Group("training that stands", ("productive",), "#44bb99"),
    Group("waiting for data", ("data_wait",), "#eedd88"),
    Group("steps lost and repeated", ("lost",), "#ee8866"),
    Group("recovery and resize", ("recovery", "resize"), "#ffaabb"),
    Group("standing by for nodes", ("standby",), "#aaaa00"),
    Group("start and compiling", ("start", "compile"), "#77aadd"),
    Group("checkpoints", ("checkpoint",), "#bbcc33"),
    Group("evaluation", ("evaluation",), "#99ddff"),
    Group("finish and other", ("finish", "other"), "#bbbbbb"),
)
"""All parts. The colours are Paul Tol's "light" scheme, made for areas and for colour-blind readers."""


def stretches(timeline: Timeline) -> tuple[Floats, Mapping[Part, Floats]]:
    """The edges [n + 1] of equal stretches of the time, in seconds, and the seconds of each part [n]."""
    end = max((span.end for span in timeline.spans), default=0.0)
    edges = np.linspace(0.0, end, STRETCHES + 1)
    spans: dict[Part, list[float]] = {}
    for span in timeline.spans:
        spans.setdefault(span.part, []).extend((span.start, span.end))
    found: dict[Part, Floats] = {}
    for part, bounds in spans.items():
        ends = np.array(bounds)
        taken = np.zeros_like(ends)
        taken[1::2] = ends[1::2] - ends[::2]
        found[part] = np.diff(np.interp(edges, ends, np.cumsum(taken)))
    return edges, found


def draw_goodput(made: figure, timeline: Timeline, unit: Unit) -> None:
    """Draw the time line into a plot."""
    edges, found = stretches(timeline)
    middle = (edges[:-1] + edges[1:]) / 2 / unit.seconds
    length = edges[1] - edges[0]
    shown = [group for group in GROUPS if any(part in found for part in group.parts)]
    shares = {
        f"share{number}": sum(found[part] for part in group.parts if part in found) / length
        for number, group in enumerate(shown)
    }
    source = ColumnDataSource({"middle": middle, **shares})
    bars = made.vbar_stack(
        list(shares),
        x="middle",
        width=length / unit.seconds,
        color=[group.colour for group in shown],
        line_width=0,
        source=source,
    )
    rows = [(group.name, f"@share{number}{{0%}}") for number, group in enumerate(shown)]
    tooltips = [(f"at {unit.name}", "@middle{0,0.[0]}"), *rows]
    made.add_tools(HoverTool(renderers=list[DataRenderer](bars), tooltips=tooltips, visible=False))
    made.yaxis.formatter = NumeralTickFormatter(format="0%")
