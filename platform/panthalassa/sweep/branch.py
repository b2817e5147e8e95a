"""A run that begins as a copy of another: its newest checkpoint, and the ledger of what that was
trained on.

The copy's lease counts on from the original's epochs, by which ledgers and checkpoints are numbered. So
the branch is audited as a run that went on from its checkpoint; what the original trained on behind it
counts as rolled back.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

from panthalassa import lease
from panthalassa.corpus.manifest import MANIFESTS
from panthalassa.errors import CheckpointError
from panthalassa.storage import Storage
from panthalassa.stream import ledger
from panthalassa.train.checkpoint import COMMIT, newest

TRIES = 5
"""The original trains on, and may remove a checkpoint while it is copied."""


def branch(original: Storage, run: Storage) -> int:
    """Copy what a run needs to go on as `run` where `original` is; the step after which it goes on.

    Raises OSError, and CheckpointError for an original that has no checkpoint, or only corrupt ones.
    """
    for _ in range(TRIES):
        if (found := newest(original)) is None:
            raise CheckpointError(f"{original.uri} has no checkpoint from which to branch")
        with suppress(FileNotFoundError):
            _copy(original, run, found[0])
            return found[1].step
    raise CheckpointError(f"{original.uri} removes its checkpoints faster than they can be copied")


def _copy(original: Storage, run: Storage, checkpoint: str) -> None:
    epoch = max(name for name in _files(original, lease.FOLDER) if name.endswith(".json"))
    parts = [_files(original, part) for part in (ledger.FOLDER, MANIFESTS, checkpoint)]
    commit = f"{checkpoint}/{COMMIT}"
    for name in [epoch, *(name for part in parts for name in part if name != commit), commit]:
        with tempfile.NamedTemporaryFile() as file:
            file.writelines(original.chunks(name))
            file.flush()
            run.upload(name, Path(file.name))
    run.write(epoch.replace(".json", ".free"), b"")


def _files(run: Storage, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name, _ in run.below(folder).files()]
