"""The figures of a plan, by Bokeh: what it takes over numbers of GPUs, and what its layouts need.

A line is what is expected, the band behind it the range of the speed, a dashed line what there would be
if no GPU waited for another. The asked number of GPUs is orange.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NoOverlap, NumeralTickFormatter
from bokeh.models.annotations import Span
from bokeh.plotting import figure

from panthalassa.planner.plan import Plan
from panthalassa.planner.rank import Candidate
from panthalassa.planner.scaling import Scaling
from panthalassa.planner.telling import PARTS
from panthalassa.report.figures import RUN_COLOURS, Plots, plot

BLUE, ORANGE = RUN_COLOURS
GREY = "#8a939d"
MEMORY_COLOURS = dict(
    zip(
        PARTS,
        ("#77aadd", "#99ddff", "#44bb99", "#eedd88", "#ee8866", "#ffaabb", "#bbbbbb"),
        strict=True,
    )
)
STEP_COLOURS = {
    "matrix products": "#44bb99",
    "attention": "#bbcc33",
    "elementwise": "#99ddff",
    "kernel gaps": "#bbbbbb",
    "waited communication": "#ee8866",
    "exposed communication": "#ffaabb",
    "pipeline bubble": "#aaaa00",
    "stragglers": "#eedd88",
    "optimizer": "#77aadd",
    "step": "#777777",
}
"""Of parts of a step. Both are of Paul Tol's "light" scheme, for areas and for colour-blind readers."""


def draw_plan(asked: Plan, scaling: Scaling, layouts: Sequence[Candidate]) -> Plots:
    """All figures, by name."""
    steps = [{name: part.seconds for name, part in one.speed.parts.items()} for one in layouts]
    longest = max(one.speed.step_seconds for one in layouts)
    return {
        **_over_gpus(asked, scaling),
        "memory": _memory(asked, layouts),
        "step": _bars("seconds", steps, layouts, STEP_COLOURS, longest),
    }


def _over_gpus(asked: Plan, scaling: Scaling) -> Plots:
    plans, best = scaling.plans, scaling.best_rate
    speeds = [(plan.cluster.gpus, plan.best.speed) for plan in plans]
    days = [plan.expected_days for plan in plans]
    shortest, longest = zip(*(plan.expected_range for plan in plans), strict=True)
    energy = [plan.bill.mwh for plan in plans]
    a_day = [mwh / day for mwh, day in zip(energy, days, strict=True)]

    def curve(label: str, form: str, log: bool, **columns: Sequence[float]) -> figure:
        return _curve(asked, plans, label, form, log, columns)

    return {
        "days": curve(
            "days",
            "0,0.[0]",
            log=True,
            value=days,
            low=shortest,
            high=longest,
            ideal=[plan.compute_days * plan.best.rate / best for plan in plans],
        ),
        "energy": curve(
            "MWh",
            "0,0.[00]",
            log=False,
            value=energy,
            low=[mwh * day for mwh, day in zip(a_day, shortest, strict=True)],
            high=[mwh * day for mwh, day in zip(a_day, longest, strict=True)],
        ),
        "speed": curve(
            "tokens / s",
            "0,0",
            log=True,
            value=[plan.rate for plan in plans],
            low=[gpus * speed.low for gpus, speed in speeds],
            high=[gpus * speed.high for gpus, speed in speeds],
            ideal=[gpus * best for gpus, _ in speeds],
        ),
        "efficiency": curve(
            "of the best tokens/s/GPU",
            "0%",
            log=False,
            value=[plan.best.rate / best for plan in plans],
            ideal=[1.0] * len(plans),
        ),
    }


