"""The page of a plan: what a run takes on numbers of GPUs, what its layouts need, and what that assumes.

A plan comes in, one HTML file goes out, made as the report of a run is (`report.page`).
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from panthalassa.errors import ConfigError
from panthalassa.planner.memory import Progress
from panthalassa.planner.plan import Plan
from panthalassa.planner.rank import Candidate
from panthalassa.planner.scaling import Scaling, scale
from panthalassa.planner.telling import (
    PARTS,
    fixed_assumptions,
    ranking_rows,
    results,
    shown,
)
from panthalassa.report.headlines import Headline
from panthalassa.report.packed import Row, packed, table
from panthalassa.report.plan_figures import (
    MEMORY_COLOURS,
    STEP_COLOURS,
    draw_plan,
    layout_text,
)
from panthalassa.report.template import fill


class Panel(NamedTuple):
    """A figure: its title says what it shows of this plan; colours of its parts, if it has any."""

    name: str
    title: str
    legend: Sequence[tuple[str, str]] = ()


def check_file(file: Path) -> None:
    """Raise ConfigError, before minutes are spent on a page, when it can not be written there."""
    place = file if file.exists() else file.parent
    if file.is_dir() or not file.parent.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"{file} can not be written: name a file in a folder that is yours")


def write_page(plan: Plan, name: str, file: Path, progress: Progress | None = None) -> None:
    """Write the page of a plan, under the name of its configuration.

    progress: of the few traces that other numbers of GPUs need. Raises ConfigError when the file can not
    be written.
    """
    page = render(plan, name, scale(plan, progress))
    try:
        file.write_text(page)
    except OSError as error:
        raise ConfigError(f"{file} can not be written: {error}") from error


def render(plan: Plan, name: str, scaling: Scaling) -> str:
    """The page as HTML."""
    layouts, place = shown(plan), plan.cluster
    sizes = [_size(one) for one in scaling.plans]
    return fill(
        "report/plan.html",
        draw_plan(plan, scaling, layouts),
        name=name,
        where=f"{place.gpus:,} {place.gpu.name} in nodes of {place.gpus_per_node}",
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        cards=list(_cards(plan)),
        taken=list(_taken(plan, scaling)),
        scaled=list(_scaled(plan, scaling)),
        layouts=list(_layouts(plan, layouts)),
        scaling=scaling,
        sizes=[
            [show(cell) for show, cell in zip(SIZES.values(), row, strict=True)] for row in sizes
        ],
        asked=scaling.plans.index(plan),
        sizes_file=packed(table(list(SIZES), sizes)),
        sizes_header=list(SIZES),
        ranking_header=LAYOUTS,
        ranking=list(ranking_rows(plan)),
        ranking_file=packed(table(*_all_layouts(plan))),
        plan=plan,
        results=list(results(plan)),
        assumptions=plan.assumed.told(place, plan.workload),
        fixed=fixed_assumptions(plan),
    )


def _cards(plan: Plan) -> Iterator[Headline]:
    best, (fast, slow), bill = plan.best, plan.expected_range, plan.bill
    found = best.speed
    goodput = f"goodput {plan.goodput.productive:.1%}"
    yield Headline("days", few(plan.expected_days), f"{few(fast)} to {few(slow)}; {goodput}")
    yield Headline(
        "tokens/s/GPU",
        f"{best.rate:,.0f}",
        f"{found.low:,.0f} to {found.high:,.0f}; MFU {found.mfu:.1%}",
    )
    yield Headline(
        "memory at the peak",
        f"{best.footprint.peak / 1e9:.1f} GB",
        f"of {best.usable / 1e9:.1f} that tensors may take",
    )
    yield Headline("energy", f"{few(bill.mwh)} MWh", f"{few(bill.tonnes_co2)} t CO2")
    yield Headline("cost", f"${bill.dollars:,.0f}", f"{bill.gpu_hours:,.0f} GPU-hours")


def _taken(plan: Plan, scaling: Scaling) -> Iterator[Panel]:
    most = scaling.plans[-1]
    title = f"{few(plan.expected_days)} days on {plan.cluster.gpus:,} GPUs"
    if most is not plan:
        title += f", {few(most.expected_days)} on {most.cluster.gpus:,}"
    yield Panel("days", title)
    least = min(scaling.plans, key=lambda one: one.bill.mwh)
    title = f"{few(plan.bill.mwh)} MWh on {plan.cluster.gpus:,} GPUs"
    if least is not plan:
        title += f"; the least, {few(least.bill.mwh)}, on {least.cluster.gpus:,}"
    yield Panel("energy", title)


def _scaled(plan: Plan, scaling: Scaling) -> Iterator[Panel]:
    last = scaling.plans[-1]
    beside = plan if last is not plan else scaling.plans[0]
    faster = last.rate / beside.rate
    yield Panel(
        "speed",
        f"{last.cluster.gpus:,} GPUs train {few(faster)} times as fast as {beside.cluster.gpus:,}",
    )
    share = plan.best.rate / scaling.best_rate
    title = f"Each of {plan.cluster.gpus:,} GPUs has {share:.0%} of the best speed"
    if last is not plan:
        title += f", of {last.cluster.gpus:,} {last.best.rate / scaling.best_rate:.0%}"
    yield Panel("efficiency", title)


def _layouts(plan: Plan, layouts: Sequence[Candidate]) -> Iterator[Panel]:
    need = plan.best.footprint
    largest = max(PARTS, key=lambda part: getattr(need, part))
    yield Panel(
        "memory",
        f"The best layout needs {need.peak / 1e9:.1f} GB, most of it {largest}",
        [(colour, part) for part, colour in MEMORY_COLOURS.items()],
    )
    parts = plan.best.speed.parts
    longest = max(parts, key=lambda part: parts[part].seconds)
    share = parts[longest].seconds / plan.best.speed.step_seconds
    there = {part for one in layouts for part, took in one.speed.parts.items() if took.seconds}
    yield Panel(
        "step",
        f"A step takes {plan.best.speed.step_seconds:.3g} s, {share:.0%} of it {longest}",
        [(colour, part) for part, colour in STEP_COLOURS.items() if part in there],
    )


LAYOUTS = (
    *("TP", "copies", "micro-batch", "checkpointing", "kept whole"),
    *("GB", "tokens/s/GPU", "MFU", "why not"),
)
"""Copies of the model (HSDP); weights that are kept whole through a step."""


def few(number: float) -> str:
    """To three digits, thousands in full."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:#.3g}"


