"""Histories of runs, in which what each second goes to is known when it passes.

A script is a list of commands, a command a list of attempts. All of them but the last of a command lose
their workers; every step takes as long as any other.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import strategies as st

from panthalassa.line_ledger import Ended, Lost, Waited
from panthalassa.train.goodput import Began, Launched, Line, Spent, Steps

T = 1_800_000_000.0
STEP_SECONDS, DATA_SECONDS = 2.0, 0.5


@dataclass(frozen=True)
class Attempt:
    wait: float
    start: float
    groups: list[int]
    """Steps without a pause between them; behind an odd number of them there is a checkpoint."""
    end: Literal["death", "resize"]


@dataclass(frozen=True)
class Command:
    attempts: list[Attempt]
    killed: bool


quarters = st.integers(0, 40).map(lambda quarters: quarters / 4)
scripts = st.lists(
    st.builds(
        Command,
        st.lists(
            st.builds(
                Attempt,
                quarters,
                quarters,
                st.lists(st.integers(1, 6), max_size=4),
                st.sampled_from(["death", "resize"]),
            ),
            min_size=1,
            max_size=4,
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@dataclass
class Simulated:
    """A run that follows a script; `show` gets its lines, with those of one group merged or not."""

    show: Callable[[Line], None]
    merged: bool
    now: float = T
    parts: Counter[str] = field(default_factory=Counter)
    state: str = "start"
    trained: list[int] = field(default_factory=list)
    step: int = 0
    saved: int = 0
    sign: float = T
    """The last sign of life."""
    dead: list[float] = field(default_factory=list)
    repairs: list[float] = field(default_factory=list)

    def follow(self, script: Sequence[Command]) -> None:
        for command in script:
            self.state, self.dead, self.step = "start", [], self.saved
            self.tell(Began(at=self.now))
            for number, attempt in enumerate(command.attempts, 1):
                self.attempt(attempt)
                if number < len(command.attempts):
                    self.lose(attempt.end)
            if not command.killed:
                self.passes("finish" if self.state == "other" else self.state, 2.0)
                self.tell(Ended(at=self.now))
            self.now += 1000

    def attempt(self, attempt: Attempt) -> None:
        self.passes("standby", attempt.wait)
        self.tell(Waited(at=self.now, seconds=attempt.wait))
        self.passes(self.state, attempt.start)
        self.tell(Launched(at=self.now, workers=2))
        self.passes("compile", attempt.start)
        self.tell(Spent(at=self.now, what="compile", seconds=attempt.start))
        for count in attempt.groups:
            self.passes(self.state, 0.25)
            self.train(count)
            if count % 2:
                self.passes("checkpoint", 0.5)
                self.tell(Spent(at=self.now, what="checkpoint", seconds=0.5))
                self.saved = self.step

    def train(self, count: int) -> None:
        self.repairs += [self.now + STEP_SECONDS - sign for sign in self.dead]
        self.dead, self.state = [], "other"
        for group in [count] if self.merged else [1] * count:
            self.now += group * STEP_SECONDS
            steps = range(self.step + 1, self.step + group + 1)
            line = Steps(
                at=self.now,
                first=steps[0],
                last=steps[-1],
                seconds=group * STEP_SECONDS,
                data_seconds=group * DATA_SECONDS,
            )
            self.tell(line)
            self.trained += steps
            self.step = steps[-1]

    def lose(self, end: Literal["death", "resize"]) -> None:
        after = "recovery" if end == "death" else "resize"
        if end == "death":
            self.dead.append(self.sign)
        self.passes(after if self.state == "other" else self.state, 1.5)
        self.tell(Lost(at=self.now, planned=end == "resize"))
        self.state, self.step = after, self.saved

    def passes(self, part: str, seconds: float) -> None:
        self.now += seconds
        self.parts[part] += seconds

    def tell(self, line: Line) -> None:
        self.sign = line.at
        self.show(line)

    @property
    def lost_steps(self) -> int:
        """Steps that were trained again at any time later."""
        later = (self.trained[number:] for number in range(1, len(self.trained)))
        return sum(min(rest) <= step for step, rest in zip(self.trained, later, strict=False))

    def expected(self) -> dict[str, float]:
        """The parts that took time."""
        kept = len(self.trained) - self.lost_steps
        of_steps = {
            "lost": self.lost_steps * STEP_SECONDS,
            "data_wait": kept * DATA_SECONDS,
            "productive": kept * (STEP_SECONDS - DATA_SECONDS),
        }
        return {part: seconds for part, seconds in {**self.parts, **of_steps}.items() if seconds}
