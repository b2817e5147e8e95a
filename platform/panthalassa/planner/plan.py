"""The plan: a configuration and a cluster come in; memory, speed, energy, cost and days go out.

A plan is data. `told` makes lines of it for people, `as_json` an object for programs (`telling`).
Everything that it rests on is a named assumption, which is shown with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from panthalassa.config import Config
from panthalassa.errors import ConfigError
from panthalassa.planner import power
from panthalassa.planner.assume import Assumed
from panthalassa.planner.goodput import ExpectedGoodput, Interval, best_interval, expected
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.layout import Workload
from panthalassa.planner.memory import Progress
from panthalassa.planner.rank import Candidate, rank, smallest_that_fits, verdict
from panthalassa.planner.simulation import DAY, Fleet, fixed_size, shrink_and_grow, simulate
from panthalassa.planner.speed import Factors

LEAST = 0.01
"""Share of its time that a cluster has to train; below it, a plan says nothing."""


@dataclass(frozen=True)
class Days:
    """Days to finish under a policy."""

    policy: str
    quantiles: tuple[float, ...]
    """By which the shares `simulation.QUANTILES` of the simulated runs are done."""


@dataclass(frozen=True)
class Plan:
    """What training the workload on the cluster is expected to take."""

    config: Config
    cluster: Cluster
    workload: Workload
    tokens: float
    ranking: list[Candidate]
    """All feasible layouts, the best first; those that do not fit last."""
    asked: Candidate | None
    """The layout that the configuration asks for, if these GPUs can have it."""
    verdict: str
    """Whether tensor parallelism inside the node pays."""
    compute_days: float
    """Undisturbed, with the best layout."""
    goodput: ExpectedGoodput
    interval: Interval
    days: tuple[Days, ...]
    bill: power.Bill
    assumed: Assumed
    factors: Factors | None
    """Of the speed; None: those of published runs."""
    fitted: str
    """What they are fitted to."""

    @property
    def best(self) -> Candidate:
        return self.ranking[0]

    @property
    def rate(self) -> float:
        """Tokens/s of the whole cluster."""
        return self.cluster.gpus * self.best.rate

    @property
    def expected_days(self) -> float:
        """With failures, recoveries and snapshots."""
        return self.goodput.days(self.compute_days)

    @property
    def expected_range(self) -> tuple[float, float]:
        """The expected days at the upper and at the lower end of the speed's range."""
        found = self.best.speed
        middle = self.expected_days * found.tokens_per_second_per_gpu
        return middle / found.high, middle / found.low


def make_plan(
    config: Config,
    place: Cluster,
    tokens: float | None = None,
    assumed: Assumed | None = None,
    factors: Factors | None = None,
    fitted: str = "published runs",
    progress: Progress | None = None,
) -> Plan:
    """Plan a run of `config` on `place`, of its own number of tokens or another.

    factors: of the speed, fitted to `fitted`; those of published runs if not given. Raises
    ConfigError when no layout fits, with the smallest cluster on which one would.
    """
    assumed = assumed or Assumed()
    workload = assumed.on(Workload.of(config))
    place = assumed.fabric.on(place)
    if assumed.reserve.usable(place.gpu) <= 0:
        raise ConfigError(
            f"reserved_gb={assumed.reserve.reserved_gb:g} and fragments={assumed.reserve.fragments:g} "
            f"leave nothing of the {place.gpu.memory / 1e9:g} GB of {place.gpu.name}"
        )
    ranking = rank(workload, place, config.parallel.compile, factors, assumed.reserve, progress)
    best = ranking[0]
    if not best.fits:
        raise ConfigError(_fits_nowhere(workload, place, best, assumed, progress))
    a_step = workload.global_batch * workload.sequence_length
    tokens = config.train.steps * a_step if tokens is None else tokens
    if tokens < a_step:
        raise ConfigError(
            f"{tokens:g} tokens are less than one step, which has {a_step:,}: is a letter missing, as "
            "in 1.1T?"
        )
    return planned(config, place, ranking, tokens, assumed, factors, fitted)


