"""The lease of a run: one command at a time may change it, and who has lost it is shut out.

Epochs are numbered objects below `lease/`, each made by a conditional write, so that each has one
owner. A command takes an epoch when it starts and another for each further attempt of its ranks; with
that, all earlier ones are over.

Whoever is about to change what others depend on looks first whether a later epoch has begun (`Fence`):
before a checkpoint is written, committed or removed, a request to stop is taken, and the detail of
energy is replaced. All else is harmless whenever it is written. The ledgers of samples, time and energy,
the spool and the stacks of ranks that hang are in files of their own, named by their epoch; a manifest
is the same whoever writes it; and a pointer into the spool that goes back has requests repeated, which
the tracking server takes for what they are.

The owner leaves a sign of life every few seconds, and a mark when it gives the lease back. Another
command takes it over when the owner's process is gone from this machine, or when its sign has not
changed for PATIENCE seconds of the watcher's own clock; no two clocks are ever compared.
"""

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from panthalassa.cluster import submitted_job
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.storage import Storage

FOLDER = "lease"
BEAT = 5.0
"""Seconds between two signs of life."""
PATIENCE = 20.0
"""Seconds without a new sign after which the owner is taken for dead: it had four to give."""
LOOK = 1.0
"""Seconds between two looks at an owner that may be dead."""
TOLD = 1.5 * BEAT
"""Seconds of waiting that are not worth a word: an owner that lives is found out sooner."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
PROCESSES = Path("/proc/self/ns/pid")


class Owner(BaseModel):
    """Who has an epoch: the content of its object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    """A random name: no two commands write the same."""
    host: str
    pid: int
    machine: str
    """Where `pid` means this process: the boot of a kernel, and the processes that see each other."""
    job: str
    """Ray's id of the submitted job, if it is one."""
    since: float
    """In seconds since 1970, by its own clock; for people alone."""

    @classmethod
    def here(cls) -> "Owner":
        return cls(
            command=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            job=_job(),
            since=time.time(),
        )

    @property
    def gone(self) -> bool:
        """Whether its process has ended, as far as can be seen from here."""
        return self.machine == _machine() and not _runs(self.pid)

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"{job}process {self.pid} on {self.host}, since {since}"


def _machine() -> str:
    try:
        return f"{BOOT.read_text().strip()} {os.readlink(PROCESSES)}"
    except OSError:  # not Linux
        return socket.gethostname()


def _runs(pid: int) -> bool:
    if not psutil.pid_exists(pid):
        return False
    with suppress(psutil.Error):  # it may be hidden from us
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return True


