"""The plan: a configuration and a cluster come in; memory, speed, energy, cost and days go out.

Everything that it rests on is a named assumption, which is shown with it. A plan is data; `told` makes
lines of it for people, `as_json` an object for programs.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from panthalassa.config import Config
from panthalassa.errors import ConfigError
from panthalassa.planner import power
from panthalassa.planner.goodput import (
    Assumption,
    Goodput,
    Interval,
    Reliability,
    assumptions,
    best_interval,
    expected,
)
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.layout import Workload
from panthalassa.planner.rank import (
    FRAGMENTS,
    RESERVED,
    Candidate,
    best_of_each,
    rank,
    smallest_that_fits,
)
from panthalassa.planner.simulation import (
    DAY,
    QUANTILES,
    Fleet,
    fixed_size,
    shrink_and_grow,
    simulate,
)

SHOWN = 5
SPARES = 0.02
"""Share of the nodes that stand by in a run of fixed size, at least one."""


@dataclass(frozen=True)
class Days:
    """Days to finish under a policy: the quantiles of QUANTILES."""

    policy: str
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What training the workload on the cluster is expected to take."""

    cluster: Cluster
    workload: Workload
    tokens: float
    ranking: list[Candidate]
    compute_days: float
    """Undisturbed."""
    goodput: Goodput
    interval: Interval
    days: tuple[Days, ...]
    footprint: power.Footprint
    reliability: Reliability
    assumed: power.Assumptions

    @property
    def best(self) -> Candidate:
        return self.ranking[0]

    @property
    def expected_days(self) -> float:
        return self.goodput.days(self.compute_days)


def make_plan(
    config: Config,
    place: Cluster,
    tokens: float | None = None,
    reliability: Reliability | None = None,
    assumed: power.Assumptions | None = None,
) -> Plan:
    """Plan a run of `config` on `place`, of its own number of tokens or another.

    Raises ConfigError when no layout fits, with the smallest cluster on which one would.
    """
    workload = Workload.of(config)
    reliability, assumed = reliability or Reliability(), assumed or power.Assumptions()
    ranking = rank(workload, place, config.parallel.compile)
    best = ranking[0]
    if not best.fits:
        raise ConfigError(_fits_nowhere(workload, place, best))
    a_step = workload.global_batch * workload.sequence_length
    tokens = tokens or config.train.steps * a_step
    compute_days = tokens / a_step * best.speed.step_seconds / DAY
    goodput = expected(reliability, place.gpus)
    gpu_hours = place.gpus * 24 * goodput.days(compute_days)
    return Plan(
        cluster=place,
        workload=workload,
        tokens=tokens,
        ranking=ranking,
        compute_days=compute_days,
        goodput=goodput,
        interval=best_interval(reliability, place.gpus),
        days=tuple(_days(compute_days, place, reliability)),
        footprint=power.footprint(best.speed, place, gpu_hours, assumed),
        reliability=reliability,
        assumed=assumed,
    )


def _days(compute_days: float, place: Cluster, reliability: Reliability) -> Iterator[Days]:
    fleet = Fleet(place.gpus, place.gpus_per_node)
    policies = [shrink_and_grow(fleet)]
    if fleet.nodes > 1:
        policies.append(fixed_size(fleet, max(1, round(SPARES * fleet.nodes))))
    for policy in policies:
        outcome = simulate(compute_days, fleet, policy, reliability)
        yield Days(policy.name, tuple(outcome.quantiles().tolist()))


def _fits_nowhere(workload: Workload, place: Cluster, leanest: Candidate) -> str:
    enough = smallest_that_fits(workload, place.gpu, place.gpus)
    remedy = (
        f"it would fit on {enough}"
        if enough
        else "no larger cluster helps: take a larger GPU or a smaller model"
    )
    return (
        f"no layout fits on {place.gpus} {place.gpu.name}: the leanest needs "
        f"{leanest.footprint.peak / 1e9:.1f} GB of {leanest.usable / 1e9:.1f} that a GPU has for tensors; {remedy}."
    )


