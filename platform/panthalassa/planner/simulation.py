"""Days to finish as a distribution: many runs of one plan, played through with random failures.

The work, the nodes that there are, and a policy go in; of each run, what its time went to comes out. The
policy says on how many nodes a run trains at most and at least. With both the same, the other nodes are
spares, and when they are gone it waits for a repair: a fixed size. Otherwise it goes on with what is
left, and takes nodes in again when they return: shrink and grow.

The one idea: failures and repairs have no memory. So a run is known by its phase, how many of its nodes
are away, and how long it has trained since it last started; what happens next, and when, is one
exponential draw against the end of the phase. All runs take such steps together, as arrays.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panthalassa.errors import PanthalassaError
from panthalassa.planner.goodput import (
    HOUR,
    Assumption,
    Reliability,
    assumptions,
    best_interval,
    check_interval,
)

DAY = 24 * HOUR
PATIENCE = 20.0
"""Runs that take so many times their undisturbed days count as never done."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TRAINING, SAVING, RECOVERING, WAITING, OVER = range(5)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Fleet:
    """The nodes that there are, spares included, and what becomes of those that fail.

    Raises PanthalassaError for what can not be.
    """

    gpus: int
    gpus_per_node: int = 8
    """GPUs that go and return together. Where a tensor-parallel group is lost alone, its size."""
    repair_hours: float = 24.0
    """On average until a node is back; infinite: never."""
    repair_share: float = 0.78
    """Of the failures, those that take a node away; after the others it goes on at once."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.gpus_per_node < 1 or self.gpus % self.gpus_per_node:
            raise PanthalassaError(
                f"{self.gpus} GPUs in nodes of {self.gpus_per_node}: expected whole nodes; set gpus "
                "to a multiple of gpus_per_node"
            )
        if not self.repair_hours > 0:
            raise PanthalassaError(f"repair_hours = {self.repair_hours:g}: expected hours above 0")
        if not 0 <= self.repair_share <= 1:
            raise PanthalassaError(f"repair_share = {self.repair_share:g}: expected 0 to 1")

    @property
    def nodes(self) -> int:
        return self.gpus // self.gpus_per_node


@dataclass(frozen=True)
class Policy:
    """On how many nodes a run trains, of those that there are."""

    name: str
    most: int
    least: int
    grows_at_once: bool = True
    """When a node returns, for which a recovery is paid; otherwise with the next failure's recovery."""


def fixed_size(fleet: Fleet, spares: int) -> Policy:
    """Always the same number of nodes; `spares` nodes stand by for those that fail."""
    if not 0 <= spares < fleet.nodes:
        raise PanthalassaError(
            f"{spares} spare nodes of {fleet.nodes}: expected 0 to {fleet.nodes - 1}"
        )
    size = fleet.nodes - spares
    return Policy(f"fixed size, {spares} spare node{'s' * (spares != 1)}", size, size)


def shrink_and_grow(fleet: Fleet, least: int = 1, *, at_once: bool = True) -> Policy:
    """All nodes that work, as long as there are `least`. The platform grows at once. Growth
    with the next failure is for comparison: it costs no recovery of its own."""
    if not 1 <= least <= fleet.nodes:
        raise PanthalassaError(
            f"at least {least} nodes of {fleet.nodes}: expected 1 to {fleet.nodes}"
        )
    name = "shrink and grow" if at_once else "shrink, grow with the next failure"
    return Policy(name, fleet.nodes, least, at_once)


@dataclass(frozen=True)
class Outcome:
    """What the time of each simulated run went to; arrays are [runs], in seconds.

    productive + snapshots + lost + recovery + waiting = wall.
    """

    policy: Policy
    interval: float
    """Seconds of training from one snapshot to the next."""
    finished: Bools
    """False: the run was given up after PATIENCE times its undisturbed days."""
    wall: Floats
    productive: Floats
    """Training that stands, on however many nodes."""
    snapshots: Floats
    """Stopped for snapshots, those before growth included, until these are on storage."""
    lost: Floats
    """Trained or saved, and done again after a failure."""
    recovery: Floats
    """After failures and to grow."""
    waiting: Floats
    """For a node, with too few to train on."""
    failures: NDArray[np.int64]
    growths: NDArray[np.int64]

    @property
    def days(self) -> Floats:
        """To the end; infinite for a run that was given up."""
        return np.where(self.finished, self.wall / DAY, np.inf)

    def quantiles(self, of: Sequence[float] = QUANTILES) -> Floats:
        """Days by which these shares of the runs are done."""
        return np.quantile(self.days, of, method="inverted_cdf")


