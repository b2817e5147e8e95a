"""Folders for files on their way to and from object storage, one below the other in a place of the node.

A folder is locked in the kernel by all processes that use it, and removed by the last one. What the dead
left there holds no lock any more, and is removed by the next who comes: in /dev/shm it is memory.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def staged(parent: str | None, name: str) -> Iterator[Path]:
    """The folder `name`, shared by all processes of this machine that ask for it.

    parent: a local folder, or None for the system's temporary one.
    """
    root = Path(parent or tempfile.gettempdir()).expanduser() / f"panthalassa-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = root / name
    with _locked(root):
        for other in root.iterdir():
            _remove_unused(other)
        mine.mkdir(exist_ok=True)
        descriptor = os.open(mine, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield mine
    finally:
        os.close(descriptor)
        with _locked(root):
            _remove_unused(mine)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_unused(folder: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass  # it is in use
        finally:
            os.close(descriptor)