def told(plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan as rows of a name and a text."""
    best, place = plan.best, plan.cluster
    found = best.speed
    yield "cluster", f"{place.gpus} {place.gpu.name} in {place.nodes} nodes"
    yield "layout", " ".join(best.layout.overrides())
    yield (
        "speed",
        f"{found.tokens_per_second_per_gpu:,.0f} tokens/s/GPU ({found.low:,.0f} to {found.high:,.0f}), "
        f"MFU {found.mfu:.1%}, HFU {found.hfu:.1%}; {found.step_seconds:.2f} s a step, bound by {found.bound}",
    )
    parts = sorted(found.parts.items(), key=lambda item: -item[1].seconds)
    yield (
        "a step",
        ", ".join(f"{name} {part.seconds:.2f} s" for name, part in parts if part.seconds >= 0.005),
    )
    yield "memory", _memory(best)
    yield (
        "days",
        f"{plan.expected_days:.1f} for {plan.tokens / 1e12:.3f} T tokens, {plan.compute_days:.1f} undisturbed; "
        f"{found.low / found.tokens_per_second_per_gpu:.2f} to {found.high / found.tokens_per_second_per_gpu:.2f} "
        "of the speed is likely",
    )
    yield (
        "goodput",
        f"{plan.goodput.productive:.1%}; a failure every {plan.goodput.between_failures / 3600:.1f} h, a snapshot "
        f"every {plan.interval.seconds:.0f} s ({plan.interval.formula})",
    )
    for days in plan.days:
        five, _, median, _, ninety_five = days.quantiles
        yield (
            f"  {days.policy}",
            f"{median:.1f} days in the middle, {five:.1f} to {ninety_five:.1f} in nine of ten",
        )
    yield from power.explain(plan.footprint, place, plan.assumed)
    for one in _assumptions(plan):
        yield f"  assumed: {one.name}", f"{one.value} ({one.source})"


def _memory(best: Candidate) -> str:
    need = best.footprint
    parts = (
        "parameters",
        "gradients",
        "optimizer",
        "gathered",
        "activations",
        "temporaries",
        "inputs",
    )
    told = ", ".join(f"{name} {getattr(need, name) / 1e9:.2f}" for name in parts)
    return f"{need.peak / 1e9:.1f} GB of {best.usable / 1e9:.1f} at the peak ({need.when}): {told}"


def _assumptions(plan: Plan) -> Iterator[Assumption]:
    yield from assumptions(plan.reliability)
    yield Assumption(
        "memory that tensors do not get",
        f"{RESERVED / 1e9:g} GB and {FRAGMENTS:.0%}",
        "CUDA, NCCL, fragments",
    )
    yield Assumption(
        "spare nodes of a fixed size", f"{SPARES:.0%}, at least one", "beside shrink and grow"
    )


def ranking_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """The best layouts, then the best of each tensor-parallel size, with why they lose."""
    shown = list(dict.fromkeys([*plan.ranking[:SHOWN], *best_of_each(plan.ranking)]))
    for one in shown:
        layout = one.layout
        yield (
            str(layout.tp),
            str(layout.replicas),
            str(layout.micro_batch),
            layout.activation_checkpointing,
            "yes" if layout.keep_gathered else "no",
            f"{one.footprint.peak / 1e9:.1f}",
            f"{one.speed.tokens_per_second_per_gpu:,.0f}",
            f"{one.speed.mfu:.1%}",
            "the best" if one is plan.best else one.worse_than(plan.best),
        )


RANKING = (
    "tp",
    "replicas",
    "micro-batch",
    "checkpointing",
    "gathered",
    "GB",
    "tokens/s/GPU",
    "MFU",
    "",
)


def as_json(plan: Plan) -> str:
    """The plan as JSON: seconds, bytes, MWh."""

    def one(candidate: Candidate) -> dict[str, Any]:
        return {
            "layout": asdict(candidate.layout),
            "memory": {**asdict(candidate.footprint), "peak": candidate.footprint.peak},
            "speed": asdict(candidate.speed),
            "fits": candidate.fits,
        }

    return json.dumps(
        {
            "cluster": asdict(plan.cluster),
            "tokens": plan.tokens,
            "compute_days": plan.compute_days,
            "expected_days": plan.expected_days,
            "days": {
                days.policy: dict(zip(map(str, QUANTILES), days.quantiles, strict=True))
                for days in plan.days
            },
            "goodput": asdict(plan.goodput),
            "snapshot_interval_seconds": plan.interval.seconds,
            "energy": {**asdict(plan.footprint), "mwh": plan.footprint.mwh},
            "assumptions": [asdict(one) for one in _assumptions(plan)] + [asdict(plan.assumed)],
            "ranking": [one(candidate) for candidate in plan.ranking],
        },
        indent=1,
    )
