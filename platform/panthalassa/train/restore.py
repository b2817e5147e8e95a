"""From the checkpoints of a run to the state of its ranks: find the newest good one, and load it.

A checkpoint is verified before anything of it is used: the ranks share its files out, hash them in
threads, and agree. One that is not what was written is set aside, and the one before it is tried. From
object storage the files are hashed on their way into a folder that the ranks of a machine share, so
that each machine downloads them once. Then DCP gives each rank its part, without hashing them again.
"""

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from panthalassa.errors import CheckpointError, CorruptError
from panthalassa.storage import Storage
from panthalassa.train import checkpoint
from panthalassa.train.agreement import agreed, everywhere, together
from panthalassa.train.checkpoint import Commit, State
from panthalassa.train.snapshot import reason
from panthalassa.train.staging import staged
from panthalassa.train.tensor_files import Reader

THREADS = 4


@dataclass
class Verified:
    """A checkpoint whose files are what their hashes say, in a local folder, held until it is loaded."""

    name: str
    commit: Commit
    directory: Path
    held: ExitStack

    def load(self, state: State) -> Commit:
        """Fill the model and the optimizer, of a run with any number of ranks.

        Whether it fits is for `checkpoint.phases_from` to say. Raises CheckpointError on every rank.
        """
        tensors = state.tensors()
        commit = self.load_tensors(tensors)
        state.loaded(tensors)
        return commit

    def load_tensors(self, tensors: dict[str, Tensor]) -> Commit:
        """Fill these, by their names in the checkpoint, of which they may be some.

        Raises CheckpointError on every rank.
        """
        with self.held:
            try:
                dcp_load(tensors, storage_reader=Reader(self.directory, set(self.commit.files)))
            except CheckpointException as error:
                raise agreed(
                    CheckpointError(
                        f"checkpoint {self.directory} can not be loaded: {reason(error)}"
                    )
                ) from error
        return self.commit


def resume(run: Storage, staging: str | None, report: Callable[[str], None]) -> Verified | None:
    """The newest good checkpoint of a run, the same on all ranks; None when there are none.

    report: called on rank 0 with what there is to say of those that are not good. Raises CheckpointError
    on every rank when all are corrupt, and then leaves them as they are, or when the storage can not be
    read.
    """
    names: list[str] = []
    unfinished: list[str] = []
    with together():
        if dist.get_rank() == 0:
            names, unfinished = checkpoint.candidates(run)
    corrupt: dict[str, str] = {}
    found: Verified | None = None
    for name in reversed(everywhere(names)):
        try:
            found = verify(run, name, staging)
            break
        except CorruptError as error:
            corrupt[name] = str(error)
    if corrupt and not found:
        raise agreed(checkpoint.all_corrupt(run, list(corrupt.values())))
    told = [
        f"{run.uri}/{name} has no commit: its save did not end, and it is not used"
        for name in unfinished
    ]
    with together():
        if dist.get_rank() == 0:
            for name, why in corrupt.items():
                aside = checkpoint.set_aside(run, name)
                told.append(f"{why}. It is set aside as {aside}")
    if found and told:
        told.append(f"going on from {run.uri}/{found.name}")
    for text in told:
        report(text)
    return found


def verify(run: Storage, name: str, staging: str | None = None) -> Verified:
    """A checkpoint with all its files hashed, for `Verified.load`. All ranks call it together.

    Raises on every rank CorruptError when it is not what was written, CheckpointError when it can not
    be read.
    """
    source = run.below(name)
    with together():
        commit = checkpoint.read_commit(run, name)
    with ExitStack() as stack:
        if source.is_local:
            directory = Path(source.root)
            mine = _share(sorted(commit.files), range(dist.get_world_size()))
        else:
            token = everywhere([secrets.token_hex(8)])[0]
            with together():
                directory = stack.enter_context(staged(staging, f"load-{token}"))
                (directory / f"rank-{dist.get_rank()}").touch()
            dist.barrier()
            peers = sorted(int(path.name[5:]) for path in directory.glob("rank-*"))
            mine = _share(sorted(commit.files), peers)

        def check(file: str) -> None:
            check_file(source, directory / file, commit.files[file])

        with together(), ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(check, mine):
                pass
        return Verified(name, commit, directory, stack.pop_all())


def load(run: Storage, name: str, state: State, staging: str | None = None) -> Commit:
    """Verify a checkpoint and fill the model and the optimizer from it, with all ranks."""
    return verify(run, name, staging).load(state)


def _share(files: Sequence[str], ranks: Sequence[int]) -> Sequence[str]:
    """This rank's part of the files, of which `ranks` see the same copies."""
    return files[ranks.index(dist.get_rank()) :: len(ranks)]


def check_file(source: Storage, path: Path, expected: str) -> None:
    """Hash a file of a checkpoint; from object storage it is written to `path` on the way.

    Raises CorruptError when it is missing or not what was written, CheckpointError when it can not be
    read.
    """
    place = f"{source.uri}/{path.name}"
    try:
        found = (
            source.sha256(path.name)
            if source.is_local
            else source.download(path.name, path, expected)
        )
    except FileNotFoundError as error:
        raise CorruptError(f"checkpoint file {place} is missing") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint file {place} can not be read: {error}") from error
    if found != expected:
        raise CorruptError(
            f"checkpoint file {place} is corrupt: SHA-256 is {found}, "
            f"{checkpoint.COMMIT} says {expected}"
        )