def _job() -> str:
    try:
        return str(submitted_job()["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return ""


class HeldError(PanthalassaError):
    """Another command has the run, and lives."""


@dataclass(frozen=True)
class Fence:
    """An epoch's end of the lease, as its driver and each of its ranks hold it."""

    run: Storage
    epoch: int

    @property
    def overtaken(self) -> bool:
        """Whether a later epoch has begun. Raises OSError."""
        return self.run.exists(_object(self.epoch + 1))

    def check(self) -> None:
        """Raises PanthalassaError when a later epoch has begun, or nobody knows."""
        try:
            if self.overtaken:
                raise PanthalassaError(
                    f"another command goes on with this run: {self.run.uri} was taken over by "
                    f"{_owner(self.run, self.epoch + 1) or 'an unknown one'}. This one ends and saves "
                    "nothing more; choose another run.name to train beside the other."
                )
        except OSError as error:
            raise PanthalassaError(
                f"the lease of {self.run.uri} can not be read: {error}. Mend the storage; the same "
                "command then goes on from the last checkpoint."
            ) from error


class Lease:
    """A command's right to write into a run's folder, from its creation to the end of the block.

    Raises HeldError when another command has it and lives, ConfigError when the folder can not be
    written. `tell` gets a line when that takes long, and when the lease is taken over.
    """

    def __init__(self, run: Storage, tell: Callable[[str], None] = lambda text: None) -> None:
        self._run, self._owner = run, Owner.here()
        self._brief = replace(run, patience=BEAT)
        try:
            self.epoch = _take(run, self._owner, tell)
        except OSError as error:
            raise ConfigError(
                f"run.directory={run.uri.rpartition('/')[0]}: {run.uri} is not writable: {error}. "
                "Correct the key, or the endpoint, credentials and permissions."
            ) from error
        """The newest: that of the attempt under way."""
        self.command = self.epoch
        """The first: the command's files are named by it."""
        self._beats = 0
        self.lost = False
        """Whether another command is known to have taken it over."""
        self._changing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_closed, daemon=True, name="lease")
        self._thread.start()

    @property
    def fence(self) -> Fence:
        return Fence(self._run, self.epoch)

    def check(self) -> None:
        """Raises PanthalassaError when this command is known to have lost the lease; asks no storage."""
        if self.lost:
            self.fence.check()

    def advance(self) -> None:
        """Begin the next epoch: the ranks of the attempt before are shut out.

        Raises PanthalassaError when another command was faster.
        """
        with self._changing:
            try:
                self._run.create(_object(self.epoch + 1), _content(self._owner))
            except FileExistsError:
                self.lost = True
                self.fence.check()
            except OSError as error:
                raise PanthalassaError(
                    f"the lease of {self._run.uri} can not be written: {error}. Make room or mend the "
                    "storage; the same command then goes on from the last checkpoint."
                ) from error
            else:
                self.epoch += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        with suppress(OSError):  # then the next command watches it for a while
            self._brief.write(_free(self.epoch), b"")

    def _beat_until_closed(self) -> None:
        while not self._closing.wait(BEAT) and not self.lost:
            with self._changing, suppress(OSError):
                self.lost = Fence(self._brief, self.epoch).overtaken
                if not self.lost:
                    self._beats += 1
                    self._brief.write(_sign(self.epoch), str(self._beats).encode())


def _take(run: Storage, owner: Owner, tell: Callable[[str], None]) -> int:
    """The epoch that is now the owner's. Raises OSError, or HeldError when another lives."""
    while True:
        newest, held = _newest(run)
        if held:
            _watch(run, newest, tell)
        with suppress(FileExistsError):  # another was faster: now it is the one to watch
            run.create(_object(newest + 1), _content(owner))
            return newest + 1


def _newest(run: Storage) -> tuple[int, bool]:
    """The newest epoch, 0 before there is any, and whether somebody has it still."""
    names: set[str] = set()
    with suppress(FileNotFoundError):
        names = {f"{FOLDER}/{name}" for name, _ in run.below(FOLDER).files()}
    found = (re.fullmatch(rf"{FOLDER}/(\d+)\.json", name) for name in names)
    newest = max((int(match[1]) for match in found if match), default=0)
    return newest, newest > 0 and _free(newest) not in names


def _watch(run: Storage, epoch: int, tell: Callable[[str], None]) -> None:
    """Return when the owner of an epoch is gone, or silent for too long, or has it no more.

    Raises HeldError when it lives.
    """
    owner, sign = _owner(run, epoch), _read(run, _sign(epoch))
    who, began, told = str(owner or "an unknown process"), time.monotonic(), False
    while not (owner and owner.gone):
        waited = time.monotonic() - began
        if _newest(run) != (epoch, True):
            return
        if _read(run, _sign(epoch)) != sign:
            raise HeldError(
                f"another command has this folder: {run.uri} is held by {who}. Stop it with "
                f"`panthalassa stop {run.uri}`, wait until it has ended, or choose another run.name."
            )
        if waited > PATIENCE:
            break
        if waited > TOLD and not told:
            told = True
            tell(
                f"{run.uri} is held by {who}, of which there is no sign of life: it is taken over when "
                f"there is none for {PATIENCE:.0f} s"
            )
        time.sleep(LOOK)
    tell(f"taking over from {who}, which ended without giving the run back")


def _owner(run: Storage, epoch: int) -> Owner | None:
    """None when what is there is none."""
    try:
        return Owner.model_validate_json(run.read(_object(epoch)))
    except (FileNotFoundError, ValidationError):
        return None


def _read(run: Storage, name: str) -> bytes:
    try:
        return run.read(name)
    except FileNotFoundError:
        return b""


def _content(owner: Owner) -> bytes:
    return owner.model_dump_json().encode()


def _object(epoch: int) -> str:
    return f"{FOLDER}/{epoch:06d}.json"


def _sign(epoch: int) -> str:
    return f"{FOLDER}/{epoch:06d}.alive"


def _free(epoch: int) -> str:
    return f"{FOLDER}/{epoch:06d}.free"