def simulate(
    compute_days: float,
    fleet: Fleet,
    policy: Policy,
    reliability: Reliability,
    *,
    interval: float | None = None,
    speed: Callable[[Floats], Floats] | None = None,
    runs: int = 500,
    seed: int = 0,
) -> Outcome:
    """Play `runs` runs that would take `compute_days` on all GPUs of the fleet, undisturbed.

    interval: seconds between snapshots; None is the best for the policy's largest size.
    speed: of so many nodes [runs], as a share of the whole fleet's; None is in proportion.
    The same arguments give the same runs. Raises PanthalassaError for what can not be.
    """
    if not 0 < compute_days < math.inf:
        raise PanthalassaError(f"{compute_days:g} days of training: expected a number above 0")
    if runs < 1:
        raise PanthalassaError(f"{runs} simulated runs: expected 1 or more")
    if interval is None:
        interval = best_interval(reliability, policy.most * fleet.gpus_per_node).seconds
    check_interval(reliability, interval)
    share = speed or (lambda nodes: nodes / fleet.nodes)
    play = _Play(compute_days * DAY, fleet, policy, reliability, interval, share, runs)
    chance = np.random.default_rng(seed)
    while play.step(chance):
        pass
    return play.outcome()


class _Play:
    """All runs at one moment each; `step` takes each to its next event. Arrays are [runs]."""

    def __init__(
        self,
        work: float,
        fleet: Fleet,
        policy: Policy,
        reliability: Reliability,
        interval: float,
        speed: Callable[[Floats], Floats],
        runs: int,
    ) -> None:
        self.policy, self.speed, self.interval = policy, speed, interval
        self.nodes, self.most, self.least = fleet.nodes, policy.most, policy.least
        self.cost, self.write = reliability.snapshot_seconds, reliability.write_seconds
        self.restart, self.breaks = reliability.recovery_seconds, fleet.repair_share
        self.failing = reliability.failures_per_gpu_hour * fleet.gpus_per_node / HOUR
        """A second and node that trains."""
        self.returning = 1 / (fleet.repair_hours * HOUR)
        """A second and node that is away."""
        self.limit = PATIENCE * work
        self.each = min(interval, 2 * self.limit)
        """Seconds of training between snapshots; finite, also when there is none."""
        self.cycle = self.each + self.cost
        self.work = np.full(runs, work)
        """Seconds that the whole fleet has still to train."""
        self.phase = np.full(runs, TRAINING)
        self.size, self.away = np.full(runs, float(policy.most)), np.zeros(runs)
        """Nodes that it trains on, or will next, and nodes that are repaired."""
        self.left, self.pace = np.zeros(runs), np.ones(runs)
        """Seconds to the end of the phase; work a second of training."""
        self.stretch, self.saving = np.zeros((2, runs))
        """Seconds since training began or was last settled, and of saving after them."""
        self.wall, self.recovery, self.waiting = np.zeros((3, runs))
        self.productive, self.snapshots, self.lost = np.zeros((3, runs))
        self.failures, self.growths = np.zeros((2, runs), dtype=np.int64)
        self._train(np.full(runs, True))

    def step(self, chance: np.random.Generator) -> bool:
        """Take each run to its next event; False when all are over."""
        phase, on = self.phase.copy(), self.phase != OVER
        fail = np.where(phase == WAITING, 0.0, self.failing * self.size)
        rate = fail + self.returning * self.away
        draws = chance.random((3, len(phase)))
        until = np.full(len(phase), np.inf)
        np.divide(-np.log1p(-draws[0]), rate, out=until, where=rate > 0)
        ends = np.minimum(self.left, self.limit - self.wall)
        passed = np.where(on, np.minimum(until, ends), 0.0)
        self.wall += passed
        for kind, seconds in (
            (TRAINING, self.stretch),
            (SAVING, self.saving),
            (RECOVERING, self.recovery),
            (WAITING, self.waiting),
        ):
            seconds += np.where(phase == kind, passed, 0.0)
        event = on & (until < ends)
        given_up = on & ~event & (ends < self.left)
        self.left -= passed
        failed = event & (draws[1] * rate < fail)
        self._end_phase(on & ~event & ~given_up)
        self._return(event & ~failed)
        self._fail(failed, failed & (draws[2] < self.breaks))
        self._lose(given_up)
        self.phase[given_up] = OVER
        return bool((self.phase != OVER).any())

    def _end_phase(self, over: Bools) -> None:
        phase = self.phase.copy()
        done = over & (phase == TRAINING)
        self._keep(done, self.work / self.pace, self.stretch)
        self.work[done], self.phase[done] = 0.0, OVER
        saved = over & (phase == SAVING)
        whole = np.floor(self.stretch / self.cycle)
        rest = np.minimum(self.stretch - whole * self.cycle, self.each)
        self._keep(saved, whole * self.each + rest, self.stretch)
        self.snapshots += np.where(saved, self.saving, 0.0)
        self.saving[saved] = 0.0
        self.growths += saved
        self._recover(saved)
        self._train(over & (phase == RECOVERING))

    def _train(self, runs: Bools) -> None:
        """Train from the newest snapshot on, with one after each interval but at the end."""
        self.pace = np.where(runs, self.speed(self.size), self.pace)
        seconds = self.work / self.pace
        stops = np.maximum(np.ceil(seconds / self.each) - 1, 0.0)
        self.left = np.where(runs, seconds + stops * self.cost, self.left)
        self.phase[runs] = TRAINING

    def _return(self, runs: Bools) -> None:
        """A node is back. A run that trains on fewer than it may saves first, and then grows."""
        phase = self.phase.copy()
        self.away -= runs
        grown = np.minimum(self.most, self.nodes - self.away)
        self._recover(runs & (phase == WAITING))
        self.size = np.where(runs & (phase == RECOVERING), grown, self.size)
        grows = runs & (phase == TRAINING) & (self.size < grown) & self.policy.grows_at_once
        self._settle(grows)
        self.phase[grows], self.left[grows] = SAVING, self.cost + self.write

    def _fail(self, runs: Bools, breaks: Bools) -> None:
        self.failures += runs
        self._lose(runs)
        self.away += breaks
        self._recover(runs)

    def _recover(self, runs: Bools) -> None:
        """Start again on the nodes that there are, or wait for more."""
        self.size = np.where(runs, np.minimum(self.most, self.nodes - self.away), self.size)
        enough = self.size >= self.least
        self.phase[runs] = np.where(enough, RECOVERING, WAITING)[runs]
        self.left[runs] = np.where(enough, self.restart, np.inf)[runs]

    def _settle(self, runs: Bools) -> None:
        """Keep what snapshots on storage hold."""
        whole = np.floor(np.maximum(self.stretch - self.write, 0.0) / self.cycle)
        self._keep(runs, whole * self.each, whole * self.cycle)

    def _keep(self, runs: Bools, trained: Floats, passed: Floats) -> None:
        """Of `passed` seconds since training began, `trained` stand; snapshots took the others."""
        trained, passed = np.where(runs, trained, 0.0), np.where(runs, passed, 0.0)
        self.productive += trained
        self.snapshots += passed - trained
        self.work = np.maximum(self.work - trained * self.pace, 0.0)
        self.stretch -= passed

    def _lose(self, runs: Bools) -> None:
        """Lose what no snapshot on storage holds; one that growth waits for is not yet there."""
        self._settle(runs & (self.phase == TRAINING))
        self.lost += np.where(runs, self.stretch + self.saving, 0.0)
        self.stretch[runs] = self.saving[runs] = 0.0

    def outcome(self) -> Outcome:
        return Outcome(
            policy=self.policy,
            interval=self.interval,
            finished=self.work == 0,
            wall=self.wall,
            productive=self.productive,
            snapshots=self.snapshots,
            lost=self.lost,
            recovery=self.recovery,
            waiting=self.waiting,
            failures=self.failures,
            growths=self.growths,
        )


def simulated(fleet: Fleet, reliability: Reliability) -> list[Assumption]:
    """What `simulate` rests on, by name."""
    default = Fleet(fleet.gpus, fleet.gpus_per_node)
    share = "section 3.3.4 of the same record: about 78 % of the interruptions were hardware's"
    return [
        *(one for one in assumptions(reliability) if one.name != "horizon"),
        Assumption(
            "failures that take a node away",
            f"{fleet.repair_share:.0%}",
            share if fleet.repair_share == default.repair_share else "given",
        ),
        Assumption(
            "repair",
            f"{fleet.repair_hours:g} h on average, exponential",
            "assumed" if fleet.repair_hours == default.repair_hours else "given",
        ),
        Assumption("what goes together", f"{fleet.gpus_per_node} GPUs", "given"),
        Assumption("nodes that stand by", "do not fail", "model"),
        Assumption(
            "growth", "at once, after a checkpoint; costs a recovery", "the platform's policy"
        ),
        Assumption("nodes that return in a recovery", "join it", "model"),
        Assumption("speed", "in proportion to the GPUs, unless told otherwise", "model"),
    ]
