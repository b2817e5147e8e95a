"""Journals: lines that are appended to a folder while a run goes on, and outlive its crash.

Each writer has a number, and so files of its own: on a local disk one, which grows line by line; on
object storage, where nothing can be appended, parts, the last of which is written anew every few seconds
until it is full.
"""

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from panthalassa.storage import Storage

INTERVAL = 5.0
"""Seconds between two writes to object storage."""
FULL = 1 << 16
"""Bytes of a part that is followed by another: few enough to write, and a long run has few parts."""


class Journal:
    """One writer's lines. What could not be written is kept, for the next `write`.

    A thread may write while others add lines.
    """

    def __init__(self, folder: Storage, number: int) -> None:
        self._folder = folder
        self._number = number
        self._part = 0
        self._lines: list[str] = []
        """Of the part, or on a local disk those that are not written."""
        self._saved = 0
        """How many of these lines are written."""
        self._writing = threading.Lock()
        self._tried = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether lines should be written now, however few they are."""
        if self._writing.locked():
            return False
        return self._folder.is_local or time.monotonic() > self._tried + INTERVAL

    def add(self, line: str) -> None:
        self._lines.append(line + "\n")

    def create(self) -> None:
        """Write the first lines. Raises FileExistsError when another has this number, or OSError."""
        self._write(self._folder.create)

    def write(self) -> None:
        """Append all lines, or none of them and raise OSError."""
        self._tried = time.monotonic()
        self._write(self._append if self._folder.is_local else self._folder.write)

    def _write(self, write: Callable[[str, bytes], None]) -> None:
        with self._writing:
            count = len(self._lines)  # others may come meanwhile
            if count == self._saved:
                return
            data = "".join(self._lines[:count]).encode()
            write(self._file, data)
            self._saved = count
            if self._folder.is_local or len(data) >= FULL:
                del self._lines[:count]
                self._saved = 0
                self._part += 1

    @property
    def _file(self) -> str:
        return _file(self._folder, self._number, self._part)

    def _append(self, file: str, data: bytes) -> None:
        _append_whole(Path(self._folder.path(file)), data)

    def sync(self) -> None:
        """Return when what was written outlives the machine. Raises OSError."""
        if self._folder.is_local:
            with open(self._folder.path(self._file), "rb") as file:
                os.fsync(file.fileno())

    def follows(self) -> bool:
        """Whether there is a journal with the next number. Raises OSError."""
        return self._folder.exists(_file(self._folder, self._number + 1, 0))


def _file(folder: Storage, number: int, part: int) -> str:
    return f"{number:06d}.jsonl" if folder.is_local else f"{number:06d}-{part:06d}.jsonl"


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def next_number(folder: Storage) -> int:
    """The number of a new journal. Raises OSError."""
    return max(_parts(folder), default=0) + 1


def journals(folder: Storage, before: float = math.inf) -> Iterator[tuple[str, list[str]]]:
    """Each journal in order: where it is, for messages, and its lines, without one that was cut off.

    before: only those with a lower number. Raises OSError.
    """
    for number, files in sorted(_parts(folder).items()):
        if number >= before:
            break
        where = f"{folder.uri}/{files[0] if len(files) == 1 else f'{number:06d}'}"
        whole = b"".join(folder.read(file) for file in files).decode(errors="replace")
        yield where, whole.split("\n")[:-1]


def _parts(folder: Storage) -> dict[int, list[str]]:
    """The files of each journal by its number, in order."""
    found: dict[int, list[str]] = {}
    for file, _ in folder.files() if folder.exists("") else []:
        name, _, suffix = file.partition(".")
        number = name.partition("-")[0]
        if suffix == "jsonl" and number.isdigit():
            found.setdefault(int(number), []).append(file)
    return found
