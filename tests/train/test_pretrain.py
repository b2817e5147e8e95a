"""Whole runs on real Ray Train workers: the same curve at any layout, and across deaths and stops."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from panthalassa.config import Config
from panthalassa.storage import open_storage
from panthalassa.train.checkpoint import committed
from panthalassa.train.events import Event, Step
from panthalassa.train.run import Outcome, pretrain

Configure = Callable[..., Config]


def ignore(event: Event) -> None:
    pass


def curve(outcome: Outcome) -> dict[int, float]:
    """Loss by step; of a step that was repeated, the last."""
    return {step.step: step.loss for step in outcome.history.steps}


@pytest.fixture(scope="module")
def undisturbed(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The reference: two data-parallel ranks, from the first step to the last."""
    return pretrain(configure(tmp_path_factory.mktemp("undisturbed")), ignore)


def test_a_run_learns_and_leaves_everything_that_it_promises(undisturbed: Outcome) -> None:
    history, run = undisturbed.history, undisturbed.config.run
    assert [step.step for step in history.steps] == list(range(1, 25))
    assert [evaluation.step for evaluation in history.evaluations] == [0, 12, 24]
    assert history.evaluations[-1].loss < history.evaluations[0].loss - 0.5
    assert [text.prompt for text in history.texts] == ["kate"]
    assert history.ended is not None
    assert not history.ended.interrupted
    folder = open_storage(run.directory).below(run.name)
    assert committed(folder) == ["step-00000020", "step-00000024"], "the newest two are kept"
    assert folder.read("config.yaml").decode() == undisturbed.config.dump()
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
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if isinstance(event, Step) and event.step >= 5 and not killed:
            killed.append(worker_pids()[-1])
            os.kill(killed[0], signal.SIGKILL)

    outcome = pretrain(configure(tmp_path), kill_once)
    seen = [step.step for step in outcome.history.steps]
    assert killed
    assert len(seen) > len(set(seen)), "the run was over before the kill: no step was repeated"
    assert curve(outcome) == pytest.approx(curve(undisturbed), abs=1e-5)


def test_a_new_driver_goes_on_where_the_last_one_stopped(
    configure: Configure, tmp_path: Path, undisturbed: Outcome
) -> None:
    whole = curve(undisturbed)

    def stop_at_once(event: Event) -> None:
        if isinstance(event, Step) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    first = pretrain(configure(tmp_path, "checkpoint.every=1000"), stop_at_once)
    assert first.history.ended is not None
    assert first.history.ended.interrupted, "the run was over before the signal"
    second = pretrain(configure(tmp_path, "cluster.workers=1"), ignore)
    assert second.history.steps[0].step == first.history.ended.step + 1
    assert curve(first) | curve(second) == pytest.approx(whole, abs=1e-5)
    evaluated = [evaluation.step for evaluation in second.history.evaluations]
    assert evaluated == [0, 12, 24], "the held-out losses of both attempts are one history"


def worker_pids() -> list[int]:
    """The processes of this session's Ray Train workers."""
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            raylet = Path("/proc", parent, "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in title and session.encode() in raylet:
            found.append(int(process.name))
    return sorted(found)
