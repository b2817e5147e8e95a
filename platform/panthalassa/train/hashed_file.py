"""A new file whose SHA-256 is known when it is closed, and whose bytes are on the disk then.

It is hashed, and brought to the disk, by threads of its own while more is written: both let go of
Python's lock, so that a file takes as long as its hash does.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SMALL = 1 << 16
"""Bytes that are hashed at once: a thread would take longer to begin."""
SYNCED = 16 << 20
"""Bytes after which the disk is set to work."""


class HashedFile:
    """To be used in a `with`; `digest` is there behind it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.size = 0
        """Bytes so far."""
        self.digest = ""
        self._file = path.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._pool = ThreadPoolExecutor(2)
        self._hashing = self._syncing = self._pool.submit(lambda: None)
        self._unsynced = 0

    def write(self, data: bytes | memoryview) -> None:
        """The memory must not change until the file is closed. At most two pieces are held."""
        self._hashing.result()
        view = memoryview(data)
        if len(view) <= SMALL:
            self._sha256.update(view)
        else:
            self._hashing = self._pool.submit(self._sha256.update, view)
        self.size += len(view)
        self._unsynced += len(view)
        while len(view):
            view = view[self._file.write(view) :]
        if self._unsynced >= SYNCED and self._syncing.done():
            self._sync()

    def _sync(self) -> None:
        self._syncing.result()  # the kernel tells an error of the disk once
        self._syncing = self._pool.submit(os.fdatasync, self._file.fileno())
        self._unsynced = 0

    def align(self, to: int) -> int:
        """Write zeros up to a multiple of `to`, and return where that is."""
        self.write(bytes(-self.size % to))
        return self.size

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        with self._file:
            if kind is None:
                self._hashing.result()
                self._syncing.result()
                os.fsync(self._file.fileno())
                self.digest = self._sha256.hexdigest()
