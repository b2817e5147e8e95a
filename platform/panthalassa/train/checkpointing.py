"""When a run saves its state: the callback of checkpoints, and the interval between them.

A snapshot stops the loop for a copy and is written behind it. With `checkpoint.every` it is taken at
those steps, and waits for the one before. Otherwise rank 0 decides by its clock, and its decision
travels with the sums of the step. Then a snapshot that falls due while one is being written is taken
when that has ended: to wait would stop the loop, and the state that is taken later is worth more.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable

from torch import distributed as dist

from panthalassa.train.callback import Callback
from panthalassa.train.checkpoint import Commit, clean, folder
from panthalassa.train.events import Notice, Saved, Step
from panthalassa.train.snapshot import Place, Saving, Snapshots
from panthalassa.train.training_run import TrainingRun

DAY = 86_400.0
FIRST = 0.1
"""The share of max_lost_seconds after which the first snapshot is taken: it shows what one costs."""
MUCH = 1.5
"""By what factor the interval changes before it is told again."""
RECENT = 128
ENOUGH = 16
"""Losses that a spike is judged by: at most, and at least."""
SIGMAS = 6.0


def mean_time_between_failures(nodes: int, failures: int, seconds: float) -> float:
    """Seconds, of a run that had so many failures in so many seconds.

    Before anything is known it is one failure a node-day, and that weighs as much as one failure seen.
    """
    return (DAY / nodes + seconds) / (1 + failures)


def interval(cost: float, write: float, between_failures: float, most_lost: float) -> float:
    """Seconds from one snapshot to the next, of which each costs so many of training and is safe after
    `write`.

    sqrt(2 cost MTBF) loses the least time (Young 1974; Daly 2006), but a death may not cost more than
    `most_lost`, what is being written included. Nor can a snapshot be taken while another is written:
    if writing takes more than half of `most_lost`, a death may cost twice the writing.
    """
    return max(write, min(math.sqrt(2 * cost * between_failures), most_lost - write))


def healthy(step: Step, before: Iterable[float]) -> bool:
    """Whether a step's loss and gradient are finite, and the loss no spike after those `before` it."""
    if not math.isfinite(step.loss) or not math.isfinite(step.grad_norm):
        return False
    recent = [loss for loss in before if math.isfinite(loss)]
    if len(recent) < ENOUGH:
        return True
    return step.loss <= statistics.fmean(recent) + SIGMAS * statistics.pstdev(recent)


class Checkpoints(Callback):
    """Saves the state in the background and at the end, and keeps the newest few.

    between_failures: their mean time, in seconds.
    """

    def __init__(self, between_failures: float) -> None:
        self.between_failures = between_failures
        self.taken_at = -1
        self.began = 0.0
        """When the newest snapshot was taken, or the run began."""
        self.interval = 0.0
        self.told = 0.0
        """The interval that was last told."""
        self.step_seconds = 0.0
        self.undisturbed: deque[float] = deque(maxlen=RECENT)
        """Seconds of steps without a snapshot in flight."""
        self.slowed = 0.0
        """By how many seconds the newest snapshot has lengthened the steps."""
        self.saving: Saving | None = None
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.healthy = True

    def on_start(self, run: TrainingRun) -> None:
        def permit() -> None:
            run.permit()
            run.poster.flush()  # steps that are not repeated any more must not be lost
            if run.ledger:
                run.ledger.flush()

        place = Place(run.storage, run.config.checkpoint.staging_directory, permit)
        self.snapshots = Snapshots(place, run.state)
        self.taken_at, self.began = run.step, time.perf_counter()
        self.interval = FIRST * run.config.checkpoint.max_lost_seconds

    def measure(self, run: TrainingRun) -> dict[str, float]:
        waited = time.perf_counter() - self.began
        due = dist.get_rank() == 0 and waited + self.step_seconds >= self.interval
        return {"snapshot_due": float(due), "snapshot_done": float(self.snapshots.done)}

    def after_step(self, run: TrainingRun, step: Step) -> None:
        self.healthy = healthy(step, self.losses)
        self.losses.append(step.loss)
        self.step_seconds = step.seconds
        if not self.snapshots.in_flight:
            self.undisturbed.append(step.seconds)
        elif self.undisturbed:
            self.slowed += step.seconds - statistics.median(self.undisturbed)
        if run.measured["snapshot_done"] == dist.get_world_size():
            self.settle(run)
        every = run.config.checkpoint.every
        if every:
            due = run.step % every == 0
        else:
            due = run.measured["snapshot_due"] > 0 and not self.snapshots.in_flight
        if due and self.taken_at != run.step < run.config.train.steps:
            self._take(run)

    def on_end(self, run: TrainingRun) -> None:
        before = run.enter_phase("checkpoint")
        self.settle(run)
        if self.taken_at != run.step:
            self.save(run)
        run.enter_phase(before)

    def save(self, run: TrainingRun) -> None:
        """Save at this step, and return when it is committed."""
        self._take(run, last=True)
        self.settle(run)

    def _take(self, run: TrainingRun, last: bool = False) -> None:
        with run.spending("checkpoint"):
            self._snapshot(run, last)

    def _snapshot(self, run: TrainingRun, last: bool) -> None:
        start = time.perf_counter()
        self.settle(run)
        self.taken_at, self.began, self.slowed = run.step, time.perf_counter(), 0.0
        waited = self.began - start
        commit = Commit(
            model=run.identity,
            phases=run.curriculum.phases,
            attempt=run.attempt,
            step=run.step,
            samples=run.curriculum.samples(run.step),
            evaluations=list(run.evaluations),
            passed_over=list(run.passed_over),
            healthy=self.healthy,
            files={},
        )

        def committed(saving: Saving) -> None:
            self.saving = saving
            if dist.get_rank() == 0:
                uri = run.storage.below(folder(saving.commit.step)).uri
                stall = saving.seconds if last else waited + saving.stall
                saved = Saved(
                    saving.commit.step,
                    uri,
                    saving.seconds,
                    saving.size,
                    stall,
                    saving.commit.digest(),
                )
                run.poster.post(saved)
                run.permit()
                clean(run.storage, run.config.checkpoint.keep, saving.commit.step)

        self.snapshots.take(commit, committed)

    def settle(self, run: TrainingRun) -> None:
        """Wait for the snapshot in flight, and fit the interval to what it has cost."""
        self.snapshots.settle()
        setting, saving, self.saving = run.config.checkpoint, self.saving, None
        if saving is None or setting.every:
            return
        cost, write = max(saving.stall, self.slowed), saving.seconds
        self.interval = interval(cost, write, self.between_failures, setting.max_lost_seconds)
        if self.told / MUCH < self.interval < self.told * MUCH:
            return
        self.told = self.interval
        lost = max(self.interval, self.step_seconds) + write
        more = lost > setting.max_lost_seconds * 1.01
        run.poster.post(
            Notice(
                f"a snapshot every {self.interval:.3g} s: it stops the loop for {saving.stall:.2g} s, "
                f"slows it by {max(0, self.slowed):.2g} s, and takes {write:.2g} s to be safe; a death "
                f"costs at most {lost:.3g} s"
                + (", more than checkpoint.max_lost_seconds: writing is slow" if more else "")
            )
        )
