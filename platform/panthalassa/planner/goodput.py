"""Goodput before a run: the share of its time that is expected to train, and how often to snapshot.

A failure rate, what a recovery takes and what a snapshot costs go in; the shares of the time in the long
run come out, and the interval that loses the least. The one idea: between two failures X seconds of
training pass, exponential with mean M, of which only whole intervals T that are on storage stand. With a
snapshot that stops the loop for C and is on storage W later, those are floor((X - W) / (T + C)). A
recovery of R that failures interrupt begins again. So, without an approximation,

    goodput = T exp(-(R + W) / M) / (M (exp((T + C) / M) - 1))

which is Daly 2006 ("A higher order estimate of the optimum checkpoint interval for restart dumps",
equation 20) with W beside R. It is largest where (1 - x) exp(x) = exp(-C / M) at x = T / M; for C far
below M that is Young's sqrt(2 C M) (1974).
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from scipy.optimize import brentq

from panthalassa.errors import PanthalassaError

HOUR = 3600.0
LLAMA3_FAILURES = 419 / (54 * 24 * 16_384)
LLAMA3 = (
    "Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 GPUs (Llama Team 2024, "
    "arXiv:2407.21783, section 3.3.4)"
)
CLOSE = 0.02
"""Young's interval counts as right when it is as near as this to the exact one."""


