"""Going back: after several skipped steps in a row, to the newest known-good checkpoint.

As PaLM did (Chowdhery et al. 2022, section 5.1), the run takes back its state but not its samples: it
goes on with those behind the ones that it stumbled over. So the step counter stays, and the steps since
the checkpoint are *passed over*: entered in the ledger, and then in every checkpoint. The first of these
is saved at once, and makes it true: after a crash before it the run goes on from a checkpoint that knows
nothing of the rollback, meets the same samples, and comes to the same decision.
"""

import math
from collections.abc import Sequence

from torch import distributed as dist

from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage
from panthalassa.stream.ledger import PassedOver
from panthalassa.train import checkpoint
from panthalassa.train.agreement import agreed, together
from panthalassa.train.callback import Callback
from panthalassa.train.checkpointing import Checkpoints
from panthalassa.train.events import Notice, Step
from panthalassa.train.restore import load
from panthalassa.train.training_run import TrainingRun

Steps = tuple[int, int]
"""The steps [first, end)."""

REMEDY = (
    "Look at the samples of these steps; a lower train.optimizer.learning_rate, a longer "
    "train.schedule.warmup_steps or a higher guard.sigma may mend it."
)


class Rollback(Callback):
    """Names skipped steps, and goes back when they do not end. Stands before what evaluates or saves."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_start(self, run: TrainingRun) -> None:
        self._discard(run)  # a crash may have come before it

    def after_step(self, run: TrainingRun, step: Step) -> None:
        if not step.skipped:
            return
        skips, limit = int(run.measured["skips"]), run.state.guard.limit.item()
        finite = f"{step.grad_norm:.4g}, above the limit of {limit:.4g}"
        norm = finite if math.isfinite(step.grad_norm) else f"{step.grad_norm}"
        seen = f"its gradient's norm was {norm}"
        run.poster.post(Notice(f"step {step.step} was skipped by the guard: {seen}"))
        if skips >= run.config.guard.max_skips:
            self._go_back(run, skips, f"{skips} steps in a row were skipped; of the last, {seen}")

    def _go_back(self, run: TrainingRun, skips: int, seen: str) -> None:
        name = _known_good(run.storage, run.step - skips)
        if name is None:
            raise agreed(
                PanthalassaError(
                    f"step {run.step}: {seen}. There is no checkpoint from before them to go back "
                    f"to. {REMEDY}"
                )
            )
        good = checkpoint.step_of(name)
        passed = passed_over(run.passed_over, good, run.step)
        if (rollbacks := in_a_row(passed)) > run.config.guard.max_rollbacks:
            raise agreed(
                PanthalassaError(
                    f"step {run.step}: {seen}. The run has gone back {rollbacks - 1} times since its "
                    f"known-good checkpoint {run.storage.uri}/{name}, as often as "
                    f"guard.max_rollbacks={run.config.guard.max_rollbacks} allows. {REMEDY}"
                )
            )
        self.checkpoints.settle(run)
        load(run.storage, name, run.state, run.config.checkpoint.staging_directory)
        run.state.guard.skips.zero_()
        if run.phase.first_step > good:
            run.state.guard.forget()
        run.passed_over = passed
        first, end = passed[-1]
        if run.ledger:
            run.ledger.record(PassedOver(first_step=first, end_step=end))
        self.checkpoints.save(run)
        self._discard(run)
        run.poster.post(
            Notice(
                f"step {run.step}: {seen}. The run went back to {run.storage.uri}/{name} and goes on "
                f"behind the samples of steps {first + 1} to {end}, on which it is not trained"
            )
        )

    def _discard(self, run: TrainingRun) -> None:
        """Remove the checkpoints inside the steps that were passed over."""
        with together():
            for name in checkpoint.committed(run.storage) if dist.get_rank() == 0 else []:
                if any(first < checkpoint.step_of(name) < end for first, end in run.passed_over):
                    checkpoint.remove(run.storage, name)


def _known_good(run: Storage, step: int) -> str | None:
    """As `checkpoint.known_good`, seen by rank 0 and told to all."""
    found: list[str | None] = [None]
    with together():
        if dist.get_rank() == 0:
            found = [checkpoint.known_good(run, step)]
    dist.broadcast_object_list(found)
    return found[0]


def passed_over(before: Sequence[Steps], good: int, now: int) -> list[Steps]:
    """What is passed over after going back from step `now` to the checkpoint of step `good`, when the
    steps `before` are already, in order.

    All steps from `good` on are. Those of earlier rollbacks to the same state stay entries of their
    own that touch each other; others behind `good` become part of the last one.
    """
    kept, end = [steps for steps in before if steps[1] <= good], good
    for steps in before:
        if steps[0] == end:
            kept.append(steps)
            end = steps[1]
    return [*kept, (end, now)]


def in_a_row(passed: Sequence[Steps]) -> int:
    """The newest rollbacks that went back to the same state."""
    count = 1
    while count < len(passed) and passed[-count - 1][1] == passed[-count][0]:
        count += 1
    return count
