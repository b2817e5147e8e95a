"""A plan as it is told: rows for people, an object for programs."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from panthalassa.config_model import Model
from panthalassa.model.flops import projector_parameters, tower_parameters
from panthalassa.planner import power
from panthalassa.planner.calibration import factors
from panthalassa.planner.counts import Shape
from panthalassa.planner.goodput import Assumption
from panthalassa.planner.plan import Plan, fleet_of
from panthalassa.planner.rank import Candidate, best_of_each, counted
from panthalassa.planner.simulation import QUANTILES, simulated
from panthalassa.planner.speed import speed
from panthalassa.planner.units import duration, span, tokens

SHOWN = 5
"""Layouts at the head of the table."""
PARTS = (
    "parameters",
    "gradients",
    "optimizer",
    "gathered",
    "activations",
    "temporaries",
    "inputs",
)
"""Of a footprint."""
IMAGES = (
    "{in_each_of_them:.3g} in each of {share_of_samples:.1%} of the samples, an image takes {positions} "
    "positions; tower and projector: {megabytes:,.1f} MB of a GPU, {share_of_flops:.2%} of the FLOPs, "
    "{seconds:.2g} s of a step"
)
RANKING = (
    "tp",
    "copies",
    "micro-\nbatch",
    "check-\npointing",
    "kept\nwhole",
    "GB",
    "tokens/s\n/GPU",
    "MFU",
    "why not",
)
"""Titles of a ranking. Copies of the model (HSDP); weights that are kept whole through a step."""


def shown(plan: Plan) -> list[Candidate]:
    """The best layouts, the best of each tensor-parallel size, and the fastest that does not fit."""
    found = list(plan.ranking[:SHOWN])
    too_large = [one for one in plan.ranking if not one.fits]
    others = [*best_of_each(plan.ranking), *sorted(too_large, key=lambda one: -one.rate)[:1]]
    return found + [one for one in others if one not in found]


def ranking_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """The layouts that are shown, with why they lose."""
    for one in shown(plan):
        layout = one.layout
        yield (
            str(layout.tp),
            str(layout.replicas),
            str(layout.micro_batch),
            layout.activation_checkpointing,
            "yes" if layout.keep_gathered else "no",
            f"{one.footprint.peak / 1e9:.1f}",
            f"{one.rate:,.0f}",
            f"{one.speed.mfu:.1%}",
            "the best" if one is plan.best else one.worse_than(plan.best),
        )


def told(plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan as rows of a name and a text, with what it rests on."""
    yield from results(plan)
    yield "assumed", "each of these is changed by --assume NAME=VALUE:"
    for one in plan.assumed.told(plan.cluster, plan.workload):
        yield f"  {one.name}", f"{one.value} ({one.source})"
    yield "also assumed", "and not to be changed:"
    for one in fixed_assumptions(plan):
        yield f"  {one.name}", f"{one.value} ({one.source})"


def results(plan: Plan) -> Iterator[tuple[str, str]]:
    """What comes of it."""
    best, place, found = plan.best, plan.cluster, plan.best.speed
    fit = sum(one.fits for one in plan.ranking)
    yield (
        "cluster",
        f"{place.gpus} {place.gpu.name} in {place.nodes} node{'s' * (place.nodes != 1)}; "
        f"{fit} of {len(plan.ranking)} layouts fit",
    )
    yield "parameters", _parameters(plan.workload.model)
    yield "layout", " ".join(best.overrides())
    yield "as configured", _asked(plan)
    yield "tensor parallel", plan.verdict
    yield (
        "speed",
        f"{best.rate:,.0f} tokens/s/GPU ({found.low:,.0f} to {found.high:,.0f}), MFU {found.mfu:.1%}, "
        f"HFU {found.hfu:.1%}; {found.step_seconds:.3g} s a step, bound by {found.bound}",
    )
    parts = sorted(found.parts.items(), key=lambda item: -item[1].seconds)
    yield (
        "a step",
        ", ".join(
            f"{name} {part.seconds:.2g} s ({part.bound})"
            for name, part in parts
            if part.seconds >= 0.005 * found.step_seconds
        ),
    )
    yield "memory", _memory(best)
    if of_images := _images(plan):
        yield "images", IMAGES.format(**of_images, megabytes=of_images["bytes"] / 1e6)
    yield (
        "time",
        f"{duration(plan.expected_days)} ({span(*plan.expected_range)}) for {tokens(plan.tokens)} "
        f"tokens; {duration(plan.compute_days)} undisturbed",
    )
    yield "goodput", _goodput(plan)
    for days in plan.days:
        low, _, median, _, high = days.quantiles
        told = f"{duration(median)} in the median, {span(low, high)} in nine of ten runs"
        yield f"  {days.policy}", told
    rows = list(power.explain(plan.bill, place, plan.assumed.power))
    yield from (row for row in rows if not row[0].startswith("  assumed"))


def fixed_assumptions(plan: Plan) -> list[Assumption]:
    """What a plan rests on and no `--assume` changes."""
    gpu = plan.cluster.gpu
    model = [
        one
        for one in simulated(fleet_of(plan.cluster, plan.assumed), plan.assumed.reliability)
        if one.source.startswith("model")
    ]
    errors = "calibration.csv has their errors"
    if plan.factors is not None:
        errors = "their sum is as measured; the range is that of published runs"
    return [
        Assumption("speed", f"factors fitted to {plan.fitted}", errors),
        Assumption("attention", "a fused kernel for any mask", "never measured on a GPU"),
        Assumption("memory", "tensors of an uncompiled step", "traced; compiled blocks need less"),
        Assumption("GPU", f"{gpu.idle:g} W idle to {gpu.watts:g} W", "hardware.yaml"),
        Assumption("energy of lost time", "that of training", "model"),
        *model,
    ]


