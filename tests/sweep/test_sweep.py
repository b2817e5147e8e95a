"""One sweep with good and bad trials, and three commands: stopped, killed, and complete."""

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from conftest import tree
from nodes import Command, cluster_of
from processes import title
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.config_file import build, load
from panthalassa.energy.meters import Absent
from panthalassa.energy.sources import choose
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.lease import Owner
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.ledger import accounts
from panthalassa.sweep.branch import branch
from panthalassa.sweep.config import SweptConfig
from panthalassa.sweep.results import Trial, trials
from panthalassa.sweep.run import sweep
from panthalassa.sweep.space import Plan
from panthalassa.train.audit import audit_run
from panthalassa.train.checkpoint import newest
from panthalassa.train.run import Outcome, pretrain
from panthalassa.train.stop import REQUEST

RATE = "train.optimizer.learning_rate"
GOOD, FAIR, POOR, DIVERGES = range(4)
RATES = [3e-3, 2e-3, 1e-7, 1e30]
"""Of the first trials; as many more have a mixture that the corpus does not have."""
PATIENCE = 300


class SweepCommand(Command):
    command = "sweep"


def swept(corpus: Path, folder: Path, *overrides: str) -> Plan:
    data: dict[str, Any] = tree(corpus, folder)
    data["cluster"] = {
        "workers": 1,
        "cpus_per_worker": 0.5,
        "address": ray.get_runtime_context().gcs_address,
    }
    data["evaluation"] = {"every": 4, "samples": 8}
    data["sweep"] = {
        "space": {"stream.weights": [{"aa": 1, "bb": 1}, {"zz": 1}], RATE: RATES},
        "search": "grid",
        "asha": True,
        "concurrent": 2,
    }
    config = build(data, list(overrides), "test", SweptConfig)
    return Plan(config, "test", {key: value for key, value in data.items() if key != "sweep"})


