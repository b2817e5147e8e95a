"""The sweep as Ray Tune sees it: it asks the judge for trials, and runs them.

Tune starts a process for each trial, retries one that dies, and keeps to the number at a time. What it
would remember is in the records instead (`results`), so its own state goes to a place in memory and is
never restored: it is a pickle, seconds old when a sweep is killed, and knows nothing of a run's folder.

A scheduler of Tune's that stops a trial ends its process, and with it whatever that had not done yet.
So the verdict is put on record while the trial waits for Tune's answer, and Tune is told to continue:
the trial reads it and ends in order, with all of its resources (`trial`). Only a trial that hangs is
killed. Then Ray Train's cleaner gives the room of its ranks back, and asks the dashboard's process
whether it may; so `check_dashboard` wants one.
"""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
from fsspec.implementations.memory import MemoryFileSystem
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.state import list_nodes

from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage
from panthalassa.sweep.capacity import DRIVER_CPUS
from panthalassa.sweep.judge import Judge
from panthalassa.sweep.space import Plan
from panthalassa.sweep.trial import NUMBER, run_trial

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no files of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep has one
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output heeds verbose=0
}
DASHBOARD_SECONDS = 15.0
"""Time that the dashboard of a cluster which has just started may take to answer."""


class Proposals(Searcher):
    """Tune asks it what to try, and tells it what has ended."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge, self._numbers = judge, dict[str, int]()

    def suggest(self, trial_id: str) -> Any:
        number = self._judge.next()
        if number is None:
            return Searcher.FINISHED if self._judge.complete else None
        self._numbers[trial_id] = number
        return {NUMBER: number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._judge.ended(self._numbers[trial_id], error)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # there is nothing to save


class Verdicts(FIFOScheduler):
    """Has each report judged, and never stops a trial itself."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._judge = judge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._judge.look(result[NUMBER], result["step"], result["steps"])
        return self.CONTINUE


class Watch(TrialProgressCallback):
    """Looks after the trials, several times a second; in place of Tune's own display."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    def on_trial_complete(self, *told: Any, **info: Any) -> None:
        """Prints nothing: the judge has told it."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._judge.begins(trial.config[NUMBER])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._judge.stop_runs()
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if actor is not None and self._judge.hangs(trial.config[NUMBER]):
                ray.kill(actor)


def run_trials(
    judge: Judge, plan: Plan, folder: Storage, store: str, parent: str, at_once: int
) -> None:
    """Run all trials, `at_once` at a time, until none is left or the sweep shall stop."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    trainable = tune.with_parameters(
        run_trial, plan=plan, folder=folder, store=store, parent=parent, alone=at_once == 1
    )
    tune.Tuner(
        tune.with_resources(trainable, {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=Proposals(judge),
            scheduler=Verdicts(judge),
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=True,  # a process takes seconds of imports to start
        ),
        run_config=tune.RunConfig(
            name=plan.config.run.name,
            storage_path="/ray-tune",
            storage_filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())),
            failure_config=tune.FailureConfig(max_failures=plan.config.cluster.max_failures),
            callbacks=[Watch(judge)],
            verbose=0,
        ),
    ).fit()


def check_dashboard(address: str) -> None:
    """Raises PanthalassaError when the cluster does not run its dashboard's process."""
    until = time.monotonic() + DASHBOARD_SECONDS
    here = ray.get_runtime_context().gcs_address  # this machine may have other clusters
    while True:
        try:
            list_nodes(address=here, limit=1, timeout=int(DASHBOARD_SECONDS))
            return
        except Exception as error:  # Ray has no class for all of them
            if time.monotonic() > until:
                raise PanthalassaError(
                    f"the cluster at {address} (key cluster.address) does not tell its state, as its "
                    "dashboard's process does, without which a trial that is killed keeps its room for "
                    "ever. Start its head with `ray start --head --include-dashboard=true`."
                ) from error
            time.sleep(1)