def as_json(plan: Plan) -> str:
    """The plan as JSON; tokens/s/GPU, seconds, bytes, watts, MWh; shares from 0 to 1. What is
    infinite, such as the time between failures that never come, is null."""
    bill = plan.bill
    return json.dumps(
        _finite(
            {
                "cluster": asdict(plan.cluster),
                "tokens": plan.tokens,
                "compute_days": plan.compute_days,
                "expected_days": plan.expected_days,
                "expected_days_range": plan.expected_range,
                "simulated_days": {
                    days.policy: dict(zip(map(str, QUANTILES), days.quantiles, strict=True))
                    for days in plan.days
                },
                "goodput": asdict(plan.goodput),
                "snapshot_interval_seconds": plan.interval.seconds,
                "energy": {
                    "mwh": bill.mwh,
                    "gpus_mwh": bill.gpus,
                    "nodes_mwh": bill.nodes,
                    "building_mwh": bill.building,
                    "gpu_watts": bill.gpu_watts,
                    "gpu_hours": bill.gpu_hours,
                    "tonnes_co2": bill.tonnes_co2,
                    "dollars": bill.dollars,
                    "by_convention_mwh": bill.by_convention,
                    "by_convention_tonnes_co2": bill.tonnes_by_convention,
                },
                "as_configured": _asked(plan),
                "tensor_parallel": plan.verdict,
                "images": _images(plan) or None,
                "speed_fitted_to": plan.fitted,
                "assumptions": [
                    asdict(one) for one in plan.assumed.told(plan.cluster, plan.workload)
                ],
                "also_assumed": [asdict(one) for one in fixed_assumptions(plan)],
                "ranking": [_candidate(one, plan.best) for one in plan.ranking],
            }
        ),
        indent=1,
        allow_nan=False,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _candidate(one: Candidate, best: Candidate) -> dict[str, Any]:
    return {
        "layout": {**asdict(one.layout), "compile": one.compiled},
        "fits": one.fits,
        "why_not": None if one is best else one.worse_than(best),
        "memory": {
            **asdict(one.footprint),
            "peak": one.footprint.peak,
            "usable": one.usable,
        },
        "speed": asdict(one.speed),
    }


def _asked(plan: Plan) -> str:
    if plan.asked is None:
        return "no layout of these GPUs: other sizes, or micro-batches that are no power of two"
    return "the best" if plan.asked is plan.best else plan.asked.worse_than(plan.best)


def _goodput(plan: Plan) -> str:
    between = plan.goodput.between_failures / 86_400
    if math.isinf(between):
        return f"{plan.goodput.productive:.1%}: nothing ever fails"
    return (
        f"{plan.goodput.productive:.1%}: a failure every {duration(between)}; a snapshot every "
        f"{plan.interval.seconds:.0f} s, {plan.interval.formula}"
    )


def _parameters(model: Model) -> str:
    shape = Shape.of(model)
    told = f"{shape.parameters / 1e9:.2f} B"
    if model.vision is None:
        return told
    tower, projector = _of_vision(model)
    return (
        f"{told}: decoder {shape.decoder / 1e9:.2f} B, tower {tower / 1e6:,.1f} M, "
        f"projector {projector / 1e6:,.1f} M"
    )


def _of_vision(model: Model) -> tuple[int, int]:
    """Parameters of the tower and of the projector."""
    assert model.vision
    return tower_parameters(model.vision), projector_parameters(model.vision, model.hidden_size)


def _images(plan: Plan) -> dict[str, float]:
    """What they take; nothing of a model of text alone.

    Bytes of a GPU are those of its weights, gradients and both moments, in fp32; seconds are of a step.
    """
    workload, best = plan.workload, plan.best
    if (vision := workload.model.vision) is None:
        return {}
    blind = replace(workload, model=workload.model.model_copy(update={"vision": None}))
    counts, seeing = (
        counted(each, best.layout, plan.cluster.gpus_per_node, best.compiled)
        for each in (blind, workload)
    )
    without = speed(counts, plan.cluster, plan.factors or factors())
    tower, projector = _of_vision(workload.model)
    return {
        "tower_parameters": tower,
        "projector_parameters": projector,
        "positions": vision.tokens,
        "share_of_samples": workload.image_samples,
        "in_each_of_them": workload.images_per_sample,
        "bytes": 16 * (tower + projector) / (best.layout.tp * best.layout.shards),
        "seconds": best.speed.step_seconds - without.step_seconds,
        "share_of_flops": 1 - counts.model_flops / seeing.model_flops,
    }


def _memory(best: Candidate) -> str:
    need = best.footprint
    parts = sorted(((getattr(need, name), name) for name in PARTS), reverse=True)
    told = ", ".join(f"{name} {size / 1e9:.2f}" for size, name in parts)
    return f"{need.peak / 1e9:.1f} GB of {best.usable / 1e9:.1f} at the peak, in the {need.when}: {told}"
