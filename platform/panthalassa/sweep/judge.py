"""What is decided about the trials of a sweep: who is next, who is stopped, who is given up.

It lives in the sweep's process. Each decision is on record before anybody acts on it, so that the next
command of a sweep that was killed finds it; what it keeps in memory is only who runs at the moment.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from panthalassa.storage import Storage
from panthalassa.sweep.results import Trial, read, record, told, trials
from panthalassa.sweep.search import Halving, Population, Rule, propose
from panthalassa.sweep.space import Plan
from panthalassa.train.stop import REQUEST

ASK_AGAIN = 5.0
"""Seconds between two requests to a run to stop: one that just starts may have missed the first."""


class Judge:
    """Of one command. `known` are all trials, by number."""

    def __init__(
        self, plan: Plan, folder: Storage, stopped: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        """stopped: whether the sweep shall stop, with all its runs. tell: shows a line."""
        self._plan, self._folder, self._asked_to, self._tell = plan, folder, stopped, tell
        self.known = trials(folder)
        self.problem: str | None = None
        """Why the sweep can come to nothing, and so ends."""
        self._started: set[int] = set()
        self._heard: dict[int, float] = {}
        """When each trial that runs was last heard of, by the clock of time.monotonic()."""
        self._asked = -ASK_AGAIN
        self._population = Population(plan) if plan.sweep.search == "pbt" else None
        self._rule: Rule | None = self._population
        if plan.sweep.asha:
            self._rule = Halving(plan, self.known)

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray Tune pickles what it is given, and nobody reads that."""
        return {}

    def _stopped(self) -> bool:
        return self._asked_to() or self.problem is not None

    def next(self) -> int | None:
        """The number of the trial that starts next, one that was left if there is; None for none now."""
        if self._stopped():
            return None
        left = (t.number for t in self.known if not t.over and t.number not in self._started)
        number = next(left, None)
        if number is None:
            if (values := propose(self._plan, self.known)) is None:
                return None
            number = len(self.known)
            self._put(Trial(number, f"{self._plan.config.run.name}-{number:03d}", values))
        self._started.add(number)
        return number

    @property
    def complete(self) -> bool:
        """Whether no trial will start any more; while a population trains, branches may."""
        trains = any(not self.known[number].over for number in self._started)
        return self._stopped() or not (self._population and trains)

    def _put(self, trial: Trial) -> None:
        """Put a trial on record, a new one or one that has changed."""
        record(self._folder, trial)
        self.known[trial.number : trial.number + 1] = [trial]

    def begins(self, number: int) -> None:
        """The process of a trial is there; once more for one that was killed because it hung."""
        trial = self.known[number]
        if trial.over:
            return
        self._heard[number] = time.monotonic()
        branch = f", a branch of {trial.parent}" if trial.parent else ""
        self._tell(f"trial {number}: {told(trial.values)}{branch}")

    def look(self, number: int, step: int, steps: int) -> None:
        """Judge a trial at an evaluation after `step` of `steps`, while it waits for that."""
        self._heard[number] = time.monotonic()
        trial = self.known[number] = read(self._folder, number)
        shown: dict[str, float] = {name: trial.metrics[name] for name in self._plan.sweep.objective}
        self._tell(f"trial {number}: step {step}/{steps}, {told(shown)}")
        behind = self._rule and step < steps and self._rule.behind(trial, step, self.known)
        if trial.over or not behind:
            return
        if self._population:
            if not (branch := self._population.branch(self._plan, trial, step, self.known)):
                return
            self._put(branch)
        self._put(replace(trial, state="stopped"))

    def ended(self, number: int, error: bool) -> None:
        """A trial's function has returned; with `error`, its process died more often than it may."""
        self._heard.pop(number, None)
        trial = self.known[number] = read(self._folder, number)
        with suppress(FileNotFoundError):  # it need not hear any more that it shall stop
            self._folder.delete(f"{trial.run}/{REQUEST}")
        if error and not trial.over:
            problem = "its process died, and more often than cluster.max_failures allows"
            trial = replace(trial, state="failed", problem=problem)
            self._put(trial)
        state = trial.state if trial.over else "left"
        end = trial.problem or told(trial.metrics)
        self._tell(f"trial {number}: {state} after step {trial.step}, {end}")
        if not self.problem and self._unmeasured(trial):
            self.problem = (
                f"sweep.objective=j_per_token can not be had on this cluster. Of trial {number}, the "
                f"first to report: {trial.problem}. Set energy.source to what its nodes have, or "
                "another sweep.objective, and choose another run.name."
            )

    def _unmeasured(self, trial: Trial) -> bool:
        """Whether a trial has shown that nodes tell no energy, which is wanted, and none has had any."""
        wanted = "j_per_token" in self._plan.sweep.objective and "loss" in trial.metrics
        return (
            wanted
            and trial.state == "failed"
            and not any("j_per_token" in other.metrics for other in self.known)
        )

    def hangs(self, number: int) -> bool:
        """Whether a trial is given up, from now on."""
        limit, now = self._plan.sweep.silent_seconds, time.monotonic()
        if now < self._heard.get(number, now) + limit:
            return False
        trial = read(self._folder, number)
        if trial.step != self.known[number].step:
            self.known[number], self._heard[number] = trial, now
            return False
        del self._heard[number]
        problem = f"hung: no step for {limit:.0f} s (sweep.silent_seconds)"
        self._put(replace(trial, state="failed", problem=problem))
        return True

    def stop_runs(self) -> None:
        """When the sweep shall stop: have the runs of all trials stop, with checkpoints."""
        if self._stopped() and time.monotonic() > self._asked + ASK_AGAIN:
            self._asked = time.monotonic()
            for number in self._heard:
                request = f"{self.known[number].run}/{REQUEST}"
                self._folder.write(request, str(time.time()).encode())
