"""Writing a checkpoint: at once, or from a copy in the background while training goes on.

Tensors go through torch DCP to the rank's files, hashed on the way: into the run's folder, or into a
staging folder and from there to object storage. Then the hashes are gathered, and rank 0 writes the
commit. All that communicates does so over one group: a snapshot's thread has a group of its own, and
so never meets a collective of the training loop.
"""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor

from panthalassa.errors import CheckpointError, PanthalassaError
from panthalassa.storage import Storage
from panthalassa.train.agreement import Group, agreed, everywhere, raise_together, together
from panthalassa.train.checkpoint import COMMIT, Commit, State, folder, remove, torn
from panthalassa.train.staging import staged
from panthalassa.train.tensor_files import Writer


@dataclass(frozen=True)
class Place:
    """Where and how a run saves."""

    run: Storage
    staging: str | None = None
    """For files on their way to object storage; None: the system's temporary folder."""
    permit: Callable[[], None] = lambda: None
    """Called on rank 0 before anything is changed or removed, and before the commit. Raises
    PanthalassaError to forbid it."""


@dataclass(frozen=True)
class Saving:
    """A snapshot that is committed."""

    commit: Commit
    size: int
    """Bytes."""
    seconds: float
    """From the copy to the commit."""
    stall: float
    """Seconds for which the training loop waited for the copy."""


def save(
    place: Place, tensors: Mapping[str, Tensor], commit: Commit, group: Group = None
) -> tuple[Commit, int]:
    """Write a checkpoint with all ranks; returns the commit with `files` filled in, and its bytes.

    One of the same step is replaced, and what crashed saves have left is removed. Raises
    PanthalassaError on every rank. Then the torn one is removed, and nothing older was touched.
    """
    run, name = place.run, folder(commit.step)
    first = dist.get_rank() == 0
    with together(group):
        if first:
            place.permit()
    with _named(place, name, group):
        with together(group):
            if first:
                for leftover in {*torn(run), name}:
                    remove(run, leftover)
                if run.is_local:
                    Path(run.path(name)).mkdir(parents=True)
        files = everywhere(_written(place, name, tensors, group), group)
    with together(group):
        if first:
            place.permit()
    commit = commit.model_copy(update={"files": {name: digest for name, digest, _ in files}})
    with _named(place, name, group), together(group):
        if first:
            data = commit.sealed().model_dump_json(indent=1) + "\n"
            run.create(f"{name}/{COMMIT}", data.encode())  # never in place of another's
    return commit, sum(size for *_, size in files)


def _written(
    place: Place, name: str, tensors: Mapping[str, Tensor], group: Group
) -> list[tuple[str, str, int]]:
    """Name, SHA-256 and bytes of the files of this rank, which are where they belong."""
    target = place.run.below(name)
    directory = Path(target.root)
    with ExitStack() as stack:
        with together(group):
            if not target.is_local:
                own = f"save-{secrets.token_hex(8)}"
                directory = stack.enter_context(staged(place.staging, own))
        writer = Writer(directory)
        dcp_save(dict(tensors), storage_writer=writer, process_group=group)
        with together(group):
            files = [
                (file, digest, (directory / file).stat().st_size)
                for file, digest in sorted(writer.digests.items())
            ]
            if not target.is_local:
                for file, *_ in files:
                    target.upload(file, directory / file)
    return files


@contextmanager
def _named(place: Place, name: str, group: Group) -> Iterator[None]:
    """Has all ranks raise a CheckpointError that says what to do, when the torn checkpoint is gone.

    If it is another's by now, it stays, and they raise what forbids it."""
    run = place.run
    try:
        yield
    except (CheckpointException, PanthalassaError) as error:
        room = ""
        if run.is_local and Path(run.root).exists():
            room = f" ({shutil.disk_usage(run.root).free / 1e6:,.0f} MB free on its disk)"
        with together(group):
            if dist.get_rank() == 0:
                place.permit()
                remove(run, name)
        raise agreed(
            CheckpointError(
                f"checkpoint {run.uri}/{name} could not be written: {reason(error)}{room}. "
                "Older checkpoints are untouched. Make room or mend the storage; the same command "
                "then goes on from them."
            )
        ) from error


def reason(error: BaseException) -> str:
    """The innermost cause in one line; DCP wraps the errors of all ranks in one."""
    if isinstance(error, CheckpointException) and error.failures:
        _, (inner, _) = min(error.failures.items())
        return reason(inner)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Buffers:
    """Host memory for one copy of the state, used again for each; pinned if the state is on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of `tensors`, valid until the next one. Returns when they may change."""
        copied = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
            self._buffers[name] = buffer
        buffer.copy_(local, non_blocking=True)
        if isinstance(tensor, DTensor):
            # Not from_local: that would move the copy to the device of the mesh.
            return DTensor(buffer, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]
        return buffer


class Snapshots:
    """Saves the state in a thread, one snapshot at a time. Made and used by all ranks alike.

    The thread begins by copying what only the optimizer changes, while the next step's forward and
    backward run, and the optimizer waits for it. Whoever else changes weights or moments calls `settle`
    before.
    """

    def __init__(self, place: Place, state: State) -> None:
        self.place, self.state = place, state
        self._buffers = Buffers()
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._stall = 0.0
        self._error: Exception | None = None
        state.optimizer.register_step_pre_hook(lambda *_: self._wait_for_copy())

    @property
    def in_flight(self) -> bool:
        """Whether a snapshot was taken that `settle` was not called for: the same on all ranks."""
        return self._thread is not None

    @property
    def done(self) -> bool:
        """Whether this rank's part of it is done."""
        return self._thread is not None and not self._thread.is_alive()

    def take(self, commit: Commit, committed: Callable[[Saving], None]) -> None:
        """Have the state saved as it is now.

        `committed` is called in the thread of every rank; what it raises of PanthalassaError and OSError
        is raised by `settle`, too.
        """
        assert self._thread is None
        start = time.perf_counter()
        tensors = self.state.tensors()
        later = {name: t for name, t in tensors.items() if name.startswith(State.STEPPED)}
        now = self._buffers.copy({name: t for name, t in tensors.items() if name not in later})
        stream = _side_stream(later)
        self._copied.clear()

        def run() -> None:
            try:
                try:
                    with torch.cuda.stream(stream):
                        copied = self._buffers.copy(later)
                finally:
                    self._copied.set()
                saved, size = save(self.place, now | copied, commit, self._group)
                with together(self._group):
                    seconds = time.perf_counter() - start
                    committed(Saving(saved, size, seconds, self._stall))
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True, name="snapshot")
        self._thread.start()
        self._stall = time.perf_counter() - start

    def _wait_for_copy(self) -> None:
        if self._thread is not None and not self._copied.is_set():
            start = time.perf_counter()
            self._copied.wait()
            self._stall += time.perf_counter() - start

    def settle(self) -> None:
        """Wait until the snapshot is committed, if there is one.

        Raises PanthalassaError on all ranks when it could not be saved.
        """
        if self._thread is None:
            return
        self._thread.join()
        error, self._error, self._thread = self._error, None, None
        if error is not None and not isinstance(error, PanthalassaError):
            told = f"a snapshot failed: {type(error).__name__}: {error}"
            error = CheckpointError(told).with_traceback(error.__traceback__)
        raise_together(error)


def _side_stream(tensors: Mapping[str, Tensor]) -> torch.cuda.Stream | None:
    """A stream of its own for copies from a GPU, behind what this one does so far."""
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return None
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    return stream
