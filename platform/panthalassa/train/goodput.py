"""Goodput: what every second of a run went to, from the start of each command to its end.

What comes in are the lines that the driver writes whenever something is over (`goodput_ledger`): when,
and how many seconds it took. `account` walks through them. Each line claims the time before it that it
says it took; what lies between takes its name from what the run was at (starting, recovering) or,
between steps, from what came next. So every second of every command is counted once, and the parts add
up to the whole. Steps that were trained again later are taken from training and counted as lost.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from panthalassa.line_ledger import Began, Commands, Ended, LedgerLine, Lost, Waited, told_missing

DETAILED = 2000
"""Lines of steps that are remembered one by one, at least: those of two hours or more."""

Part = Literal[
    "productive",
    "data_wait",
    "lost",
    "start",
    "compile",
    "evaluation",
    "checkpoint",
    "recovery",
    "resize",
    "standby",
    "finish",
    "other",
]


class Launched(LedgerLine):
    """The workers of an attempt were asked for."""

    kind: Literal["launched"] = "launched"
    workers: int


class Spent(LedgerLine):
    """Training stood still for this."""

    kind: Literal["spent"] = "spent"
    what: Literal["compile", "evaluation", "checkpoint"]
    seconds: float


class Steps(LedgerLine):
    """Optimizer steps `first` to `last`, both included; the first of a run is number 1."""

    kind: Literal["steps"] = "steps"
    first: int
    last: int
    seconds: float
    data_seconds: float
    """Waiting for samples; part of `seconds`."""


Line = Began | Waited | Launched | Spent | Steps | Lost | Ended


@dataclass(frozen=True)
class Goodput:
    """What the time of a run went to."""

    parts: Mapping[Part, float]
    """Seconds; of every part, also of those that took none."""
    commands: int
    restarts: int
    """Times that the workers were lost without being told to end."""
    resizes: int
    lost_steps: int
    """Steps that were trained again later."""
    mttr_seconds: float | None
    """Mean time to recovery: from the last sign of life before a loss to the end of the first step
    after it. None when no step followed any loss."""
    missing: int
    """Commands whose time is not known, because their journals are gone or damaged."""

    @property
    def seconds(self) -> float:
        """The wall time of all commands."""
        return math.fsum(self.parts.values())

    @property
    def fraction(self) -> float:
        """The share of the time that trained the model."""
        return self.parts["productive"] / (self.seconds or 1.0)


def account(lines: Iterable[Line]) -> Goodput:
    """Tell from the lines of all commands, in order, what the time went to."""
    walk = Walk()
    for line in lines:
        walk.take(line)
    return walk.goodput()


@dataclass(frozen=True)
class Span:
    """A stretch of time that went to one part, in seconds of the run's time: from the start of its first
    command on, without the time between commands."""

    part: Part
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """When the time of a run went to what."""

    spans: list[Span]
    """In order; they do not overlap, and their lengths add up to the parts of `account`."""
    moments: list[tuple[float, Line]]
    """Each line with its second of the run's time."""


def timeline(lines: Iterable[Line]) -> Timeline:
    """Tell from the lines of all commands, in order, when the time went to what."""
    found: list[Span] = []
    walk, moments = Walk(found.append), []
    for line in lines:
        walk.take(line)
        moments.append((walk.elapsed, line))
    found += walk.rest()
    spans = [span for span in found if span.end > span.start]
    return Timeline(sorted(spans, key=lambda span: span.start), moments)


@dataclass(frozen=True)
class _Trained:
    """Steps that stand so far, in seconds of the run's time."""

    first: int
    last: int
    start: float
    end: float
    waiting: float
    """The share of the time that went to waiting for data."""

    def between(self, first: int, last: int) -> "_Trained":
        """The part of these steps, all of which count as equally long."""
        each = (self.end - self.start) / (self.last - self.first + 1)
        start = self.start + (first - self.first) * each
        end = self.end - (self.last - last) * each
        return _Trained(first, last, start, end, self.waiting)

    def spans(self) -> Iterator[Span]:
        trained = self.end - (self.end - self.start) * self.waiting
        yield Span("productive", self.start, trained)
        yield Span("data_wait", trained, self.end)


def _as_one(runs: Sequence[_Trained]) -> _Trained:
    """Steps that follow each other, by their sums."""
    lengths = [run.end - run.start for run in runs]
    seconds = math.fsum(lengths)
    waiting = math.fsum(run.waiting * length for run, length in zip(runs, lengths, strict=True))
    return _Trained(runs[0].first, runs[-1].last, 0.0, seconds, waiting / (seconds or 1.0))


