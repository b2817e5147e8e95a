"""The lease of a run: one command at a time has it, and who has lost it is shut out.

Commands are processes of their own. They look sooner than the real ones, so that the tests are short.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from s3 import BUCKET, Server

from panthalassa import cluster, lease
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.lease import Fence, Lease, Owner
from panthalassa.storage import Storage, open_storage

PREPARE = """
import os, signal, sys, time
from panthalassa import lease
from panthalassa.errors import PanthalassaError
from panthalassa.lease import Lease
from panthalassa.storage import open_storage

lease.BEAT, lease.PATIENCE, lease.LOOK, lease.TOLD = 0.1, 2.0, 0.05, 0.2
run = open_storage(sys.argv[1])
"""
HOLD = """
with Lease(run) as held:
    print(held.epoch, flush=True)
    try:
        while True:
            held.check()
            held.fence.check()
            run.write("saved", str(held.epoch).encode())
            time.sleep(0.01)
    except PanthalassaError as error:
        print(error, flush=True)
"""
HOLD_ONCE = HOLD.replace("time.sleep(0.01)", "os.kill(os.getpid(), signal.SIGSTOP)")
"""Pauses itself behind a write: one that is under way in a pause is done when the process wakes up."""
CONTEND = """
def say(epoch, text):
    print(epoch, text, flush=True)

until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    try:
        with Lease(run) as held:
            for _ in range(3):
                say(held.epoch, "mine")
                time.sleep(0.03)
                held.check()
                held.advance()
            say(held.epoch, "mine")
    except PanthalassaError as error:
        assert "another command" in str(error), error
"""
PATIENCE = 60


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "run"))
    request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.1), ("PATIENCE", 2.0), ("LOOK", 0.05), ("TOLD", 0.2)):
        monkeypatch.setattr(lease, name, seconds)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(run: Storage) -> Iterator[Start]:
    """start(program, *arguments): a command of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PREPARE + program, run.uri, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


def test_while_one_command_has_it_others_are_refused_and_told_by_whom(
    run: Storage, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.JOB, '{"metadata": {"job_submission_id": "raysubmit_7"}}')
    holder = start(HOLD)
    assert line(holder) == "1"
    told: list[str] = []
    with pytest.raises(PanthalassaError) as refused:
        Lease(run, told.append)
    assert f"{run.uri} is held by job raysubmit_7, process {holder.pid} on " in str(refused.value)
    assert f"`panthalassa stop {run.uri}`" in str(refused.value)
    assert told == [], "one message is enough"


