"""The watchdog: a rank that gives no sign of life for too long leaves its stacks and ends.

A collective of which one rank is missing waits for ever, and so does every rank in it. Each rank watches
itself from a thread: no beat in time, and the stacks of all its threads go to stderr and to the run's
folder, as do on GPUs its newest collectives; a notice names the step and the rank, and the process ends.
That is how the others and Ray Train learn of it. What is written and sent may hang as well, and has its
own limit.
"""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from panthalassa.config import Guard
from panthalassa.storage import Storage
from panthalassa.train.board import Poster
from panthalassa.train.callback import Callback
from panthalassa.train.events import Notice, Step
from panthalassa.train.flight_recorder import newest_collectives
from panthalassa.train.training_run import TrainingRun

FOLDER = "stacks"
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""
PATIENCE = 20.0
"""Seconds for telling of it."""
STDERR = 2


class Watchdog(Callback):
    """Watches from its creation on until `close`."""

    def __init__(
        self, setting: Guard, run: Storage, attempt: int, rank: int, step: int, poster: Poster
    ) -> None:
        self.setting = setting
        self._storage = run
        self._file = f"{FOLDER}/attempt-{attempt:06d}-rank-{rank:04d}.txt"
        self._rank = rank
        self._poster = poster
        self._step = step
        self._limit = setting.first_step_seconds
        self._beat = time.monotonic()
        self._closing = threading.Event()
        self._watched = threading.get_ident()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self) -> None:
        """This rank is alive: called at every step, and around whatever may take long."""
        self._beat = time.monotonic()

    def after_step(self, run: TrainingRun, step: Step) -> None:
        self._step, self._limit = step.step, self.setting.step_seconds

    def close(self) -> None:
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(min(1.0, self._limit / 4)):
            if time.monotonic() > self._beat + self._limit:
                try:
                    self._tell()
                finally:
                    os._exit(EXIT_CODE)

    def _tell(self) -> None:
        faulthandler.dump_traceback(STDERR)
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            stacks = file.read()
        what = "waited for other ranks" if _waits_for_others(self._watched) else "hung"
        notice = Notice(
            f"rank {self._rank} {what} for {self._limit:g} s behind step {self._step} and ends itself; "
            f"its stacks are in {self._storage.uri}/{self._file}"
        )
        until = time.monotonic() + PATIENCE
        tasks: list[Callable[[], None]] = [
            lambda: self._storage.write(self._file, stacks),
            lambda: self._poster.fail(notice),
            self._keep_collectives,
        ]
        threads = [threading.Thread(target=task, daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _keep_collectives(self) -> None:
        found = newest_collectives(self._rank, PATIENCE / 2)
        if found is not None:
            self._storage.write(self._file.replace(".txt", ".flight"), found)


def _waits_for_others(thread: int) -> bool:
    """Whether a thread is in a collective: then another rank is the one that hangs."""
    frame = sys._current_frames().get(thread)
    while frame and "panthalassa/train" not in frame.f_code.co_filename:
        if "torch/distributed" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