def planned(
    config: Config,
    place: Cluster,
    ranking: list[Candidate],
    tokens: float,
    assumed: Assumed,
    factors: Factors | None,
    fitted: str,
) -> Plan:
    """The plan that follows from a ranking, whose best fits.

    Raises ConfigError when the cluster fails too often to train anything.
    """
    workload = assumed.on(Workload.of(config))
    reliability, best = assumed.reliability, ranking[0]
    a_step = workload.global_batch * workload.sequence_length
    compute_days = tokens / a_step * best.speed.step_seconds / DAY
    goodput = expected(reliability, place.gpus)
    if goodput.productive < LEAST:
        raise ConfigError(
            f"hardly anything would ever be trained ({goodput.productive:.2g} of the time): "
            f"{place.gpus} GPUs fail every {goodput.between_failures:.3g} s. See the assumptions "
            "failures_per_gpu_hour, recovery_seconds, snapshot_seconds and write_seconds."
        )
    gpu_hours = place.gpus * 24 * goodput.days(compute_days)
    return Plan(
        config=config,
        cluster=place,
        workload=workload,
        tokens=tokens,
        ranking=ranking,
        asked=_asked(config, ranking),
        verdict=verdict(ranking, workload, place),
        compute_days=compute_days,
        goodput=goodput,
        interval=best_interval(reliability, place.gpus),
        days=tuple(_days(compute_days, place, assumed)),
        bill=power.footprint(best.speed, place, gpu_hours, assumed.power),
        assumed=assumed,
        factors=factors,
        fitted=fitted,
    )


def _asked(config: Config, ranking: list[Candidate]) -> Candidate | None:
    parallel = config.parallel
    layout = replace(
        ranking[0].layout,
        tp=parallel.tp_size,
        replicas=parallel.replicas,
        micro_batch=config.train.micro_batch,
        activation_checkpointing=parallel.activation_checkpointing,
        keep_gathered=parallel.keep_gathered,
    )
    return next((one for one in ranking if one.layout == layout), None)


def fleet_of(place: Cluster, assumed: Assumed) -> Fleet:
    """The nodes of a cluster, as the simulation has them."""
    repairs = assumed.repairs
    return Fleet(place.gpus, place.gpus_per_node, repairs.repair_hours, repairs.repair_share)


def _days(compute_days: float, place: Cluster, assumed: Assumed) -> Iterator[Days]:
    """Shrinking and growing, and beside it the same nodes as a run of fixed size with spares."""
    fleet = fleet_of(place, assumed)
    policies = [shrink_and_grow(fleet)]
    if fleet.nodes > 1:
        spares = max(1, round(assumed.repairs.spare_share * fleet.nodes))
        policies.append(fixed_size(fleet, min(spares, fleet.nodes - 1)))
    for policy in policies:
        outcome = simulate(compute_days, fleet, policy, assumed.reliability)
        yield Days(policy.name, tuple(outcome.quantiles().tolist()))


def _fits_nowhere(
    workload: Workload,
    place: Cluster,
    leanest: Candidate,
    assumed: Assumed,
    progress: Progress | None,
) -> str:
    gpu = place.gpu
    enough = smallest_that_fits(workload, gpu, place.gpus, assumed.reserve, progress)
    remedy = (
        f"the smallest cluster on which it would fit is --gpus {enough}"
        if enough
        else "no larger cluster of them helps: take a larger GPU, a smaller model or shorter samples"
    )
    return (
        f"no layout fits on {place.gpus} {gpu.name}: the leanest needs "
        f"{leanest.footprint.peak / 1e9:.1f} GB of the {leanest.usable / 1e9:.1f} that a GPU has for "
        f"tensors, in the {leanest.footprint.when}; {remedy}."
    )