def test_a_killed_commands_successor_begins_at_once(
    run: Storage, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = start(HOLD)
    assert line(holder) == "1"
    holder.kill()
    monkeypatch.setattr(lease, "PATIENCE", 1e9)
    told: list[str] = []
    with Lease(run, told.append) as found:
        assert found.epoch == 2
    (text,) = told
    assert text.startswith(f"taking over from process {holder.pid} on ")
    told.clear()
    with Lease(run, told.append) as found:
        assert found.epoch == 3
    assert told == [], "it was given back"


def test_a_paused_command_that_wakes_up_after_the_takeover_writes_nothing_more(
    run: Storage, start: Start
) -> None:
    holder = start(HOLD_ONCE)
    assert line(holder) == "1"
    while psutil.Process(holder.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    told: list[str] = []
    with Lease(run, told.append) as found:
        assert found.epoch == 2
        assert "of which there is no sign of life" in told[0]
        assert "taking over from" in told[1]
        run.write("saved", b"2")
        holder.send_signal(signal.SIGCONT)
        told_at_last = line(holder)
        assert "another command goes on with this run" in told_at_last
        assert f"was taken over by process {os.getpid()} on" in told_at_last
        holder.wait(PATIENCE)
        assert run.read("saved") == b"2"


def elsewhere(run: Storage, epoch: int, since: float) -> None:
    """A command on another machine, whose clock says what it likes, takes an epoch."""
    owner = Owner.here().model_copy(update={"machine": "another", "pid": 1, "since": since})
    run.create(f"lease/{epoch:06d}.json", owner.model_dump_json().encode())


def test_a_command_on_another_machine_is_judged_by_its_sign_of_life_alone(run: Storage) -> None:
    elsewhere(run, 1, since=1e10)
    ended = threading.Event()

    def live() -> None:
        beats = 0
        while not ended.wait(0.1):
            beats += 1
            run.write("lease/000001.alive", str(beats).encode())

    living = threading.Thread(target=live)
    living.start()
    with pytest.raises(PanthalassaError, match="is held by process 1 on"):
        Lease(run)
    ended.set()
    living.join()
    with Lease(run) as found:
        assert found.epoch == 2


def test_the_next_epoch_shuts_out_all_before_it(run: Storage) -> None:
    with Lease(run) as ours:
        first = ours.fence
        first.check()
        ours.advance()
        with pytest.raises(PanthalassaError, match="another command goes on"):
            first.check()
        ours.fence.check()
        assert (ours.command, ours.epoch) == (1, 2)
        elsewhere(run, 3, 0.0)
        with pytest.raises(PanthalassaError, match="was taken over by process 1 on"):
            ours.advance()
        with pytest.raises(PanthalassaError, match="was taken over by process 1 on"):
            ours.check()


def test_a_command_finds_out_by_itself_that_it_lost_the_lease(run: Storage) -> None:
    with Lease(run) as ours:
        elsewhere(run, 2, 0.0)
        until = time.monotonic() + PATIENCE
        while not ours.lost:
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(PanthalassaError, match="was taken over by process 1 on"):
            ours.check()


def test_no_epoch_has_two_owners_whatever_is_paused_and_killed(run: Storage, start: Start) -> None:
    """Four commands take the run from each other for some seconds; each that dies is started again."""
    chance, seconds = random.Random(0), 4.0
    until = time.monotonic() + seconds
    commands = [start(CONTEND, str(seconds)) for _ in range(4)]
    every = list(commands)
    while time.monotonic() < until:
        number = chance.randrange(4)
        victim = commands[number]
        if chance.random() < 0.4:
            victim.kill()
            commands[number] = start(CONTEND, str(until - time.monotonic()))
            every.append(commands[number])
        else:
            victim.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0.0, 0.5))
            victim.send_signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.5))
    owners: dict[int, set[int]] = {}
    for process in every:
        for told in process.communicate(timeout=PATIENCE)[0].splitlines():
            owners.setdefault(int(told.split()[0]), set()).add(process.pid)
        assert process.returncode in (0, -signal.SIGKILL)
    assert [epoch for epoch, pids in owners.items() if len(pids) > 1] == []
    names = [name for name, _ in run.below("lease").files() if name.endswith(".json")]
    assert names == [f"{epoch:06d}.json" for epoch in range(1, len(names) + 1)]
    pids = [json.loads(run.read(f"lease/{name}"))["pid"] for name in names]
    assert all(owners.get(epoch, {pid}) == {pid} for epoch, pid in enumerate(pids, 1))
    assert len(set(pids)) > 2, "the lease changed hands"


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match=f"{tmp_path}/run is not writable"):
        Lease(open_storage(str(tmp_path / "run")))


def test_a_fence_that_can_not_be_asked_forbids(server: Server, s3: str, tmp_path: Path) -> None:
    fence = Fence(open_storage(f"s3://no-such-bucket/{tmp_path.name}", patience=0.5), 1)
    with pytest.raises(PanthalassaError, match="can not be read"):
        fence.check()


def test_a_start_that_nobody_contends_takes_one_look_and_one_write(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("files", "read", "exists", "write", "create"):
        call = getattr(Storage, name)

        def noted(self: Storage, *given: object, name: str = name, call: object = call) -> object:
            done.append(name)
            return call(self, *given)  # type: ignore[operator]

        monkeypatch.setattr(Storage, name, noted)
    monkeypatch.setattr(lease, "BEAT", 1e9)
    for _ in range(2):
        done.clear()
        with Lease(run):
            assert done == ["files", "create"]
