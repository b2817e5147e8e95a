"""The figures of a sweep, by Bokeh: trials in parallel coordinates, the front of two, a loss law.

A trial's colour is its place in the first metric, from blue (the best) to orange. What did not finish
is told apart by its line, not by colour alone: stopped trials are dashed, failed ones grey and end in
a cross.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearAxis,
    LogTickFormatter,
    NumeralTickFormatter,
)
from bokeh.models.annotations import Legend
from bokeh.models.renderers import GlyphRenderer
from bokeh.palettes import interp_palette
from bokeh.plotting import figure

from panthalassa.config_file import flatten
from panthalassa.report.figures import plot
from panthalassa.sweep.axes import Axis, axes, metric_axis, number
from panthalassa.sweep.ladder import Study, size_text
from panthalassa.sweep.loss_law import Estimate, Fit, Floats, LossLaw
from panthalassa.sweep.optimum import lowest
from panthalassa.sweep.pareto import HIGHER_IS_BETTER, front
from panthalassa.sweep.results import Trial

BLUE, ORANGE, GREY, RED = "#3f87d6", "#d9730d", "#8a939d", "#c8324b"
COLOURS = interp_palette((BLUE, "#9b8bb0", ORANGE), 101)
STROKES = {
    "finished": ("solid", 2.0),
    "stopped": ("dashed", 1.3),
    "running": ("dotted", 1.3),
    "failed": ("dashed", 1.3),
}
"""How the line of a trial is drawn, by its state: dash and width."""
LABELS = {
    "loss": "loss (nats a token)",
    "tokens_per_second": "tokens / s",
    "j_per_token": "J / token",
}
CURVE = 60
"""Points of a curve."""


def colours(trials: Sequence[Trial], metric: str) -> list[str]:
    """Of each trial, by its place in a metric; grey without one, and for failures."""
    place = metric_axis(trials, metric).places
    scale = COLOURS[::-1] if metric in HIGHER_IS_BETTER else COLOURS
    return [
        GREY if math.isnan(at) or trial.state == "failed" else scale[round(100 * at)]
        for at, trial in zip(place, trials, strict=True)
    ]


def draw_parallel(
    trials: Sequence[Trial], metrics: Sequence[str], log_keys: Collection[str] = ()
) -> figure:
    """Each trial as a line over one axis a key, the metrics last."""
    found = [*axes(trials, log_keys), *(metric_axis(trials, metric) for metric in metrics)]
    made = plot("", "", 420, x_range=(0, len(found) - 0.98), y_range=(-0.06, 1.06))
    made.min_border_left, made.ygrid.visible = 60, False
    made.xaxis.axis_line_color = made.xaxis.major_tick_line_color = None
    made.xaxis.ticker = FixedTicker(ticks=list(range(len(found))))
    made.xaxis.major_label_overrides = {place: label(one) for place, one in enumerate(found)}
    made.xaxis.major_label_orientation = math.pi / 5
    painted = colours(trials, metrics[0])
    for state, (dash, width) in STROKES.items():
        lines: dict[str, list[Any]] = {"x": [], "y": [], "colour": [], "trial": [], "state": []}
        lines |= {f"v{k}": [] for k in range(len(found))}
        for i, trial in enumerate(trials):
            if trial.state == state:
                known = [k for k, one in enumerate(found) if not math.isnan(one.places[i])]
                texts = {f"v{k}": _value(trial, one.name) for k, one in enumerate(found)}
                points = {"x": known, "y": [found[k].places[i] for k in known]}
                told = {"colour": painted[i], "trial": trial.number, "state": state}
                for name, value in (points | told | texts).items():
                    lines[name].append(value)
        drawn = made.multi_line("x", "y", source=ColumnDataSource(lines), color="colour")
        drawn.glyph.line_dash, drawn.glyph.line_width, drawn.glyph.line_alpha = dash, width, 0.8
        rows = {one.name: f"@v{k}" for k, one in enumerate(found)}
        _explain(made, drawn, {"trial": "@trial", "state": "@state"} | rows)
        if state == "failed":
            ends = {axis: [line[-1] for line in lines[axis] if line] for axis in "xy"}
            cross = made.scatter("x", "y", source=ColumnDataSource(ends), marker="x", size=11)
            cross.glyph.line_color, cross.glyph.line_width = RED, 2.5
    for place, one in enumerate(found):
        scale = made.yaxis[0]
        if place:
            scale = LinearAxis(fixed_location=place)
            made.add_layout(scale, "left")
        scale.ticker = FixedTicker(ticks=list(one.ticks))
        scale.major_label_overrides = {float(at): text for at, text in one.ticks.items()}
    return made


def label(one: Axis) -> str:
    """The last part of a key, which is enough to know it; and how many change with it."""
    more = f" (+{len(one.also)})" if one.also else ""
    short = LABELS.get(one.name, one.name.rpartition(".")[2].replace("_", " "))
    return short.partition(" (")[0] + more


def _explain(made: figure, renderer: "GlyphRenderer[Any]", rows: Mapping[str, str]) -> None:
    made.add_tools(HoverTool(renderers=[renderer], tooltips=list(rows.items()), visible=False))


def _value(trial: Trial, name: str) -> str:
    found = (flatten(trial.values) | trial.metrics).get(name)
    if found is None:
        return "–"
    return number(found) if isinstance(found, float) else str(found)


def draw_front(trials: Sequence[Trial], metrics: Sequence[str]) -> figure | None:
    """Two metrics against each other, and the line of the trials that none beats in both."""
    x, y = metrics[:2]
    shown = [t for t in trials if all(math.isfinite(t.metrics.get(m, math.nan)) for m in (x, y))]
    if not shown:
        return None
    best = front(trials, [x, y])
    made = plot(LABELS.get(y, y), LABELS.get(x, x), 340)
    made.xgrid.visible = True
    made.xaxis.formatter = made.yaxis.formatter = NumeralTickFormatter(format="0.[000]a")
    edge = [[t.metrics[metric] for t in best] for metric in (x, y)]
    made.step(*edge, mode="after", color=BLUE, line_width=2)
    data = {
        "x": [t.metrics[x] for t in shown],
        "y": [t.metrics[y] for t in shown],
        "trial": [t.number for t in shown],
        "state": [t.state for t in shown],
        "colour": [BLUE if t in best else ORANGE for t in shown],
        "inside": [0.85 if t.state == "finished" else 0.0 for t in shown],
    }
    dots = made.scatter("x", "y", source=ColumnDataSource(data), size=10, color="colour")
    dots.glyph.fill_alpha, dots.glyph.line_width = "inside", 1.6
    rows = {"trial": "@trial", "state": "@state", x: "@x{0.[0000]a}", y: "@y{0.[0000]a}"}
    _explain(made, dots, rows)
    return made


def draw_law(study: Study) -> figure:
    """Loss against compute: the runs, the law at their sizes, and the lowest loss of a budget."""
    low, high = float(study.loss.min()), float(study.loss.max())
    beyond = (high - low) / 4  # bands may go much further, and would hide the runs
    made = plot(
        LABELS["loss"],
        "training FLOPs",
        420,
        x_axis_type="log",
        y_range=(low - beyond, high + beyond),
    )
    made.xgrid.visible = True
    made.xaxis.formatter = LogTickFormatter()
    made.yaxis.formatter = NumeralTickFormatter(format="0.[00]")
    legend = Legend(ncols=2, background_fill_color=None, border_line_color=None, location="center")
    legend.stylesheets = [".bk-label { color: var(--quiet) !important; }"]  # of the page's theme
    made.add_layout(legend, "below")
    flops = np.geomspace(study.flops.min() / 1.5, study.flops.max() * 1.5, CURVE)
    _curve(made, study.fit, flops, partial(lowest, cost=study.cost), GREY, "lowest of a budget")
    sizes = np.unique(study.parameters)
    for size, colour in zip(
        sizes, interp_palette((BLUE, ORANGE), max(2, len(sizes))), strict=False
    ):
        own = study.parameters == size
        of_token = float(np.mean(study.flops[own] / study.tokens[own]))
        span = np.geomspace(study.flops[own].min() / 1.2, study.flops[own].max() * 1.2, CURVE)
        of_size = partial(_loss_of, float(size), of_token)
        _curve(made, study.fit, span, of_size, colour, f"{size_text(float(size))} parameters")
        data = {
            "flops": study.flops[own],
            "tokens": study.tokens[own],
            "loss": study.loss[own],
            "trial": [trial.number for trial, mine in zip(study.trials, own, strict=True) if mine],
        }
        dots = made.scatter("flops", "loss", source=ColumnDataSource(data), size=9, color=colour)
        rows = {"trial": "@trial", "tokens": "@tokens{0,0}", "loss": "@loss{0.[0000]}"}
        _explain(made, dots, rows | {"FLOPs": "@flops{0.00e+0}"})
    return made


def _loss_of(size: float, of_token: float, law: LossLaw, flops: float) -> Floats:
    return law.loss(size, flops / of_token)


def _curve(
    made: figure,
    law: Fit,
    flops: Floats,
    loss: Callable[[LossLaw, float], Floats],
    colour: str,
    name: str,
) -> None:
    """A line of estimates over budgets, and the band of their intervals, if these say anything."""

    def at(budget: float) -> Estimate:
        return law.estimate(lambda one: loss(one, budget))

    value, low, high = zip(*map(at, flops.tolist()), strict=True)
    if not law.undetermined:
        made.varea(flops, low, high, color=colour, fill_alpha=0.16)
    line = made.line(flops, value, color=colour, line_width=1.8, legend_label=name)
    line.glyph.line_dash = "dashed" if colour == GREY else "solid"
