"""A sweep from its file to the best configuration: refuse what can not be run, run the trials,
conclude.

The folder `<run.directory>/<run.name>` holds all of it: its configuration, the records of its trials,
the folders of their runs, and in the end `best.yaml`, which `panthalassa train` runs. One command at a
time has it, by the lease that runs have, too; the same command goes on where another was ended or
killed.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ray.tune import TuneError

from panthalassa.cluster import connected
from panthalassa.config_file import flatten
from panthalassa.energy.meters import Absent
from panthalassa.energy.sources import choose
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.lease import Lease
from panthalassa.redact import without_secrets
from panthalassa.run_config import CONFIG, folder_of, keep, kept_tree
from panthalassa.storage import Storage
from panthalassa.sweep.capacity import at_once
from panthalassa.sweep.judge import Judge
from panthalassa.sweep.parent import Parent, ended_as
from panthalassa.sweep.pareto import best, frugal
from panthalassa.sweep.results import Trial, all_failed, ancestry, told, trials
from panthalassa.sweep.space import Plan
from panthalassa.sweep.tuning import check_dashboard, run_trials
from panthalassa.tracking.mlflow_store import store_uri
from panthalassa.train.check import check
from panthalassa.train.display import STOPPED
from panthalassa.train.events import Event, Notice
from panthalassa.train.placement import survey
from panthalassa.train.run import PATIENCE, on_signals
from panthalassa.train.stop import StopRequests

MAY_CHANGE = (
    "cluster.", "tracking.", "energy.", "guard.", "checkpoint.", "run.directory",
    "sweep.trials", "sweep.concurrent", "sweep.within", "sweep.silent_seconds",
)  # fmt: skip
"""Keys, or how they begin, that may differ from the sweep's last command."""
BEST = "best.yaml"


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    plan: Plan
    trials: list[Trial]
    best: list[Trial]
    """The chosen one, or the front with the best in the first objective first."""
    best_config: str | None
    """Where that of the first is."""
    interrupted: bool
    tracking: str
    """The MLflow store, or why it does not have all of the sweep."""
    page: str
    """Where its page is."""

    @property
    def failed(self) -> str | None:
        """Why nothing came of the sweep; None when something did, or still can."""
        if self.interrupted or not all_failed(self.trials):
            return None
        return (
            f"all {len(self.trials)} trials failed, which are not tried again. Mend what they name, and "
            "choose another run.name."
        )


def sweep(plan: Plan, tell: Callable[[str], None], debug: bool = False) -> Outcome:
    """Run the trials that are not over, and write the best configuration. `tell` gets lines for people.

    Raises PanthalassaError when a user has to mend something first, or another command has the sweep.
    """
    plan = plan.anchored()
    config = plan.config
    check(plan.build({}))
    _check_power(plan)
    folder = replace(folder_of(config), patience=PATIENCE)
    _refuse_another(plan, folder)
    with Lease(folder, tell) as lease, connected(config.cluster, debug, dashboard=True):
        return _run(plan, folder, lease, tell)


def _run(plan: Plan, folder: Storage, lease: Lease, tell: Callable[[str], None]) -> Outcome:
    config = plan.config
    most = at_once(plan, survey())
    check_dashboard(config.cluster.address)
    keep(config, folder)
    stopping, requests = threading.Event(), StopRequests(folder, lambda: lease.fence.check())

    def stopped() -> bool:
        lease.check()
        if requests():
            stopping.set()
        return stopping.is_set()

    def notice(event: Event) -> None:
        if isinstance(event, Notice):
            tell(event.text)

    parent = Parent(config, folder)
    judge = Judge(plan, folder, stopped, tell)
    over = sum(trial.over for trial in judge.known)
    tell(
        f"{plan.count} trials, {most} at a time"
        + (f"; {over} are over already, {len(judge.known) - over} go on" if judge.known else "")
    )
    with on_signals(stopping, notice):
        try:
            run_trials(judge, plan, folder, store_uri(config), parent.run_id, most)
        except TuneError as error:
            raise PanthalassaError(
                f"the sweep can not go on: {str(error).strip().splitlines()[-1]}. What it knows is in "
                f"{folder.uri}; the same command goes on."
            ) from error
    outcome = _conclude(plan, folder, stopping.is_set(), parent)
    if judge.problem:
        raise PanthalassaError(judge.problem)
    return outcome