@dataclass(frozen=True)
class Reliability:
    """What interrupts a run, and what that costs it. The defaults are for hundreds of GPUs and more;
    what a run of one's own took is in `panthalassa goodput`.

    Raises PanthalassaError for what can not be.
    """

    failures_per_gpu_hour: float = LLAMA3_FAILURES
    recovery_seconds: float = 300.0
    """From a failure to the first step after it: noticing, placing, starting, loading."""
    snapshot_seconds: float = 1.0
    """For which a snapshot stops the loop."""
    write_seconds: float = 30.0
    """From then until it is on storage, behind the loop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise PanthalassaError(
                    f"{field.name} = {value:g}: expected a finite number of 0 or more"
                )
        if self.snapshot_seconds == 0:
            raise PanthalassaError(
                "snapshot_seconds = 0: a snapshot that costs nothing would be taken all the time; "
                "expected seconds above 0"
            )

    def between_failures(self, gpus: float) -> float:
        """Mean seconds from one failure to the next among so many GPUs; infinite without failures."""
        rate = self.failures_per_gpu_hour * gpus / HOUR
        return 1 / rate if rate else math.inf


@dataclass(frozen=True)
class Interval:
    """Seconds of training from one snapshot to the next."""

    seconds: float
    bound: Literal["loss", "writing", "none"]
    """What sets it: the least loss; that no snapshot begins while another is written; nothing, because
    nothing fails."""
    young_seconds: float
    """sqrt(2 C M)."""
    exact_seconds: float
    """Of the least loss."""

    @property
    def formula(self) -> str:
        """In words: which formula gave it, and how far the other is from it."""
        if self.bound == "none":
            return "no failures, no snapshots"
        if self.bound == "writing":
            return (
                f"as long as a snapshot is written; the least loss would be at "
                f"{self.exact_seconds:.3g} s, were they written faster"
            )
        off = self.young_seconds / self.exact_seconds - 1
        if abs(off) <= CLOSE:
            return f"sqrt(2 C M) (Young 1974, Daly 2006), {abs(off):.1%} from the exact optimum"
        return f"the exact optimum; sqrt(2 C M) (Young 1974) would be {off:+.0%} from it"


@dataclass(frozen=True)
class ExpectedGoodput:
    """What the time of a long run is expected to go to, as shares of it that add up to 1."""

    gpus: float
    between_failures: float
    """Mean seconds."""
    interval: float
    """Seconds of training from one snapshot to the next."""
    productive: float
    """Training that stands: the goodput."""
    snapshots: float
    """Stopped for a snapshot, of the training that stands."""
    lost: float
    """Trained, and trained again after a failure."""
    recovery: float

    def days(self, compute_days: float) -> float:
        """Days that are expected for so many days of undisturbed training without snapshots."""
        return compute_days / self.productive if self.productive else math.inf


@dataclass(frozen=True)
class Assumption:
    """What a figure rests on, to be shown beside it."""

    name: str
    value: str
    source: str


def best_interval(reliability: Reliability, gpus: float) -> Interval:
    """The interval with the highest goodput for so many GPUs that train together."""
    mean = reliability.between_failures(_counted(gpus))
    cost = reliability.snapshot_seconds
    if math.isinf(mean):
        return Interval(math.inf, "none", math.inf, math.inf)
    young, exact = math.sqrt(2 * cost * mean), mean * _root(cost / mean)
    write = reliability.write_seconds
    if write > exact:
        return Interval(write, "writing", young, exact)
    return Interval(exact, "loss", young, exact)


def _root(cost: float) -> float:
    """x in (0, 1) with (1 - x) exp(x) = exp(-cost): 1 + W(-exp(-1 - cost)) of Lambert's function, which
    itself loses all digits where it is needed, near its branch point."""
    young = math.sqrt(2 * cost)
    if cost < 1e-10:
        return young * (1 - young / 3)
    if cost > 30:
        return 1.0  # to double precision
    return float(brentq(lambda x: math.log1p(-x) + x + cost, 0.0, 1 - 1e-15, xtol=1e-18))


def expected(
    reliability: Reliability, gpus: float, interval: float | None = None
) -> ExpectedGoodput:
    """Shares of the time for so many GPUs; at the best interval, or at another, in seconds.

    Raises PanthalassaError for an interval that is not above 0, or is shorter than a snapshot's writing.
    """
    mean = reliability.between_failures(_counted(gpus))
    each = best_interval(reliability, gpus).seconds if interval is None else interval
    check_interval(reliability, each)
    if math.isinf(mean):
        stands = 1 / (1 + reliability.snapshot_seconds / each)
        return ExpectedGoodput(gpus, mean, each, stands, 1 - stands, 0.0, 0.0)
    cycle = (each + reliability.snapshot_seconds) / mean
    delay = (reliability.recovery_seconds + reliability.write_seconds) / mean
    productive = each / mean * math.exp(-delay - cycle) / -math.expm1(-cycle)
    snapshots = productive * reliability.snapshot_seconds / each
    recovery = -math.expm1(-reliability.recovery_seconds / mean)
    lost = max(0.0, 1 - productive - snapshots - recovery)
    return ExpectedGoodput(gpus, mean, each, productive, snapshots, lost, recovery)


def check_interval(reliability: Reliability, interval: float) -> None:
    """Raise PanthalassaError for seconds between snapshots that can not be."""
    if not interval > 0:
        raise PanthalassaError(f"an interval of {interval:g} s: expected seconds above 0")
    if interval < reliability.write_seconds:
        raise PanthalassaError(
            f"an interval of {interval:g} s is shorter than the {reliability.write_seconds:g} s that a "
            "snapshot takes to be written: make it longer, or write_seconds shorter"
        )


def _counted(gpus: float) -> float:
    if not (gpus > 0 and math.isfinite(gpus)):
        raise PanthalassaError(f"{gpus:g} GPUs: expected a number above 0")
    return gpus


def assumptions(reliability: Reliability) -> list[Assumption]:
    """What `expected` and `best_interval` rest on, by name."""
    default = Reliability()
    rate = reliability.failures_per_gpu_hour
    same = math.isclose(rate, LLAMA3_FAILURES)
    found = [Assumption("failure rate", f"{rate:.3g} a GPU-hour", LLAMA3 if same else "given")]
    for name, value, usual, why in [
        (
            "recovery",
            reliability.recovery_seconds,
            default.recovery_seconds,
            "assumed; `panthalassa goodput RUN` has a run's own, from loss to step",
        ),
        (
            "snapshot's stall",
            reliability.snapshot_seconds,
            default.snapshot_seconds,
            "assumed: the copy of a rank's state to host memory",
        ),
        (
            "snapshot's writing",
            reliability.write_seconds,
            default.write_seconds,
            "assumed: hashed and uploaded behind the loop",
        ),
    ]:
        found.append(Assumption(name, f"{value:g} s", why if value == usual else "given"))
    return [
        *found,
        Assumption(
            "failures", "independent, as likely at any time", "model: Young 1974, Daly 2006"
        ),
        Assumption("reach", "any failure stops all ranks", "training is synchronous"),
        Assumption("failure in a recovery", "the recovery begins again", "model: Daly 2006"),
        Assumption("horizon", "a run of many failures", "model: shares in the long run"),
    ]
