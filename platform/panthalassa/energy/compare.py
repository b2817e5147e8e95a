"""Two runs compared: by how many percent an iteration, or a token, took more or less energy.

In come the lines of both ledgers and both configurations; out comes a difference with a confidence
interval, or the reasons why these runs say nothing about each other. Steps are correlated (clocks,
temperature, the data), so the interval is that of a bootstrap over blocks of them: circular moving
blocks (Politis & Romano 1992), whose length the correlation decides (Politis & White 2004, with the
correction of Patton, Politis & White 2009). It tells how well the means are known, not how true the
sensors are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panthalassa.config import Config, sequence_lengths
from panthalassa.energy.account import Account, Step, account, standing
from panthalassa.energy.ledger import read
from panthalassa.energy.lines import Line, Metering
from panthalassa.energy.meters import PERIODS, SENSOR
from panthalassa.errors import PanthalassaError
from panthalassa.run_config import kept
from panthalassa.storage import Storage

Metric = Literal["j_per_iteration", "j_per_token"]
CONFIDENCE = 0.95
WARM_UP = 3
"""Steps behind a start that do not count."""
FEWEST = 12
"""Windows of a run that a comparison needs."""
MOST = 2000
"""Windows that are looked at; of a longer run, neighbours are merged."""
UNKNOWN = "whose energy is not known"
REPLICATES = 4000
SEED = 0
T = (1.96**2 + 1) / 4
"""How much wider, over the degrees of freedom, the middle 95 % of Student's t are than of a normal."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recorded:
    """What is compared of a run."""

    uri: str
    config: Config
    lines: Sequence[Line]

    @cached_property
    def account(self) -> Account:
        return account(self.lines)

    @cached_property
    def tokens_per_step(self) -> float:
        """Over the steps that stand."""
        steps = standing(self.lines)
        return sum(step.tokens for step in steps) / (len(steps) or 1)


@dataclass(frozen=True)
class Sample:
    """The windows of one run: as few steps each as have a figure."""

    joules: Floats
    amounts: Floats
    """Iterations or tokens."""
    steps: int
    left_out: Mapping[str, int]
    """Steps, and why."""

    @property
    def mean(self) -> float:
        return float(self.joules.sum() / self.amounts.sum())


@dataclass(frozen=True)
class Comparison:
    """What run B takes beside run A, in percent."""

    metric: Metric
    a: Sample
    b: Sample
    percent: float
    low: float
    high: float
    objections: Sequence[str]
    """Why the runs are not comparable; these were allowed."""


def open_run(run: Storage) -> Recorded:
    """A run's configuration and ledger. Raises PanthalassaError when there is none, or it is damaged."""
    return Recorded(run.uri, kept(run), read(run))


def compare(
    a: Recorded, b: Recorded, metric: Metric = "j_per_iteration", allow: bool = False
) -> Comparison:
    """How run B differs from run A.

    Raises PanthalassaError when they are not comparable, unless that is allowed, and when one has too
    few undisturbed steps.
    """
    for run in (a, b):
        if run.account.source is None:
            raise PanthalassaError(
                f"the energy of {run.uri} was not measured: no rank had a power source (NVML, RAPL), or "
                "its energy.source is none"
            )
    objections = list(_objections(a, b))
    if objections and not allow:
        raise PanthalassaError(
            f"{a.uri} and {b.uri} are not comparable: {'; '.join(objections)}. "
            "--allow compares them all the same."
        )
    samples = [sample(run.lines, metric) for run in (a, b)]
    for run, found in zip((a, b), samples, strict=True):
        if len(found.joules) and found.mean <= 0:
            raise PanthalassaError(
                f"the steps of {run.uri} took no energy: its {run.account.source} stood still"
            )
    for run, found in zip((a, b), samples, strict=True):
        if len(found.joules) < FEWEST:
            left = ", ".join(f"{count} {why}" for why, count in found.left_out.items())
            remedy = "Train it for longer"
            if found.left_out.get(UNKNOWN, 0) > found.steps:
                remedy = f"`panthalassa energy show {run.uri}` tells why"
            raise PanthalassaError(
                f"{run.uri} has {len(found.joules)} undisturbed windows of energy, too few for a "
                f"comparison, which takes {FEWEST} (steps left out: {left or 'none'}). {remedy}."
            )
    first, second = samples
    percent, low, high = difference(first, second)
    return Comparison(metric, first, second, percent, low, high, objections)


def _objections(a: Recorded, b: Recorded) -> Iterator[str]:
    def differs(key: str, one: Any, other: Any) -> Iterator[str]:
        if one != other:
            yield f"{key} is {one} and {other}"

    models = a.config.model.identity(), b.config.model.identity()
    for key in models[0]:
        yield from differs(f"model.{key}", models[0][key], models[1][key])
    batches = a.config.train.global_batch, b.config.train.global_batch
    yield from differs("train.global_batch", *batches)
    lengths = (dict(sequence_lengths(run.config)) for run in (a, b))
    yield from differs("train.sequence_length", *(list(found.values()) for found in lengths))
    yield from differs("the source of power", a.account.source, b.account.source)
    metered = [[line for line in run.lines if isinstance(line, Metering)] for run in (a, b)]
    counts = (sorted({len(line.devices) for line in lines}) for lines in metered)
    yield from differs(
        "the number of devices", *(", then ".join(map(str, each)) for each in counts)
    )
    tokens = [run.tokens_per_step for run in (a, b)]
    if tokens[0] != tokens[1]:  # phases, batches that changed, a run that ended early
        yield "tokens a step are {:.6g} and {:.6g} on average".format(*tokens)
    for run, lines in zip((a, b), metered, strict=True):
        if blind := max(line.blind for line in lines):
            yield f"{blind} ranks of {run.uri} could not measure"