def _conclude(plan: Plan, folder: Storage, interrupted: bool, parent: Parent) -> Outcome:
    from panthalassa.sweep.page import write_page  # takes a second

    known = trials(folder)
    chosen, where = best(known, plan.sweep), None
    if chosen:
        folder.write(BEST, best_file(plan, chosen[0], known).encode())
        where = f"{folder.uri}/{BEST}"
    parent.close(known, ended_as(known, interrupted))
    return Outcome(
        plan=plan,
        trials=known,
        best=chosen,
        best_config=where,
        interrupted=interrupted,
        tracking=parent.problem or parent.uri,
        page=write_page(folder, known),
    )


def best_file(plan: Plan, trial: Trial, known: Sequence[Trial]) -> str:
    """The configuration of a trial as a run of its own, without secrets; above it what a branch of PBT
    has of others."""
    uri = plan.config.tracking.uri
    own = {"run.name": f"{plan.config.run.name}-best", "tracking.uri": uri and without_secrets(uri)}
    said = [" ".join(line.split()) for line in ancestry(trial, known)]
    if said:
        said = [
            f"trial {trial.number} is a branch, and its result not of these values alone",
            *said,
        ]
    return "".join(f"# {line}\n" for line in said) + plan.build(trial.values | own).dump()


def _check_power(plan: Plan) -> None:
    """Raises ConfigError when J/token is the objective, and this machine's CPUs tell no energy."""
    cluster = plan.config.cluster
    if "j_per_token" in plan.sweep.objective and cluster.address == "local":
        meter = None if cluster.gpus_per_worker else choose(plan.config.energy.source, None)
        if isinstance(meter, Absent):
            raise ConfigError(f"sweep.objective=j_per_token can not be had here: {meter.reason}")
        if meter:
            meter.close()


def _refuse_another(plan: Plan, folder: Storage) -> None:
    """Raises ConfigError when the folder is that of a run, or of a sweep with another space."""
    try:
        if not folder.exists(CONFIG):
            return
    except OSError as error:
        raise ConfigError(
            f"run.directory={plan.config.run.directory} can not be read: {error}. Correct the key, or "
            "the endpoint, credentials and permissions."
        ) from error
    old, new = (flatten(tree) for tree in (kept_tree(folder), plan.config.model_dump(mode="json")))
    changed = [
        f"{key} is {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{folder.uri} belongs to another sweep or run: {'; '.join(changed)}. Choose another "
            "run.name, or restore what it had."
        )


def explain(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """The outcome for people, in rows of a name and a text."""
    plan, known = outcome.plan, outcome.trials
    states = ("finished", "stopped", "failed", "running")
    counts = {state: sum(trial.state == state for trial in known) for state in states}
    listed = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    how = "not complete; the same command goes on" if counts["running"] else "complete"
    yield "sweep", f"{plan.config.run.name}: {STOPPED if outcome.interrupted else how}; {listed}"
    sound = [trial for trial in known if trial.state in ("finished", "stopped")]
    full = sum(plan.build(trial.values).train.steps for trial in sound)
    done = sum(trial.step for trial in sound)
    if full and plan.sweep.search != "pbt":  # whose branches begin with steps of others
        yield (
            "steps",
            f"{done:,} of the {full:,} that these trials have: {1 - done / full:.0%} saved",
        )
    for trial in known:
        if trial.problem:
            yield f"trial {trial.number}", f"failed: {trial.problem}"
    yield from _choice(outcome)
    yield "page", outcome.page
    yield "MLflow", outcome.tracking


def _choice(outcome: Outcome) -> Iterator[tuple[str, str]]:
    sweep = outcome.plan.sweep
    if not outcome.best:
        yield "best", f"none: no trial that reports {' and '.join(sweep.objective)} is finished"
        return
    for trial in outcome.best:
        shown = dict.fromkeys([*sweep.objective, "loss", "joules"])
        metrics = {name: trial.metrics[name] for name in shown if name in trial.metrics}
        name = "best" if len(sweep.objective) == 1 else "front"
        yield name, f"trial {trial.number}: {told(metrics)}; {told(trial.values)}"
        for line in ancestry(trial, outcome.trials):
            yield "", f"a branch: {line}"
    if sweep.within and frugal(outcome.trials, sweep.within):
        yield "", f"the fewest joules of those within {sweep.within:.2%} of the least loss"
    elif sweep.within:
        yield (
            "",
            "the least loss: no trial near it has an energy of its own (energy.source; on CPUs "
            "sweep.concurrent=1, too)",
        )
    yield "", f"panthalassa train {outcome.best_config}"
