"""The account of a run's energy: what its joules went to, over all attempts and commands.

What comes in are the lines of the energy ledger, in order. `account` walks through them: steps stand
until they are trained again, and then their energy counts as lost; what was spent between steps keeps
its name, except that starting again after a death is part of what the death cost. Between two attempts
nobody reads; a counter that runs since the driver was loaded still tells what its device took.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from panthalassa.energy.lines import (
    Began,
    Joules,
    Line,
    Metering,
    Rest,
    Steps,
    StoodBy,
    Window,
)
from panthalassa.energy.meters import PERIODS, bound
from panthalassa.energy.readings import Readings
from panthalassa.line_ledger import Commands, Ended, Lost, Waited

PHASES = (
    "productive", "data_wait", "lost", "start", "evaluation", "checkpoint", "standby", "other",
)  # fmt: skip
DETAILED = 10_000
"""Steps that are remembered one by one, at least."""
PEAK = 1.0
"""Seconds over which a peak of power is a mean, at least."""
KWH = 3.6e6
"""Joules."""


@dataclass(frozen=True)
class Step:
    """A step that stands."""

    step: int
    seconds: float
    tokens: int
    joules: float | None
    data_wait: float
    since_start: int
    """Steps of the same attempt before it."""
    disturbed: bool
    """Whether something else (an evaluation, a checkpoint) came right before it."""
    span: int
    """Which stretch of steps with nothing in between."""


@dataclass(frozen=True)
class Account:
    """What the energy of a run went to. Joules are those of the devices that were measured."""

    joules: float
    joules_by_phase: Mapping[str, float]
    """Of all PHASES: `lost` is what restarts cost, repeated steps included."""
    steps: int
    """That stand and have joules."""
    j_per_iteration: float | None
    """Over these steps, waiting for samples included; None without any."""
    j_per_token: float | None
    """The same for each position that was processed."""
    bound: float | None
    """Relative error of these two."""
    source: str | None
    refresh: float
    """Seconds between two values of the slowest device."""
    devices: int
    """In the newest attempt."""
    mean_watts: float | None
    """Over all steps, repeated ones included."""
    peak_watts: float | None
    """The highest mean over a second or more of steps."""
    pue: float | None
    grid_kg_per_kwh: float | None
    uncovered_seconds: float
    """In which steps, restarts or what lies between steps took energy that is not known."""
    unmetered_seconds: float
    """From the beginnings of commands until their meters were opened; not in the joules either."""
    marked: Mapping[str, int]
    """Why windows have no joules, and how many."""
    missing: int
    """Commands whose energy is not known, because their journals are gone or damaged."""
    unwritten_steps: int
    """That were trained, and whose lines nobody wrote, because the command was killed before."""

    @property
    def kwh(self) -> float:
        return self.joules / KWH

    @property
    def facility_kwh(self) -> float | None:
        """With everything around the devices: kwh x PUE."""
        return None if self.pue is None else self.kwh * self.pue

    @property
    def carbon_kg(self) -> float | None:
        """kg of CO₂: the facility's kWh, or the devices' without a PUE, x the grid's intensity."""
        if self.grid_kg_per_kwh is None:
            return None
        return (self.facility_kwh or self.kwh) * self.grid_kg_per_kwh


def account(lines: Iterable[Line]) -> Account:
    """Tell from the lines of all commands, in order, what the energy went to."""
    return _walked(lines).account()


def so_far(lines: Iterable[Line]) -> list[tuple[int, float, float]]:
    """After which step, at what second since 1970, all joules of the run so far: what was lost, too.

    Of steps that were trained again only the last time counts as their place; the last of all has what
    came behind it.
    """
    walk = Walk()
    found: list[tuple[int, float, float]] = []
    for line in lines:
        walk.take(line)
        if isinstance(line, Steps):
            while found and found[-1][0] >= line.first:
                found.pop()
            found.append((line.last, line.at, walk.joules_so_far))
    if found:
        found[-1] = *found[-1][:2], walk.joules_so_far
    return found


def standing(lines: Iterable[Line]) -> list[Step]:
    """The steps that stand, in order."""
    return _walked(lines, detailed=sys.maxsize).steps


def _walked(lines: Iterable[Line], detailed: int | None = None) -> "Walk":
    walk = Walk(detailed)
    for line in lines:
        walk.take(line)
    return walk


