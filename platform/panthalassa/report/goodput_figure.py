"""The goodput time line: what each stretch of a run's time went to, as stacked shares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
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
    shown = [group for group in GROUPS if any(part in found for part in group.parts)]
    shares = [
        sum(found[part] for part in group.parts if part in found) / (edges[1] - edges[0])
        for group in shown
    ]
    tops = np.cumsum([np.zeros(STRETCHES), *shares], axis=0)
    at = edges / unit.seconds
    for group, bottom, top in zip(shown, tops, tops[1:], strict=False):
        closed = {"at": at, "bottom": np.append(bottom, 0), "top": np.append(top, 0)}
        source = ColumnDataSource(
            {name: values.astype(np.float32) for name, values in closed.items()}
        )
        made.varea_step("at", "bottom", "top", source=source, step_mode="after", color=group.colour)
    told = {f"share{number}": share for number, share in enumerate(shares)}
    source = ColumnDataSource({"left": at[:-1], "right": at[1:], **told})
    bars = made.quad("left", "right", top=1, bottom=0, source=source, alpha=0)
    rows = [(group.name, f"@share{number}{{0%}}") for number, group in enumerate(shown)]
    tooltips = [(f"from {unit.name}", "@left{0,0.[00]}"), *rows]
    made.add_tools(HoverTool(renderers=[bars], tooltips=tooltips, visible=False))
    made.yaxis.formatter = NumeralTickFormatter(format="0%")