def until(found: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not found():
        assert time.monotonic() < end, f"no {what} in time"
        time.sleep(0.1)


def known(folder: Storage) -> dict[int, Trial]:
    return {trial.number: trial for trial in trials(folder)}


def attempts(folder: Storage, trial: Trial) -> list[int]:
    """The first steps of a trial's attempts so far."""
    return [account.attempt.first_step for account in accounts(folder.below(trial.run))]


def checkpointed(folder: Storage, trial: Trial) -> int:
    found = newest(folder.below(trial.run))
    return found[1].step if found else 0


def all_free() -> None:
    """All that trials had comes back to the cluster."""
    cpus = ray.cluster_resources()["CPU"]
    until(lambda: ray.available_resources().get("CPU") == cpus, f"{cpus} free CPUs")


def test_a_sweep_ends_its_bad_trials_and_repeats_nothing_when_it_is_stopped_or_killed(
    ray_cluster: str, small_corpus: Path, tmp_path: Path
) -> None:
    plan = swept(small_corpus, tmp_path)
    folder = open_storage(str(tmp_path / "runs" / "small"))

    # Stopped: the runs end in order, with checkpoints.
    first = SweepCommand(plan.config, tmp_path, "first")
    first.wait_for(lambda text: f"trial {GOOD}: step 4" in text, "evaluation")
    first.signal(signal.SIGINT)
    assert "stopped as asked; the same command goes on" in first.wait(PATIENCE)
    assert first.process.returncode == 0
    assert {known(folder)[number].state for number in known(folder) if number != FAIR} == {
        "running"
    }
    all_free()

    # Killed at a random moment, when one trial is over already.
    second = SweepCommand(plan.config, tmp_path, "second")
    second.wait_for(lambda text: ": finished after step 24" in text, "finished trial")
    time.sleep(random.uniform(0, 5))
    second.close()
    all_free()
    at_kill = known(folder)
    over = {number for number, trial in at_kill.items() if trial.over}
    had = {n: attempts(folder, trial) for n, trial in at_kill.items() if n < len(RATES)}
    saved = {n: checkpointed(folder, at_kill[n]) for n in had}

    # Complete.
    third = SweepCommand(plan.config, tmp_path, "third")
    text = third.wait(2 * PATIENCE)
    assert third.process.returncode == 0, text
    all_free()
    found = known(folder)
    assert [found[n].state for n in (GOOD, POOR, DIVERGES)] == ["finished", "stopped", "failed"]
    assert found[FAIR].state in ("finished", "stopped")  # stopped where the good one was faster
    assert found[POOR].step < found[GOOD].step == 24
    assert "in a row were skipped" in str(found[DIVERGES].problem)
    for number in range(len(RATES), 2 * len(RATES)):
        assert found[number].state == "failed"
        assert "zz" in str(found[number].problem)

    for number in over:
        assert found[number] == at_kill[number]
        assert number not in had or attempts(folder, found[number]) == had[number], "repeated"
    for number in had.keys() - over:
        assert attempts(folder, found[number])[: len(had[number])] == had[number]
        assert attempts(folder, found[number])[len(had[number])] == saved[number]
    for number in (GOOD, FAIR, POOR):
        assert audit_run(folder.below(found[number].run)).passed

    assert f"best           trial {GOOD}: loss" in text
    assert "% saved" in text
    runnable = load(tmp_path / "runs" / "small" / "best.yaml")
    assert runnable.train.optimizer.learning_rate == RATES[GOOD]
    assert runnable.run.name == "small-best"
    assert "track replay" not in text
    in_mlflow(tmp_path / "runs" / "mlflow.db")

    # Nothing is left to do, and another space is another sweep.
    lines: list[str] = []
    assert {trial.number: trial for trial in sweep(plan, lines.append).trials} == found
    with pytest.raises(
        ConfigError, match=r"small belongs to another sweep or run: train\.steps is"
    ):
        sweep(swept(small_corpus, tmp_path, "train.steps=25"), lines.append)


def in_mlflow(database: Path) -> None:
    """The trials are children of the sweep, and all have ended."""
    with closing(sqlite3.connect(database)) as store:
        runs = dict(store.execute("SELECT run_uuid, status FROM runs").fetchall())
        names = dict(store.execute("SELECT run_uuid, name FROM runs").fetchall())
        parents = dict(
            store.execute(
                "SELECT run_uuid, value FROM tags WHERE key = 'mlflow.parentRunId'"
            ).fetchall()
        )
    (parent,) = {*runs} - {*parents}
    assert {*parents.values()} == {parent}
    assert (names[parent], runs[parent]) == ("small", "FINISHED")
    states = {names[run]: runs[run] for run in parents}
    assert states[f"small-{GOOD:03d}"] == "FINISHED"
    assert states[f"small-{POOR:03d}"] == "KILLED"


def test_a_trial_whose_process_stands_still_is_given_up(
    ray_cluster: str, small_corpus: Path, tmp_path: Path
) -> None:
    plan = swept(
        small_corpus, tmp_path, f"sweep.space={{{RATE}: [1.0e-3]}}", "sweep.silent_seconds=15"
    )
    folder = open_storage(str(tmp_path / "runs" / "small"))
    freezing = threading.Thread(target=freeze, args=(folder, "small-000/lease/000001.json"))
    freezing.start()
    (trial,) = sweep(plan, lambda line: None).trials
    freezing.join()
    assert trial.state == "failed"
    assert "sweep.silent_seconds" in str(trial.problem)
    all_free()

    # It is not tried again, and the command of a sweep of which nothing came fails.
    (tmp_path / "sweep.yaml").write_text(plan.config.dump())
    again = CliRunner().invoke(app, ["sweep", str(tmp_path / "sweep.yaml")])
    assert again.exit_code == 1
    assert "panthalassa: all 1 trials failed" in again.stderr

    # `panthalassa stop` reaches a sweep as it does a run.
    asking = threading.Thread(target=CliRunner().invoke, args=(app, ["stop", folder.uri]))
    asking.start()
    until(lambda: folder.exists(REQUEST), "request")
    assert sweep(plan, lambda line: None).interrupted
    asking.join()


def freeze(folder: Storage, lease: str) -> None:
    """Have the process that owns a trial's run stand still, as soon as it has that."""
    until(lambda: folder.exists(lease), "start of the trial")
    process = psutil.Process(Owner.model_validate_json(folder.read(lease)).pid)
    assert title(process).startswith("ray::"), title(process)
    process.suspend()


def test_a_branch_goes_on_with_other_values_and_passes_the_audit(
    finished: Path, undisturbed: Outcome, configure: Callable[..., Config]
) -> None:
    runs = open_storage(str(finished / "runs"))
    assert branch(runs.below("small"), runs.below("branch")) == 24
    config = configure(finished, "run.name=branch", "train.steps=28", f"{RATE}=2e-3")
    outcome = pretrain(config, lambda event: None)
    assert [step.step for step in outcome.history.steps] == [25, 26, 27, 28]
    report = audit_run(runs.below("branch"))
    assert report.passed
    assert report.steps == 28


def test_a_cluster_without_a_dashboard_is_refused(
    ray_cluster: str, small_corpus: Path, tmp_path: Path
) -> None:
    with cluster_of(1) as (nodes, _):
        plan = swept(small_corpus, tmp_path, f"cluster.address={nodes.address}")
        command = SweepCommand(plan.config, tmp_path)
        text = command.wait(PATIENCE)
    assert command.process.returncode == 1
    assert "--include-dashboard=true" in text
    assert "Traceback" not in text


def test_what_can_never_run_is_refused_at_once(
    ray_cluster: str, small_corpus: Path, tmp_path: Path
) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(PanthalassaError) as refusal:
            sweep(swept(small_corpus, tmp_path, *overrides), lambda line: None)
        return str(refusal.value)

    assert "9 trials at a time (sweep.concurrent)" in refused("sweep.concurrent=9")
    if isinstance(choose("auto", None), Absent):
        energy = ("sweep.objective=j_per_token", "sweep.asha=false", "cluster.address=local")
        assert "j_per_token can not be had here" in refused(*energy)
    assert not (tmp_path / "runs" / "small" / "trials").exists()
