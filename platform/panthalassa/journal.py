"""Journals: lines that are appended to a folder while a run goes on, and outlive its crash.

Each writer has a number, and so files of its own: on a local disk one, which grows line by line; on
object storage, where nothing can be appended, parts, the last of which is written anew every few seconds
until it is full.
"""

import errno
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from panthalassa.storage import Storage

INTERVAL = 5.0
"""Seconds between two writes to object storage."""
FULL = 1 << 16
"""Bytes of a part that is followed by another: few enough to write, and a long run has few parts."""
PIECE = 1 << 22
"""Bytes that are read of a file at a time; more than any line has."""


class Journal:
    """One writer's lines. What could not be written is kept, for the next `write`.

    A thread may write while others add lines.
    """

    def __init__(self, folder: Storage, number: int) -> None:
        self._folder = folder
        self.number = number
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
        return _file(self._folder, self.number, self._part)

    def _append(self, file: str, data: bytes) -> None:
        _append_whole(Path(self._folder.path(file)), data)

    def sync(self) -> None:
        """Return when what was written outlives the machine. Raises OSError."""
        if self._folder.is_local:
            with open(self._folder.path(self._file), "rb") as file:
                os.fsync(file.fileno())


class Chain:
    """Checksums of the lines of one writer, each of its line and all before it."""

    def __init__(self) -> None:
        self._last = ""

    def seal(self, text: str) -> str:
        """The next line, with its checksum."""
        self._last = hashlib.sha256(f"{self._last} {text}".encode()).hexdigest()[:16]
        return f"{text} {self._last}"

    def unseal(self, line: str) -> str | None:
        """The text of the next line; None when it is not what was written there."""
        text = line.rpartition(" ")[0]
        return text if self.seal(text) == line else None


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


def newest_number(folder: Storage, before: float = math.inf) -> int:
    """The highest number of a journal that is lower than `before`; 0 for none. Raises OSError."""
    return max((number for number in _parts(folder) if number < before), default=0)


def journals(
    folder: Storage, before: float = math.inf, after: int = -1
) -> Iterator[tuple[str, Iterator[str]]]:
    """Each journal in order: where it is, for messages, and its lines, without one that was cut off.

    before, after: only those with a lower and a higher number. Raises OSError, while lines are read too.
    """
    for number, files in sorted(_parts(folder).items()):
        if not after < number < before:
            continue
        names = [file for file, _ in files]
        where = f"{folder.uri}/{names[0] if len(names) == 1 else f'{number:06d}'}"
        yield where, _lines(folder, names)


def _lines(folder: Storage, files: Sequence[str]) -> Iterator[str]:
    for file in files:
        for piece in _pieces(folder, file, 0):
            yield from piece.decode(errors="replace").split("\n")[:-1]


def unread(folder: Storage, read: Mapping[int, int]) -> Iterator[tuple[int, int, bytes]]:
    """The whole lines behind the first `read[number]` bytes of each journal, in pieces: the number of
    the journal, the bytes before the piece, and the piece. Raises OSError.
    """
    for number, files in sorted(_parts(folder).items()):
        offset, start = read.get(number, 0), 0
        for file, size in files:
            if start + size > offset:
                for piece in _pieces(folder, file, offset - start):
                    yield number, offset, piece
                    offset += len(piece)
            start += size


def _pieces(folder: Storage, file: str, offset: int) -> Iterator[bytes]:
    """Whole lines of a file from a line's beginning on."""
    if not folder.is_local:  # a part, and so small
        yield _whole_lines(folder.read(file)[offset:])
        return
    with open(folder.path(file), "rb") as stream:
        stream.seek(offset)
        while piece := _whole_lines(stream.read(PIECE)):
            yield piece
            stream.seek(offset := offset + len(piece))


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _parts(folder: Storage) -> dict[int, list[tuple[str, int]]]:
    """The files of each journal by its number, in order, with their bytes."""
    found: dict[int, list[tuple[str, int]]] = {}
    for file, size in folder.files() if folder.exists("") else []:
        name, _, suffix = file.partition(".")
        number = name.partition("-")[0]
        if suffix == "jsonl" and number.isdigit():
            found.setdefault(int(number), []).append((file, size))
    return found
