"""A trial: an ordinary run with another configuration, followed by the events that it shows.

Ray Tune calls `run_trial` in a process of its own, where `pretrain` runs as it does for a command. At
each evaluation the trial writes its record and reports; Tune answers when the sweep has judged it. A
trial that is to be stopped finds that in its record, and ends as a run does that is asked to: at a step
boundary, with a checkpoint, its ranks gone, its lease given back and MLflow told. It returns in any
case, also when its run fails: so Tune, which ends a trial by ending its process, never has to.
"""

import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import replace

from ray import tune

from panthalassa.config import Config
from panthalassa.energy import ledger
from panthalassa.energy.account import account
from panthalassa.errors import PanthalassaError
from panthalassa.lease import HeldError
from panthalassa.storage import Storage
from panthalassa.sweep.branch import branch
from panthalassa.sweep.capacity import own_power
from panthalassa.sweep.results import Trial, read, record
from panthalassa.sweep.space import Plan
from panthalassa.train.checkpoint import newest
from panthalassa.train.events import Evaluated, Event, Ready, Step
from panthalassa.train.run import History, pretrain

NUMBER = "number"
BEAT = 5.0
"""Seconds after which a trial that trains has its step on record, so that it does not count as hung."""
HELD_SECONDS, RETRY = 60.0, 5.0
"""Time for which the process of a killed sweep may still have a trial's run, and between two tries."""


def run_trial(
    given: dict[str, int], plan: Plan, folder: Storage, store: str, parent: str, alone: bool
) -> None:
    """Run trial `given["number"]` of the sweep in `folder`, or go on with it, until it ends.

    store, parent: where MLflow keeps its run, and of which it is a child (empty for none).
    alone: whether no other trial runs at the same time.
    """
    trial = read(folder, given[NUMBER])
    if trial.over:
        return
    try:
        config = plan.trial(trial.run, trial.values, store, parent or None)
    except PanthalassaError as error:
        record(folder, replace(trial, state="failed", problem=str(error)))
        return
    progress = Progress(plan, folder, config, trial, alone or own_power(config.cluster))
    began = time.monotonic()
    try:
        if trial.parent and newest(folder.below(trial.run)) is None:
            progress.branched(branch(folder.below(trial.parent), folder.below(trial.run)))
        while True:
            try:
                pretrain(config, progress.show, stopping=progress.stopping)
                break
            except HeldError:
                if time.monotonic() > began + HELD_SECONDS:
                    raise
                time.sleep(RETRY)
    except Exception as error:  # whatever it is, the other trials go on
        logging.getLogger(__name__).debug("trial %d", trial.number, exc_info=True)
        kind = "" if isinstance(error, PanthalassaError) else f"{type(error).__name__}: "
        progress.failed = progress.failed or f"{kind}{error}"
    progress.close()


class Progress:
    """What the events of a trial's run tell of it, and what its sweep wants of it."""

    def __init__(
        self, plan: Plan, folder: Storage, config: Config, trial: Trial, own_power: bool = True
    ) -> None:
        """own_power: whether what its devices take is all its own."""
        self.stopping = threading.Event()
        self.failed: str | None = None
        self._own_power = own_power
        self._plan, self._folder, self._config, self._trial = plan, folder, config, trial
        self._run = folder.below(trial.run)
        self._history = History()
        self._recorded = time.monotonic()

    def show(self, event: Event) -> None:
        self._history.add(event)
        match event:
            case Ready():
                self._note(parameters=event.parameters)
                for evaluated in event.evaluations:  # a command that was killed may have lost some
                    self._look(evaluated)
            case Step():
                self._trial = replace(self._trial, step=event.step)
                if time.monotonic() > self._recorded + BEAT:
                    self._record()
            case Evaluated():
                self._look(event)

    def branched(self, step: int) -> None:
        """The trial goes on with a copy of its parent's run, after so many steps."""
        self._trial = replace(self._trial, branched=step)
        self._record()

    def _note(self, **metrics: float) -> None:
        self._trial = replace(self._trial, metrics=self._trial.metrics | metrics)

    def _record(self) -> None:
        record(self._folder, self._trial)
        self._recorded = time.monotonic()

    def _look(self, event: Evaluated) -> None:
        if event.step <= max(self._trial.looks, default=0):
            return
        if not math.isfinite(event.loss):
            self._fail(f"diverged: its held-out loss is {event.loss} after step {event.step}")
            return
        self._note(loss=event.loss, tokens=tokens(self._config, event.step))
        self._measure()
        trial = self._trial
        if missing := [name for name in self._plan.sweep.objective if name not in trial.metrics]:
            ready = self._history.ready
            self._fail(f"its run reports no {', '.join(missing)}: {ready.power if ready else ''}")
            return
        looks = trial.looks | {event.step: trial.metrics}
        self._trial = replace(trial, step=max(trial.step, event.step), looks=looks)
        self._record()
        if not self.stopping.is_set():
            steps = self._config.train.steps
            tune.report({NUMBER: trial.number, "step": event.step, "steps": steps})
            self._trial = read(self._folder, trial.number)
            if self._trial.over:
                self.stopping.set()

    def _measure(self) -> None:
        """Speed and energy so far, as far as they are known."""
        if (sums := self._history.sums).seconds:
            self._note(tokens_per_second=sums.positions / sums.seconds)
        if not self._own_power:
            return
        with suppress(PanthalassaError):
            spent = account(ledger.read(self._run))
            if spent.j_per_token is not None:
                self._note(joules=spent.joules, j_per_token=spent.j_per_token)

    def _fail(self, problem: str) -> None:
        self.failed = problem
        self.stopping.set()

    def close(self) -> None:
        """Put on record how it ended; one that was only interrupted is still running."""
        found, ended = read(self._folder, self._trial.number), self._history.ended
        if ended:
            self._measure()
        trial = replace(self._trial, state=found.state, problem=found.problem)
        if self.failed:
            trial = replace(trial, state="failed", problem=self.failed)
        elif ended and not ended.interrupted:
            trial = replace(trial, state="finished", step=ended.step)
        record(self._folder, trial)


def tokens(config: Config, step: int) -> int:
    """Positions that were trained on after `step` steps."""
    train, done, length, first = config.train, 0, config.train.sequence_length, 0
    for phase in config.stream.phases:
        if phase.from_step >= step:
            break
        done += (phase.from_step - first) * length
        first, length = phase.from_step, phase.sequence_length or train.sequence_length
    return (done + (step - first) * length) * train.global_batch