def sample(lines: Iterable[Line], metric: Metric) -> Sample:
    """A run's undisturbed steps, in windows that are long enough for a figure."""
    lines = list(lines)
    shortest = PERIODS * account(lines).refresh
    left_out: Counter[str] = Counter()
    joules: list[float] = []
    amounts: list[float] = []
    window: list[Step] = []
    steps = 0
    for step in standing(lines):
        why = _disturbed(step)
        if why or (window and window[-1].step != step.step - 1):
            left_out["in windows too short for a figure"] += len(window)
            window = []
        if why:
            left_out[why] += 1
            continue
        window.append(step)
        if sum(part.seconds for part in window) >= shortest:
            joules.append(sum(part.joules or 0.0 for part in window))
            of = (part.tokens if metric == "j_per_token" else 1 for part in window)
            amounts.append(sum(of))
            steps += len(window)
            window = []
    left_out["in windows too short for a figure"] += len(window)
    return Sample(np.array(joules), np.array(amounts), steps, +left_out)


def _disturbed(step: Step) -> str | None:
    if step.joules is None:
        return UNKNOWN
    if step.since_start < WARM_UP:
        return "warming up"
    if step.disturbed:
        return "behind an evaluation or a checkpoint"
    return None


def difference(a: Sample, b: Sample) -> tuple[float, float, float]:
    """By how many percent the mean of `b` differs from that of `a`, and the ends of its interval."""
    chance = np.random.default_rng(SEED)
    logs = [_replicates(_merged(found), chance) - math.log(found.mean) for found in (a, b)]
    log = math.log(b.mean / a.mean)
    spread = logs[1] - logs[0]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(log - spread, [tail, 1 - tail])
    percent, least, most = (100 * math.expm1(value) for value in (log, low, high))
    return percent, least, most


def _merged(found: Sample) -> Sample:
    """Neighbours together, so that there are at most MOST windows."""
    each = math.ceil(len(found.joules) / MOST)
    starts = np.arange(0, len(found.joules), each)
    joules, amounts = (np.add.reduceat(x, starts) for x in (found.joules, found.amounts))
    return Sample(joules, amounts, found.steps, found.left_out)


def _replicates(found: Sample, chance: np.random.Generator) -> Floats:
    """The logarithm of the mean of resampled runs. [REPLICATES]"""
    n = len(found.joules)
    automatic = block_length(found.joules - found.mean * found.amounts)
    length = max(automatic, math.ceil(n ** (1 / 3)))  # few windows do not show how they correlate
    blocks = math.ceil(n / length)
    starts = chance.integers(n, size=(REPLICATES, blocks))
    joules, amounts = (_sums(x, length)[starts].sum(1) for x in (found.joules, found.amounts))
    # A few blocks know their own spread badly, and their mean follows them: Student's t instead of a
    # normal (Cornish-Fisher, first term), and n - length windows instead of n.
    wider = (1 + T / max(1, blocks - 1)) * math.sqrt(n / max(1, n - length))
    mean = math.log(found.mean)
    return np.asarray(mean + wider * (np.log(joules / amounts) - mean))


def _sums(values: Floats, length: int) -> Floats:
    """The sums of all blocks of that length, around the end. [n]"""
    around = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: length - 1]]))])
    return np.asarray(around[length:] - around[:-length])


def block_length(values: Floats) -> int:
    """Of circular blocks, from the correlation of `values`: section 3.2 of Politis & White (2004)."""
    n = len(values)
    values = values - values.mean()
    lags = max(5, math.ceil(math.sqrt(math.log10(n))))
    most = min(n - 1, math.ceil(math.sqrt(n)) + lags)
    covariance = np.array([values[: n - k] @ values[k:] / n for k in range(most + 1)])
    if covariance[0] <= 0:
        return 1
    small = 2 * math.sqrt(math.log10(n) / n)
    large = [k for k in range(1, most + 1) if abs(covariance[k]) >= small * covariance[0]]
    # The lag behind which `lags` in a row are small.
    cut = next((k for k in [0, *large] if not any(k < other <= k + lags for other in large)), most)
    width = min(max(1, 2 * cut), most)
    k = np.arange(-width, width + 1)
    flat = np.minimum(1.0, 2 * (1 - np.abs(k) / width))
    weighted = flat * covariance[np.abs(k)]
    slope, level = float((np.abs(k) * weighted).sum()), float(weighted.sum())
    if level <= 0:
        return 1
    length = (1.5 * slope**2 / level**2 * n) ** (1 / 3)
    return int(min(max(1, math.ceil(length)), math.ceil(min(3 * math.sqrt(n), n / 3))))


def explain(found: Comparison) -> Iterator[tuple[str, str]]:
    """A table for people: names and what stands beside them."""
    what = "J/token" if found.metric == "j_per_token" else "J/iteration"
    yield (
        "difference",
        f"{found.percent:+.1f} % {what}, {CONFIDENCE:.0%} interval {found.low:+.1f} to "
        f"{found.high:+.1f} %",
    )
    for name, run in (("A", found.a), ("B", found.b)):
        left = ", ".join(f"{count} {why}" for why, count in run.left_out.items())
        yield (
            f"run {name}",
            f"{run.mean:.6g} {what} over {run.steps} steps in {len(run.joules)} windows; steps left "
            f"out: {left or 'none'}",
        )
    yield (
        "convention",
        f"a block bootstrap over windows; the ±{SENSOR:.0%} of the sensors are not in the interval: on "
        "the same devices they are the same in both runs",
    )
    for objection in found.objections:
        yield "NOT COMPARABLE", f"{objection} (--allow)"