@dataclass(frozen=True)
class Sums:
    """Of steps that stand and have joules."""

    steps: float = 0.0
    joules: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    data_wait: float = 0.0
    spans: int = 0
    """In how many stretches they lie with nothing in between."""
    last_span: int = 0

    def plus(self, steps: Iterable[Step]) -> "Sums":
        """With steps that follow."""
        known = [step for step in steps if step.joules is not None]
        spans = {self.last_span} | {step.span for step in known}
        return Sums(
            self.steps + len(known),
            self.joules + sum(step.joules or 0.0 for step in known),
            self.seconds + sum(step.seconds for step in known),
            self.tokens + sum(step.tokens for step in known),
            self.data_wait + sum(step.data_wait for step in known),
            self.spans + len(spans) - 1,
            max(spans),
        )

    def scaled(self, share: float) -> "Sums":
        parts = ("steps", "joules", "seconds", "tokens", "data_wait")
        return replace(self, **{part: getattr(self, part) * share for part in parts})


class Walk:
    """The walk of `account` through the lines; it tells what is known so far.

    What it remembers does not grow with the run: of the steps that stand the newest, DETAILED or twice
    as many, and the sums of all before them. To undo these counts them as alike.
    """

    def __init__(self, detailed: int | None = None) -> None:
        self.joules = dict.fromkeys(PHASES, 0.0)
        """Of all but the steps that stand."""
        self.steps: list[Step] = []
        """Those that stand so far, as far as they are remembered."""
        self._detailed = detailed or DETAILED
        self._old, self._old_steps = Sums(), range(0)
        """Of those before."""
        self.source: str | None = None
        self.refresh = 0.0
        self.devices = 0
        self.began: Began | None = None
        self.step_joules = self.step_seconds = self.uncovered = self.unmetered = 0.0
        """Of all steps, repeated ones included; and seconds that are not known."""
        self._known = Commands()
        self._unwritten = self._last = 0
        """Steps without a line; and the newest step that has one and stands."""
        self._lost_steps = 0.0
        """Joules of those that were repeated."""
        self.peak: float | None = None
        self.marked: Counter[str] = Counter()
        self._span = self._since_start = 0
        """Spans are counted from 1."""
        self._start = "start"
        """What the start of this attempt counts as."""
        self._lost: Lost | None = None
        """The end of the attempt before, as long as no other one measures."""
        self._waited = self._alive = self._spent = self._seen = 0.0
        """`_alive`, `_spent` and `_seen`: when somebody read last, what was spent between steps was told
        last, and anything was."""
        self._metered = False
        """Whether this command has opened its meters."""
        self._readings = Readings()
        self._run = (0.0, 0.0)
        """Joules and seconds of the newest steps, for the peak, without what lies between them."""

    def take(self, line: Line) -> None:
        match line:
            case Began():
                self._known.note(line)
                self._end(self._seen)  # killed
                self.began, self._readings = line, Readings()
                self._start, self._metered = "start", False
            case Waited():
                self._waited += line.seconds
            case Metering():
                self._meter(line)
            case Steps():
                self._train(line)
            case Rest():
                self._spend(line.at, line.joules)
            case Window():
                self.refresh = max(self.refresh, line.refresh)
                self._readings.renew(line)
                problems = (device.problem for device in line.devices.values())
                self.marked.update(problem for problem in problems if problem)
            case StoodBy():
                self.joules["standby"] += line.joules or 0.0
                self.uncovered += line.seconds if line.joules is None else 0.0
            case Lost():
                self._lost, self._start = line, "start" if line.planned else "lost"
            case Ended():
                self._end(line.at)
        self._seen = line.at
        if isinstance(line, Metering | Steps | Rest | Window):
            self._alive = line.at
        if isinstance(line, Metering | Steps | Rest):
            self._spent = line.at

    @property
    def joules_so_far(self) -> float:
        """Of everything."""
        return sum(self.joules.values()) - self._lost_steps + self.step_joules

    def account(self) -> Account:
        sums = self._old.plus(self.steps)
        mean = self.step_joules / self.step_seconds if self.step_seconds else None
        phases = self.joules | {
            "productive": sums.joules - sums.data_wait,
            "data_wait": sums.data_wait,
        }
        return Account(
            joules=sum(phases.values()),
            joules_by_phase=phases,
            steps=round(sums.steps),
            j_per_iteration=sums.joules / sums.steps if sums.steps else None,
            j_per_token=sums.joules / sums.tokens if sums.tokens else None,
            bound=bound(self.refresh, sums.seconds, sums.spans) if sums.steps else None,
            source=self.source,
            refresh=self.refresh,
            devices=self.devices,
            mean_watts=mean,
            peak_watts=max(self.peak, mean) if self.peak and mean else self.peak,
            pue=self.began.pue if self.began else None,
            grid_kg_per_kwh=self.began.grid_kg_per_kwh if self.began else None,
            uncovered_seconds=self.uncovered,
            unmetered_seconds=self.unmetered,
            marked=self.marked,
            missing=self._known.missing,
            unwritten_steps=self._unwritten,
        )

    def _end(self, at: float) -> None:
        """The command ended then: what its devices took since a loss is not known."""
        if self._lost and self.source:
            self.uncovered += max(0.0, at - self._alive)
        self._lost = None

    def _meter(self, line: Metering) -> None:
        if self._lost:
            self._bridge(line, self._lost)
        elif self.began and not self._metered:
            self.unmetered += max(0.0, line.at - self.began.at)
        self._metered = True
        self.source, self.refresh = line.source, max(self.refresh, line.refresh)
        self.devices = len(line.devices)
        if line.blind:
            self.marked[f"{line.blind} ranks can not measure"] += 1
        self._readings = Readings(line.devices)
        self._lost, self._waited, self._since_start = None, 0.0, 0
        self._span += 1

    def _bridge(self, line: Metering, lost: Lost) -> None:
        """Count what the devices took between two attempts, as far as their counters tell."""
        seconds = max(0.0, line.at - self._alive)
        joules, share = self._readings.since(line.devices)
        waited = min(1.0, self._waited / seconds) if seconds else 0.0
        self.joules["standby"] += joules * waited
        self.joules["start" if lost.planned else "lost"] += joules * (1 - waited)
        self.uncovered += seconds * (1 - share)

    def _spend(self, at: float, joules: Joules, seconds: float = 0.0) -> None:
        """Of what lies between the last steps and those of `seconds` that ended at `at`."""
        if None in joules.values():
            self.uncovered += max(0.0, at - seconds - self._spent)
        for phase, spent in joules.items():
            self._readings.note(at, spent or 0.0)
            name = {"start": self._start, "step": "other", "data_wait": "other"}.get(phase, phase)
            self.joules[name] += spent or 0.0

    def _undo(self, first: int) -> None:
        """Count the steps from `first` on as lost: they are trained again."""
        while self.steps and self.steps[-1].step >= first:
            self._lose(self.steps.pop().joules or 0.0)
        if not self.steps and first < self._old_steps.stop:
            stand = range(self._old_steps.start, max(first, self._old_steps.start))
            sums = self._old.scaled(len(stand) / len(self._old_steps))
            self._lose(self._old.joules - sums.joules)
            self._old, self._old_steps = sums, stand

    def _lose(self, joules: float) -> None:
        self.joules["lost"] += joules
        self._lost_steps += joules

    def _forget(self) -> None:
        """Keep only the sums of steps that are old enough."""
        old, self.steps = self.steps[: -self._detailed], self.steps[-self._detailed :]
        self._old = self._old.plus(old)
        start = self._old_steps.start if self._old_steps else old[0].step
        self._old_steps = range(start, old[-1].step + 1)

    def _train(self, line: Steps) -> None:
        self._undo(line.first)
        self._unwritten += max(0, line.first - self._last - 1)
        self._last = line.last
        self._spend(line.at, line.before, sum(line.seconds))
        self._readings.note(line.at, sum(joules or 0.0 for joules in line.joules))
        if line.before or not self.steps or self.steps[-1].step != line.first - 1:
            self._span += 1
        each = zip(line.seconds, line.tokens, line.joules, line.data_wait, strict=True)
        for number, (seconds, tokens, joules, waited) in enumerate(each):
            disturbed = number == 0 and bool(line.before)
            step = Step(
                line.first + number, seconds, tokens, joules, waited or 0.0,
                self._since_start, disturbed, self._span,
            )  # fmt: skip
            self.steps.append(step)
            self._since_start += 1
            self._power(step)
        if len(self.steps) >= 2 * self._detailed:
            self._forget()

    def _power(self, step: Step) -> None:
        if step.joules is None:
            self.uncovered += step.seconds
            self._run = (0.0, 0.0)
            return
        self.step_joules += step.joules
        self.step_seconds += step.seconds
        joules, seconds = self._run
        self._run = joules + step.joules, seconds + step.seconds
        if self._run[1] >= max(PEAK, PERIODS * self.refresh):
            self.peak = max(self.peak or 0.0, self._run[0] / self._run[1])
            self._run = (0.0, 0.0)
