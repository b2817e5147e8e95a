"""What surrounds a step: callbacks, called by the loop on every rank in the order of their list.

A callback may hold state and may communicate, but then on every rank alike. It never changes the
model or the order of the samples.
"""

from panthalassa.train.events import Step
from panthalassa.train.training_run import TrainingRun


class Callback:
    """The base: every hook does nothing."""

    def on_start(self, run: TrainingRun) -> None:
        """The state is restored; no step has run in this attempt."""

    def before_step(self, run: TrainingRun) -> None:
        """The clock of a step has started; its samples are not there yet."""

    def after_input(self, run: TrainingRun) -> None:
        """The samples of the step are there, on every rank."""

    def measure(self, run: TrainingRun) -> dict[str, float]:
        """Numbers of this rank for the step that has just run.

        They are summed over the ranks and handed to `after_step`; every rank names the same ones.
        """
        return {}

    def after_step(self, run: TrainingRun, step: Step) -> None:
        """The step is done, and `step` says the same on every rank."""

    def on_end(self, run: TrainingRun) -> None:
        """No further step follows: the run is complete or was asked to stop (`run.interrupted`)."""

    def close(self) -> None:
        """Called once, also after an error: give back what you hold."""
