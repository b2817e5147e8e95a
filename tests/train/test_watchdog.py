"""The watchdog: a rank that waits for one that hangs leaves its stacks and ends."""

import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from loops import Notes, go, looping, open_run
from ranks import RankError
from torch import distributed as dist

from panthalassa.config import Config, Guard
from panthalassa.storage import open_storage
from panthalassa.train.callback import Callback
from panthalassa.train.events import Event, Notice, Step
from panthalassa.train.flight_recorder import environment, newest_collectives
from panthalassa.train.training_run import TrainingRun
from panthalassa.train.watchdog import EXIT_CODE, Watchdog


class Loud(Notes):
    """Leaves what a dying rank sends where it outlives it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def fail(self, event: Event) -> None:
        assert isinstance(event, Notice)
        (self.folder / f"notice-{dist.get_rank()}").write_text(event.text)


class Hang(Callback):
    """Stops the process of one rank behind a step, as a node that goes away does."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def before_step(self, run: TrainingRun) -> None:
        if run.step == self.step and dist.get_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGSTOP)


class Stuck(Callback):
    """One rank never comes to a step."""

    def before_step(self, run: TrainingRun) -> None:
        if run.step == 3 and dist.get_rank() == 1:
            time.sleep(1000)


class Slow(Callback):
    """Takes its time at a few steps: together more than a step may take."""

    def after_step(self, run: TrainingRun, step: Step) -> None:
        if run.step in (5, 6, 7):
            time.sleep(0.6)


def watched(config: Config, folder: str, *around: Callback) -> int:
    run = open_run(config, folder)
    watchdog = Watchdog(config.guard, run.storage, 1, dist.get_rank(), run.step, Loud(folder))
    run.beat = watchdog.beat
    go(run, watchdog, *around)
    return run.step


@pytest.mark.parametrize(
    ("step", "limits"),
    [
        (3, ["guard.step_seconds=1.5", "guard.first_step_seconds=1000"]),
        (0, ["guard.step_seconds=1000", "guard.first_step_seconds=8"]),
    ],
)
def test_a_rank_that_waits_for_a_stopped_one_ends_with_its_stacks(
    ranks: Any, tmp_path: Path, step: int, limits: list[str]
) -> None:
    with pytest.raises(RankError, match=f"rank 0 died with exit code {EXIT_CODE}"):
        ranks(2, watched, looping(*limits), str(tmp_path), Hang(1, step), timeout=60)
    stacks = (tmp_path / "stacks" / "attempt-000001-rank-0000.txt").read_text()
    assert "in _next_input" in stacks, "the main thread waits for the other rank there"
    assert "in _watch" in stacks
    notice = (tmp_path / "notice-0").read_text()
    assert notice.startswith("rank 0 waited for other ranks for")
    assert f"behind step {step} " in notice
    assert str(tmp_path / "stacks") in notice
    assert not (tmp_path / "notice-1").exists()


def test_who_hangs_and_who_waits_is_told_apart(ranks: Any, tmp_path: Path) -> None:
    config = looping("guard.step_seconds=1.5", "guard.first_step_seconds=1000")
    with pytest.raises(RankError, match=f"died with exit code {EXIT_CODE}"):
        ranks(2, watched, config, str(tmp_path), Stuck(), timeout=60)
    told = [path.read_text() for path in tmp_path.glob("notice-*")]
    assert all(text.startswith(("rank 0 waited", "rank 1 hung")) for text in told)
    assert told


def test_slow_callbacks_and_a_long_run_are_no_hang(ranks: Any, tmp_path: Path) -> None:
    config = looping("guard.step_seconds=1.5", "guard.first_step_seconds=100")
    assert ranks(2, watched, config, str(tmp_path), Slow()) == [40, 40]
    assert not (tmp_path / "stacks").exists()


class Deaf(Notes):
    """A board that never answers."""

    def fail(self, event: Event) -> None:
        time.sleep(1000)


def stuck(folder: str) -> None:
    from panthalassa.train import watchdog

    watchdog.PATIENCE = 0.5
    setting = Guard(first_step_seconds=0.2)
    Watchdog(setting, open_storage(folder), 3, 7, 0, Deaf())  # type: ignore[arg-type]
    time.sleep(1000)


def test_a_board_that_does_not_answer_keeps_no_rank_alive(ranks: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match=f"exit code {EXIT_CODE}"):
        ranks(1, stuck, str(tmp_path), timeout=60)
    assert time.monotonic() - began < 40
    assert (tmp_path / "stacks" / "attempt-000003-rank-0007.txt").exists()


def test_the_newest_collectives_are_asked_for_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread stands for PyTorch's, which needs NCCL: it waits at the pipe, and writes the file."""
    for name, value in environment("r").items():
        monkeypatch.setenv(name, value.replace("/tmp", str(tmp_path)))
    assert newest_collectives(7, patience=5) is None, "there is no pipe without GPUs"
    pipe, dump = tmp_path / "panthalassa-r-pipe-7.pipe", tmp_path / "panthalassa-r-rank-7"
    dump.write_bytes(b"of an earlier run")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert newest_collectives(7, patience=0.5) is None, "nobody writes"
    assert os.read(reader, 1) == b"1"

    def record() -> None:
        while not select.select([reader], [], [], 0.1)[0]:
            pass
        time.sleep(0.3)
        dump.write_bytes(b"all_reduce")

    thread = threading.Thread(target=record)
    thread.start()
    assert newest_collectives(7, patience=20) == b"all_reduce"
    thread.join()
    os.close(reader)
