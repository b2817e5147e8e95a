"""A run on several raylets, and what can happen to it: the faults that schedules are made of.

A fault does its harm and returns; `Stage.recovered` then waits until the run has saved a checkpoint
that it did not have before. Each fault leaves the run able to go on, if need be by the same command.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from nodes import Command, Nodes
from s3 import s3_server

from panthalassa.config import Config
from panthalassa.storage import Storage, open_storage
from panthalassa.train.checkpoint import COMMIT, committed

PATIENCE = 240
"""Seconds in which a run has to recover from any fault."""
OUTAGE = 20
"""Seconds for which the object storage is away."""


class Stage:
    """The run, its nodes, and the place where it keeps its state."""

    def __init__(
        self, config: Config, folder: Path, nodes: Nodes, joined: list[Any], place: Path
    ) -> None:
        self.config, self.folder, self.nodes, self.joined = config, folder, nodes, joined
        self.storage: Storage = open_storage(config.run.directory).below(config.run.name)
        self.place = place
        """The small disk that the run is on, or the buckets of the S3 server."""
        self.server = ExitStack()
        self.done: list[str] = []
        self.logs: list[Path] = []

    def submit(self) -> None:
        self.command = Command(self.config, self.folder, f"command-{len(self.logs) + 1}")
        self.logs.append(self.command.log)

    def serve(self) -> None:
        """Start the S3 server, at the port that the environment names."""
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        self.server.enter_context(s3_server(self.place, port))

    @property
    def newest(self) -> str:
        with suppress(OSError):
            return next(iter(committed(self.storage)[-1:]), "")
        return ""

    def recovered(self, before: str) -> None:
        """Return when the run has a newer checkpoint than `before`, or is complete."""
        until = time.monotonic() + PATIENCE
        while self.newest <= before:
            text = self.command.log.read_text()
            assert time.monotonic() < until, f"no recovery from {self.done}:\n{text}"
            if self.command.process.poll() is not None:
                assert "complete, after" in text, f"ended after {self.done}:\n{text}"
                return
            time.sleep(0.2)

    def suffer(self, fault: str) -> None:
        """Meet a fault, and recover."""
        before = self.newest
        self.done.append(fault)
        FAULTS[fault](self, random.Random(f"{fault} {len(self.done)}"))
        self.recovered(before)

    def ranks(self) -> list[psutil.Process]:
        until = time.monotonic() + PATIENCE
        while not (found := self.nodes.ranks()):
            assert time.monotonic() < until, "there are no ranks"
            time.sleep(0.2)
        return found

    def finish(self) -> str:
        """All output of all commands, when the run is complete."""
        if self.command.process.poll() is None:
            self.command.wait(2 * PATIENCE)
        return "\n".join(log.read_text() for log in self.logs)

    def close(self) -> None:
        if self.logs:
            self.command.close()
        self.server.close()


def kill_worker(stage: Stage, chance: random.Random) -> None:
    chance.choice(stage.ranks()).kill()


def freeze_worker(stage: Stage, chance: random.Random) -> None:
    """It keeps its connections and answers nothing: only a timeout finds out."""
    chance.choice(stage.ranks()).suspend()


def kill_node(stage: Stage, chance: random.Random) -> None:
    """One of two nodes dies; when only one is there, another joins first."""
    if len(stage.joined) < 2:
        add_node(stage, chance)
    stage.nodes.kill(stage.joined.pop(chance.randrange(len(stage.joined))))


def add_node(stage: Stage, chance: random.Random) -> None:
    stage.joined.append(stage.nodes.add(2))


def drain_node(stage: Stage, chance: random.Random) -> None:
    """A node is announced to leave, and leaves when the run has gone on without it."""
    if len(stage.joined) < 2:
        add_node(stage, chance)
    before, node = stage.newest, stage.joined.pop()
    stage.nodes.drain(node)
    stage.recovered(before)
    time.sleep(1)
    stage.nodes.kill(node)


def corrupt_newest_checkpoint(stage: Stage, chance: random.Random) -> None:
    """Flip a bit of it, and make the run load it."""
    stage.command.process.send_signal(signal.SIGSTOP)
    for rank in (ranks := stage.ranks()):
        rank.suspend()
    name = stage.newest
    if name:
        files = [path for path, _ in stage.storage.below(name).files() if path != COMMIT]
        path = f"{name}/{chance.choice(files)}"
        data = bytearray(stage.storage.read(path))
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        stage.storage.write(path, bytes(data))
    for rank in ranks:
        rank.kill()
    stage.command.process.send_signal(signal.SIGCONT)


def fill_disk(stage: Stage, chance: random.Random) -> None:
    """No room for the next checkpoint: the run ends and says so. Then there is room again."""
    room = os.statvfs(stage.place)
    block = stage.place / "block"
    block.write_bytes(b"\0" * (room.f_bavail * room.f_frsize))
    text = stage.command.wait(PATIENCE)
    block.unlink()
    assert "panthalassa: " in text, text
    assert stage.command.process.returncode == 1
    stage.submit()


def stop_storage(stage: Stage, chance: random.Random) -> None:
    stage.server.close()
    time.sleep(OUTAGE)
    stage.serve()


def kill_driver(stage: Stage, chance: random.Random) -> None:
    """The command is killed, and submitted again."""
    stage.command.close()
    stage.submit()


FAULTS: dict[str, Callable[[Stage, random.Random], None]] = {
    function.__name__: function
    for function in (
        kill_worker,
        freeze_worker,
        kill_node,
        add_node,
        drain_node,
        corrupt_newest_checkpoint,
        fill_disk,
        stop_storage,
        kill_driver,
    )
}
ON_DISK = [name for name in FAULTS if name != "stop_storage"]
ON_S3 = [name for name in FAULTS if name != "fill_disk"]