def _curve(
    asked: Plan,
    plans: Sequence[Plan],
    label: str,
    form: str,
    log: bool,
    columns: Mapping[str, Sequence[float]],
) -> figure:
    """columns: `value` over the GPUs of the plans, and perhaps `low`, `high` and `ideal`."""
    gpus = [plan.cluster.gpus for plan in plans]
    top = max(max(values) for values in columns.values())
    ranges = {"y_axis_type": "log"} if log else {"y_range": (0, 1.08 * top)}
    made = plot(label, "GPUs", 300, x_axis_type="log", **ranges)
    made.xaxis.ticker = FixedTicker(ticks=gpus)
    made.xaxis.major_label_policy = NoOverlap(min_distance=8)
    made.yaxis.formatter = NumeralTickFormatter(format=form)
    told = {
        "gpus": gpus,
        "layout": [layout_text(plan.best) for plan in plans],
        "colour": [ORANGE if plan is asked else BLUE for plan in plans],
        "size": [12 if plan is asked else 7 for plan in plans],
    }
    source = ColumnDataSource({**told, **columns})
    if "low" in columns:
        made.varea("gpus", "low", "high", source=source, color=BLUE, fill_alpha=0.3)
    if "ideal" in columns:
        made.line("gpus", "ideal", source=source, color=GREY, line_dash="dashed", line_width=1.5)
    made.line("gpus", "value", source=source, color=BLUE, line_width=1.4)
    dots = made.scatter("gpus", "value", source=source, size="size", color="colour")
    rows = [("GPUs", "@gpus{0,0}"), (label, f"@value{{{form}}}")]
    if "low" in columns:
        rows.append(("range", f"@low{{{form}}} to @high{{{form}}}"))
    if "ideal" in columns:
        rows.append(("ideal", f"@ideal{{{form}}}"))
    tooltips = [*rows, ("layout", "@layout")]
    made.add_tools(HoverTool(renderers=[dots], tooltips=tooltips, visible=False))
    return made


def _memory(asked: Plan, layouts: Sequence[Candidate]) -> figure:
    """By part, with lines at what tensors may take and at what the GPU has."""
    needs = [{part: getattr(one.footprint, part) / 1e9 for part in PARTS} for one in layouts]
    whole = asked.cluster.gpu.memory / 1e9
    longest = max(whole, *(sum(need.values()) for need in needs))
    made = _bars("GB", needs, layouts, MEMORY_COLOURS, min(longest, 2 * whole))
    for at, dash in ((asked.best.usable / 1e9, "solid"), (whole, "dashed")):
        made.add_layout(
            Span(
                location=at, dimension="height", line_color="#c8324b", line_dash=dash, line_width=2
            )
        )
    return made


def _bars(
    label: str,
    parts: Sequence[Mapping[str, float]],
    layouts: Sequence[Candidate],
    colours: Mapping[str, str],
    longest: float,
) -> figure:
    """Stacked bars, one a layout, the first at the top."""
    names = [f"{number} · TP {one.layout.tp}" for number, one in enumerate(layouts, 1)]
    made = plot("", label, 90 + 26 * len(names), x_range=(0, 1.04 * longest), y_range=names[::-1])
    made.xgrid.visible, made.ygrid.visible = True, False
    found = [part for part in colours if any(one.get(part) for one in parts)]
    data: dict[str, Any] = {part: [one[part] for one in parts] for part in found}
    data |= {"name": names, "layout": [layout_text(one) for one in layouts]}
    drawn = made.hbar_stack(
        found,
        y="name",
        height=0.72,
        color=[colours[part] for part in found],
        source=ColumnDataSource(data),
    )
    tooltips = [("layout", "@layout"), *((part, f"@{{{part}}}{{0.[00]}}") for part in found)]
    made.add_tools(HoverTool(renderers=list(drawn), tooltips=tooltips, visible=False))
    return made


def layout_text(one: Candidate) -> str:
    """A layout in a line: `TP 1, 2 copies, micro-batch 2, selective checkpointing, kept whole`."""
    found = one.layout
    copies = f"{found.replicas} copies, " if found.replicas > 1 else ""
    kept = ", kept whole" if found.keep_gathered else ""
    return (
        f"TP {found.tp}, {copies}micro-batch {found.micro_batch}, "
        f"{found.activation_checkpointing} checkpointing{kept}"
    )
