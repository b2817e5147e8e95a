"""A snapshot is the state at its step boundary, whatever the loop does meanwhile."""

import hashlib
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import commit_of, refusal, save
from ranks import TinyRun, tiny
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.train import restore, snapshot
from panthalassa.train.checkpoint import COMMIT, State, committed, read_commit
from panthalassa.train.snapshot import Place, Saving, Snapshots


def nothing(saving: Saving) -> None:
    pass


def saved_in_both_ways(config: Config, folder: str) -> tuple[list[float], list[float]]:
    """Each state is saved at once and in the background, beside steps; the stalls and the losses."""
    copy, wait = snapshot.Buffers.copy, Snapshots._wait_for_copy
    stepping = threading.Event()

    def copy_late(buffers: Any, tensors: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            assert stepping.wait(60), "the optimizer does not wait for the copy"
            stepping.clear()
        return copy(buffers, tensors)

    def wait_for_copy(snapshots: Snapshots) -> None:
        stepping.set()
        wait(snapshots)

    snapshot.Buffers.copy = copy_late  # type: ignore[method-assign]
    Snapshots._wait_for_copy = wait_for_copy  # type: ignore[method-assign]
    run = TinyRun(config)
    at_once, behind = (open_storage(f"{folder}/{name}") for name in ("at-once", "behind"))
    snapshots = Snapshots(Place(behind), State(run.model, run.optimizer))
    savings: list[Saving] = []
    losses = []
    for step in range(4):
        save(run, at_once, step)
        snapshots.take(commit_of(run, step), savings.append)
        losses.append(run.step(step)[0])
        snapshots.settle()
    return [saving.stall for saving in savings], losses


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name.startswith("__")
    }


def continued(config: Config, folder: str, name: str) -> float:
    run = TinyRun(config)
    commit = restore.load(open_storage(folder), name, State(run.model, run.optimizer))
    return run.step(commit.step)[0]


@pytest.mark.parametrize("tp", [1, 2])
def test_a_snapshot_is_bit_for_bit_what_a_save_would_have_been(
    ranks: Any, tmp_path: Path, tp: int
) -> None:
    """Though the copy begins when the next forward and backward pass are over."""
    config = tiny(f"parallel.tp_size={tp}")
    (stalls, losses), _ = ranks(2, saved_in_both_ways, config, str(tmp_path))
    assert all(stall > 0 for stall in stalls)
    at_once, behind = tmp_path / "at-once", tmp_path / "behind"
    assert committed(open_storage(str(behind))) == [f"step-0000000{n}" for n in range(4)]
    for step in at_once.iterdir():
        assert digests(step) == digests(behind / step.name)
    (loss,) = ranks(1, continued, tiny("run.seed=99"), str(behind), "step-00000003")
    assert loss == pytest.approx(losses[3], abs=1e-5)


def one_can_not_write(config: Config, folder: str) -> tuple[str | None, list[str], float]:
    """Rank 1 can not write: the refusal, what is left, and the loss of the step beside it."""
    run, storage = TinyRun(config), open_storage(folder)
    snapshots = Snapshots(Place(storage), State(run.model, run.optimizer))
    snapshots.take(commit_of(run, 1), nothing)
    snapshots.settle()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    snapshots.take(commit_of(run, 2), nothing)
    loss = run.step(1)[0]
    message = refusal(snapshots.settle)
    assert not snapshots.in_flight
    return message, storage.folders(), loss


def test_an_error_of_one_rank_in_the_background_is_raised_on_all(
    ranks: Any, tmp_path: Path
) -> None:
    for message, folders, _ in ranks(2, one_can_not_write, tiny(), str(tmp_path)):
        assert message is not None
        assert str(tmp_path / "step-00000002") in message
        assert "Make room" in message
        assert folders == ["step-00000001"]


def fails_in_the_end(config: Config, folder: str) -> str | None:
    run = TinyRun(config)
    snapshots = Snapshots(Place(open_storage(folder)), State(run.model, run.optimizer))

    def fail(saving: Saving) -> None:
        if dist.get_rank() == 1:
            raise OSError("no answer")

    snapshots.take(commit_of(run, 1), fail)
    return refusal(snapshots.settle)


def test_so_is_one_that_comes_behind_the_commit(ranks: Any, tmp_path: Path) -> None:
    assert ranks(2, fails_in_the_end, tiny(), str(tmp_path)) == ["no answer"] * 2
    assert committed(open_storage(str(tmp_path))) == ["step-00000001"]


def fill_the_disk(config: Config, folder: str) -> str | None:
    run, storage = TinyRun(config), open_storage(f"{folder}/run")
    snapshots = Snapshots(Place(storage), State(run.model, run.optimizer))
    for step in range(100):
        snapshots.take(commit_of(run, step), nothing)
        message = refusal(snapshots.settle)
        if message:
            return message
    return None


def test_a_full_disk_spares_what_was_committed(
    ranks: Any, tmp_path: Path, make_disk: Callable[[str], Path]
) -> None:
    disk = make_disk("2m")
    for message in ranks(2, fill_the_disk, tiny(), str(disk)):
        assert message is not None
        assert "MB free on its disk" in message
    run = open_storage(str(disk / "run"))
    assert run.folders() == committed(run) != []


def forbidden(config: Config, folder: str, allowed: int) -> str | None:
    """A save that is permitted so many times, where another's save is under way."""
    asked: list[None] = []

    def permit() -> None:
        asked.append(None)
        if len(asked) > allowed:
            raise PanthalassaError("another command goes on with this run")

    run = TinyRun(config)
    state = State(run.model, run.optimizer)
    place = Place(open_storage(folder), permit=permit)
    return refusal(snapshot.save, place, state.tensors(), commit_of(run, 2))


@pytest.mark.parametrize("allowed", [0, 1])
def test_who_may_not_save_commits_nothing(ranks: Any, tmp_path: Path, allowed: int) -> None:
    """At first not even another's unfinished save is removed."""
    run = open_storage(str(tmp_path))
    run.write("step-00000005/__0_0.distcp", b"another's")
    for message in ranks(2, forbidden, tiny(), str(tmp_path), allowed):
        assert message == "another command goes on with this run"
    assert committed(run) == []
    assert ("step-00000005" in run.folders()) == (allowed == 0)


def save_again(config: Config, folder: str) -> None:
    run, storage = TinyRun(config), open_storage(folder)
    save(run, storage, 3)


def test_leftovers_of_a_crash_go_when_a_run_saves_again(ranks: Any, tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    for name in ("step-00000003/__7_0.distcp", "step-00000002/__0_0.distcp"):
        run.write(name, b"left")
    run.write("corrupt-step-00000001/__0_0.distcp", b"set aside")
    ranks(2, save_again, tiny(), str(tmp_path))
    assert run.folders() == ["corrupt-step-00000001", "step-00000003"]
    files = [name for name, _ in run.below("step-00000003").files()]
    assert files == sorted([*read_commit(run, "step-00000003").files, COMMIT])
