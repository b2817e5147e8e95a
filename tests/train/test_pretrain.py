"""Whole runs on real Ray Train workers: the same curve at any layout, and across deaths and stops."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import pids, worker_pids

from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.train.audit import Report, audit_run
from panthalassa.train.checkpoint import committed
from panthalassa.train.events import Event, Notice, Step
from panthalassa.train.run import Outcome, pretrain

Configure = Callable[..., Config]


def ignore(event: Event) -> None:
    pass


def curve(outcome: Outcome) -> dict[int, float]:
    """Loss by step; of a step that was repeated, the last."""
    return {step.step: step.loss for step in outcome.history.steps}


def test_a_run_learns_and_leaves_everything_that_it_promises(undisturbed: Outcome) -> None:
    history, run = undisturbed.history, undisturbed.config.run
    assert [step.step for step in history.steps] == list(range(1, 25))
    assert [evaluation.step for evaluation in history.evaluations] == [0, 12, 24]
    assert history.evaluations[-1].loss < history.evaluations[0].loss - 0.5
    assert [text.prompt for text in history.texts] == ["kate"]
    assert history.ended is not None
    assert not history.ended.interrupted
    folder = open_storage(run.directory).below(run.name)
    kept = ["step-00000016", "step-00000020", "step-00000024"]
    assert committed(folder) == kept, "the newest two and a healthy one before them"
    assert folder.read("config.yaml").decode() == undisturbed.config.dump()
    report = audited(undisturbed)
    assert (report.steps, report.samples, report.rolled_back) == (24, 24 * 16, [])
    assert undisturbed.tracking_problem is None


def test_without_a_power_source_no_energy_is_claimed(undisturbed: Outcome) -> None:
    ready = undisturbed.history.ready
    assert ready is not None
    measured = [step.joules for step in undisturbed.history.steps]
    if "no power source" in ready.power:
        assert set(measured) == {None}
    else:
        assert all(joules is not None and joules >= 0 for joules in measured)


def test_a_tensor_parallel_group_gives_the_curve_of_two_data_parallel_ranks(
    configure: Configure, tmp_path: Path, undisturbed: Outcome
) -> None:
    outcome = pretrain(configure(tmp_path, "parallel.tp_size=2"), ignore)
    assert outcome.history.ready is not None
    assert (outcome.history.ready.dp_size, outcome.history.ready.tp_size) == (1, 2)
    assert curve(outcome) == pytest.approx(curve(undisturbed), abs=1e-4)


def test_a_killed_worker_costs_repeated_steps_but_not_the_curve(
    configure: Configure, tmp_path: Path, undisturbed: Outcome
) -> None:
    config = configure(tmp_path)
    ledger = Path(config.run.directory, config.run.name, "ledger", "000001.jsonl")
    killed: list[int] = []

    def wait_for(lines: int) -> None:
        until = time.monotonic() + 120
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
            assert time.monotonic() < until
            time.sleep(0.002)

    def kill_between_checkpoints() -> None:
        wait_for(1)
        pid = worker_pids()[-1]
        wait_for(7)  # after six of the steps, two behind the first checkpoint
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill_between_checkpoints, daemon=True)
    killer.start()
    outcome = pretrain(config, ignore)
    killer.join(60)
    assert killed
    assert curve(outcome) == pytest.approx(curve(undisturbed), abs=1e-5)
    report = audited(outcome)
    assert len(report.attempts) == 2
    assert [back.attempt for back in report.rolled_back] == [1], "the kill came at a checkpoint"


def test_a_run_that_is_left_in_the_middle_leaves_neither_ranks_nor_threads_that_ask_ray(
    configure: Configure, tmp_path: Path
) -> None:
    """The process that carries its messages is killed."""

    def kill(event: Event) -> None:
        if isinstance(event, Step) and event.step == 1:
            (board,) = pids("ray::Board")
            os.kill(board, signal.SIGKILL)

    with pytest.raises(PanthalassaError, match="carries the ranks' messages ended"):
        pretrain(configure(tmp_path, "train.steps=5000"), kill)
    assert [thread for thread in threading.enumerate() if thread.name == "attempt"] == []
    assert worker_pids() == []


def test_a_stopped_run_goes_on_with_a_new_driver_and_other_ranks_through_its_phases(
    configure: Configure, tmp_path: Path
) -> None:
    """Three phases with other mixtures and lengths. The stop falls into one of the first two."""
    phases = "stream.phases=[{from_step: 6, sequence_length: 32}, {from_step: 14, temperature: 3}]"
    whole = pretrain(configure(tmp_path / "whole", phases), ignore)
    steps = {step.step: step for step in whole.history.steps}
    assert steps[8].tokens < steps[5].tokens * 0.75, "half as long"

    def stop_at_once(event: Event) -> None:
        if isinstance(event, Step) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    first = pretrain(configure(tmp_path, phases, "checkpoint.every=1000"), stop_at_once)
    assert first.history.ended is not None
    assert first.history.ended.interrupted, "the run was over before the signal"
    second = pretrain(configure(tmp_path, phases, "cluster.workers=1"), ignore)
    assert second.history.steps[0].step == first.history.ended.step + 1
    assert curve(first) | curve(second) == pytest.approx(curve(whole), abs=1e-4)
    evaluated = [evaluation.step for evaluation in second.history.evaluations]
    assert evaluated == [0, 12, 24], "the held-out losses of both attempts are one history"
    report = audited(second)
    assert [account.attempt.dp_size for account in report.attempts] == [2, 1]
    assert report.rolled_back == []
    assert {epoch.sequence_length for epoch in report.epochs} == {64, 32}


def test_a_run_goes_on_with_other_data_only_when_it_may(
    configure: Configure, finished: Path
) -> None:
    other = "train.steps=25", "stream.temperature=3"
    with pytest.raises(PanthalassaError, match=r"temperature is 1\.0 there, 3\.0 here"):
        pretrain(configure(finished, *other), ignore)
    changed = configure(finished, *other, "stream.on_change=new_phase", "cluster.workers=1")
    report = audited(pretrain(changed, ignore))
    assert [p.first_step for p in report.attempts[-1].attempt.phases] == [0, 24]


@pytest.mark.parametrize("on_bad_shard", ["stop", "quarantine"])
def test_a_rotten_shard_in_the_middle_of_a_run(
    configure: Configure, small_corpus: Path, tmp_path: Path, on_bad_shard: str
) -> None:
    """It stops the run, named and with a checkpoint, or its samples are left out, on record."""
    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    shard = next((corpus / "train" / "bb").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    config = configure(
        tmp_path,
        f"corpus.directory={corpus}",
        f"stream.on_bad_shard={on_bad_shard}",
        "stream.weights={aa: 1}",
        "stream.phases=[{from_step: 10, weights: {aa: 1, bb: 3}}]",
    )
    folder = open_storage(config.run.directory).below(config.run.name)
    if on_bad_shard == "stop":
        with pytest.raises(PanthalassaError, match=f"shard {shard} is corrupt"):
            pretrain(config, ignore)
        assert committed(folder)[-1] == "step-00000010"
        assert audit_run(folder).passed
        return
    notices: list[str] = []
    outcome = pretrain(
        config, lambda event: notices.append(event.text) if isinstance(event, Notice) else None
    )
    assert [notice for notice in notices if "samples, which can not be read" in notice] == notices
    assert len(notices) == 1
    report = audited(outcome)
    assert report.steps == 24
    assert report.quarantined.total() == pytest.approx(14 * 16 * 3 / 4, rel=0.05)
    assert report.samples + report.quarantined.total() == 24 * 16


def test_a_rotten_held_out_shard_costs_no_step(
    configure: Configure, small_corpus: Path, finished: Path
) -> None:
    """It is noticed by the evaluation that first reads it."""
    corpus = shutil.copytree(small_corpus, finished / "corpus")
    shard = next((corpus / "held_out" / "bb").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    settings = f"corpus.directory={corpus}", "evaluation.samples=1000", "checkpoint.every=100"
    config = configure(finished, *settings, "train.steps=38")
    with pytest.raises(PanthalassaError, match=f"shard {shard} is corrupt"):
        pretrain(config, ignore)
    folder = open_storage(config.run.directory).below(config.run.name)
    assert committed(folder)[-1] == "step-00000036", "the evaluation there failed"


def audited(outcome: Outcome) -> Report:
    """The report of an audit that passes."""
    run = outcome.config.run
    report = audit_run(open_storage(run.directory).below(run.name))
    assert report.problems == []
    return report