class Walk:
    """The walk of `account` and `timeline` through the lines; `goodput` tells what is known so far.

    What it remembers does not grow with the run: of the steps that stand, each line of the newest
    DETAILED, and one line for all before them. To undo these counts them as equally long. With `note`,
    which gets the spans as they are known, all are remembered.
    """

    def __init__(self, note: Callable[[Span], None] | None = None) -> None:
        self.elapsed = 0.0
        """Seconds of the run's time."""
        self.parts: dict[Part, float] = dict.fromkeys(get_args(Part), 0.0)
        """Seconds of all parts but training."""
        self.trained: list[_Trained] = []
        """What stands, by step."""
        self._note = note
        self._known = Commands()
        self.commands = self.restarts = self.resizes = self.lost_steps = 0
        self.repairs: list[float] = []
        self.cursor: float | None = None
        """Up to when all time of the command has a name; None between two commands."""
        self.state: Part | None = None
        """What the command is at; None when it trains."""
        self.idle: list[tuple[float, float]] = []
        """Stretches since the last step that nothing claims, while it trains."""
        self.alive: list[float] = []
        """The last sign of life before each loss that no step has followed yet."""

    def take(self, line: Line) -> None:
        match line:
            case Began():
                self._known.note(line)
                self.end()
                self._claim(line.at, 0.0)
            case Waited():
                self._enter("standby", self._claim(line.at, line.seconds))
            case Launched():
                self._claim(line.at, 0.0)
            case Spent():
                self._enter(line.what, self._claim(line.at, line.seconds))
            case Steps():
                self._train(line)
                if self._note is None and len(self.trained) >= 2 * DETAILED:
                    old, self.trained = self.trained[:-DETAILED], self.trained[-DETAILED:]
                    self.trained.insert(0, _as_one(old))
            case Lost():
                self._lose(line)
            case Ended():
                self._claim(line.at, 0.0)
                self.end()

    def end(self) -> None:
        """The command has ended."""
        self._name_idle("finish")
        self.cursor = None

    def rest(self) -> Iterator[Span]:
        """The spans that later lines may change."""
        for stretch in self.idle:
            yield Span("finish", *stretch)
        for run in self.trained:
            yield from run.spans()

    def goodput(self) -> Goodput:
        """As if the newest line was the last."""
        parts = dict(self.parts)
        for span in self.rest():
            parts[span.part] += span.end - span.start
        repairs = self.repairs
        return Goodput(
            parts=parts,
            commands=self.commands,
            restarts=self.restarts,
            resizes=self.resizes,
            lost_steps=self.lost_steps,
            mttr_seconds=math.fsum(repairs) / len(repairs) if repairs else None,
            missing=self._known.missing,
        )

    def _claim(self, at: float, seconds: float) -> tuple[float, float]:
        """Go on to `at`; returns how much of `seconds` before it nothing else has claimed, as a stretch
        of the run's time."""
        if self.cursor is None:
            self.commands += 1
            self.cursor, self.state, self.alive = at - max(0.0, seconds), "start", []
        passed = max(0.0, at - self.cursor)  # clocks jump back
        before, self.elapsed = self.elapsed, self.elapsed + passed
        start = self.elapsed - min(max(0.0, seconds), passed)
        self.cursor += passed
        if self.state:
            self._enter(self.state, (before, start))
        else:
            self.idle.append((before, start))
        return start, self.elapsed

    def _enter(self, part: Part, stretch: tuple[float, float]) -> None:
        start, end = stretch
        self.parts[part] += end - start
        if self._note:
            self._note(Span(part, start, end))

    def _name_idle(self, part: Part) -> None:
        for stretch in self.idle:
            self._enter(part, stretch)
        self.idle = []

    def _train(self, line: Steps) -> None:
        start, end = self._claim(line.at, line.seconds)
        again = bool(self.trained) and line.first <= self.trained[-1].last
        self._name_idle("recovery" if again else "other")
        self.state = None
        self._undo(line.first)
        waiting = min(1.0, line.data_seconds / line.seconds) if end > start else 0.0
        self.trained.append(_Trained(line.first, line.last, start, end, waiting))
        count = line.last - line.first + 1
        done = line.at - line.seconds * (count - 1) / count
        self.repairs += [max(0.0, done - alive) for alive in self.alive]
        self.alive = []

    def _undo(self, first: int) -> None:
        """Count the steps from `first` on as lost: they are trained again."""
        while self.trained and self.trained[-1].last >= first:
            run = self.trained.pop()
            lost = run.between(max(run.first, first), run.last)
            self._enter("lost", (lost.start, lost.end))
            self.lost_steps += lost.last - lost.first + 1
            if run.first < first:
                self.trained.append(run.between(run.first, first - 1))

    def _lose(self, line: Lost) -> None:
        alive = line.at if self.cursor is None else self.cursor
        self._claim(line.at, 0.0)
        part: Part = "resize" if line.planned else "recovery"
        self._name_idle(part)
        self.state = part
        if line.planned:
            self.resizes += 1
        else:
            self.restarts += 1
            self.alive.append(alive)


def explain(goodput: Goodput) -> Iterator[tuple[str, str]]:
    """A table for people: names and what stands beside them."""
    parts, whole = goodput.parts, goodput.seconds
    yield (
        "goodput",
        f"{goodput.fraction:.1%}: {parts['productive']:.0f} s of {whole:.0f} s trained the model",
    )
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        if seconds > 0:
            yield f"  {part.replace('_', ' ')}", f"{seconds:10.1f} s {seconds / whole:6.1%}"
    counts = {
        "restart": goodput.restarts,
        "resize": goodput.resizes,
        "lost step": goodput.lost_steps,
    }
    told = [f"{count:,} {what}{'s' * (count > 1)}" for what, count in counts.items() if count]
    if goodput.mttr_seconds is not None:
        told.append(f"{goodput.mttr_seconds:.1f} s from loss to step on average")
    if told:
        yield "interruptions", ", ".join(told)
    if goodput.missing:
        yield "missing", told_missing(goodput.missing)


def goodput_metrics(goodput: Goodput) -> dict[str, float]:
    """As MLflow shows it; without a mean time to recovery when there was nothing to recover from."""
    metrics = {
        "goodput": goodput.fraction,
        "restarts": goodput.restarts,
        "lost_steps": goodput.lost_steps,
        **{f"seconds_{part}": seconds for part, seconds in goodput.parts.items()},
    }
    if goodput.mttr_seconds is not None:
        metrics["mttr_seconds"] = goodput.mttr_seconds
    return metrics