SIZES: dict[str, Callable[..., str]] = {
    "GPUs": "{:,}".format,
    "GB": "{:.1f}".format,
    "tokens/s/GPU": "{:,.0f}".format,
    "tokens/s": "{:,.0f}".format,
    "days": few,
    "from": few,
    "to": few,
    "MWh": few,
    "GPU-hours": "{:,.0f}".format,
    "cost": "${:,.0f}".format,
    "goodput": "{:.1%}".format,
    "layout": str,
}
"""Columns, and how they are shown."""


def _size(plan: Plan) -> Row:
    (fast, slow), bill = plan.expected_range, plan.bill
    return (
        *(plan.cluster.gpus, plan.best.footprint.peak / 1e9, plan.best.rate, plan.rate),
        *(plan.expected_days, fast, slow, bill.mwh, bill.gpu_hours, bill.dollars),
        *(plan.goodput.productive, layout_text(plan.best)),
    )


def _all_layouts(plan: Plan) -> tuple[Row, Iterator[Row]]:
    """Every layout with its memory by part and its step by part, in bytes and seconds."""
    steps = list(plan.best.speed.parts)
    keys = ("tp", "replicas", "micro_batch", "activation_checkpointing", "keep_gathered")
    header = [*keys, "fits", "peak", *PARTS, "tokens_per_second_per_gpu", *steps, "why_not"]
    return header, (
        [
            *(getattr(one.layout, key) for key in keys),
            one.fits,
            one.footprint.peak,
            *(getattr(one.footprint, part) for part in PARTS),
            f"{one.rate:.1f}",
            *(f"{one.speed.parts[step].seconds:.4g}" for step in steps),
            "" if one is plan.best else one.worse_than(plan.best),
        ]
        for one in plan.ranking
    )
