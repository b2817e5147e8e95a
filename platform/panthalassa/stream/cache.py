"""Shards as verified local files, memory-mapped.

A shard in a local folder is hashed when a process first touches it, and mapped where it lies. One in
object storage is downloaded whole into the cache directory of the node, hashed on its way into
`<sha256>.part`, and renamed to `<sha256>.parquet` when it is what the manifest says; a process that
finds it there hashes it again before its first use.

Processes agree by locks of the kernel, which end with their holder: one a shard (`<sha256>.lock`), for
downloading and removing what is rotten, and one for the room (`room.lock`). A `.part` file whose
lock is free was left by a dead process. A file that is removed to make room stays readable to those
who have mapped it.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from panthalassa.corpus.manifest import MANIFEST, Shard
from panthalassa.errors import CorpusError, ShardError
from panthalassa.storage import Storage

PATIENCE = 120.0
DOWNLOADS = 3
HASHED_AT_ONCE = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
REMEDY = "Restore the file or prepare the corpus anew."

_verified: dict[str, tuple[int, ...]] = {}
"""By path: the file that this process has hashed there."""


@dataclass(frozen=True)
class ShardCache:
    """The shards of the corpus at `storage`, kept in `directory` if they are not local already.

    `limit_bytes` bounds the files in the directory, least recently opened ones go first; a shard
    larger than that, and downloads that run at once, may exceed it. `patience`: the seconds for
    which a request to the storage is tried again while its failure may pass.
    """

    directory: Path
    limit_bytes: int
    storage: Storage
    patience: float = PATIENCE

    def open(self, shard: Shard) -> pa.MemoryMappedFile:
        """The whole shard, which is what its hash says. It may be closed, or left to be collected.

        Raises CorpusError when the shard is missing, short, rotten or can not be reached, and
        when the cache directory is full or can not be written.
        """
        if self.storage.is_local:
            return self._open_in_place(shard)
        target = self.directory / f"{shard.sha256}.parquet"
        try:
            file = _mapped(target, shard)
            if file is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                with _locked(target.with_suffix(".lock")):
                    file = _mapped(target, shard)
                    if file is None:
                        target.unlink(missing_ok=True)
                        file = self._download(shard, target)
        except OSError as error:
            raise self._refused(shard, error) from error
        with suppress(OSError):  # another process may just have removed it
            os.utime(target)
        return file

    def _open_in_place(self, shard: Shard) -> pa.MemoryMappedFile:
        path = Path(self.storage.path(shard.path))
        try:
            found = path.stat()
            file = pa.memory_map(str(path))
        except OSError as error:
            raise self._unreadable(shard, error) from error
        identity = (found.st_ino, found.st_size, found.st_mtime_ns)
        if _verified.get(str(path)) == identity:
            return file
        if found.st_size != shard.size:
            raise self._corrupt(shard, "it has", f"{found.st_size} bytes", shard.size)
        digest = _sha256(file)
        if digest != shard.sha256:
            raise self._corrupt(shard, "SHA-256 is", digest, shard.sha256)
        _verified[str(path)] = identity
        return file

    def _download(self, shard: Shard, target: Path) -> pa.MemoryMappedFile:
        """Needs the shard's lock."""
        part = target.with_suffix(".part")
        try:
            self._reserve(part, shard.size)
            hashes: list[str] = []
            while shard.sha256 not in hashes:
                if len(hashes) == DOWNLOADS or len(set(hashes)) < len(hashes):
                    told = shard.sha256 + _downloads(hashes)
                    raise self._corrupt(shard, "SHA-256 is", hashes[-1], told)
                hashes.append(self._fetch(shard, part))
            file = pa.memory_map(str(part))
            _verified[str(target)] = _identity(part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return file

    def _fetch(self, shard: Shard, part: Path) -> str:
        """Write the object over `part`, which has its size; the SHA-256 of what came."""
        storage = replace(self.storage, patience=self.patience)
        digest, size = hashlib.sha256(), 0
        chunks = storage.chunks(shard.path)
        with part.open("r+b", buffering=0) as file:
            while chunk := self._next(chunks, shard):
                size += len(chunk)
                if size > shard.size:
                    break
                digest.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
        if size != shard.size:
            told = size if size < shard.size else f"more than {shard.size}"
            raise self._corrupt(shard, "it has", f"{told} bytes", shard.size)
        return digest.hexdigest()

    def _next(self, chunks: Iterator[bytes], shard: Shard) -> bytes:
        """The next piece, or none; failures of the storage are not taken for those of the disk."""
        try:
            return next(chunks, b"")
        except OSError as error:
            raise self._unreadable(shard, error) from error

    def _reserve(self, part: Path, size: int) -> None:
        """Make `part`, `size` bytes long, and room for it. Needs the lock of its shard."""
        with _locked(self.directory / "room.lock"):
            self._remove_abandoned()
            part.unlink(missing_ok=True)
            self._make_room(size)
            with part.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)

    def _remove_abandoned(self) -> None:
        for part in self.directory.glob("*.part"):
            with _locked(part.with_suffix(".lock"), wait=False) as free:
                if free:
                    part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        found: list[tuple[int, int, Path]] = []
        for path in [*self.directory.glob("*.parquet"), *self.directory.glob("*.part")]:
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(bytes for _, bytes, _ in found) + size - self.limit_bytes
        for _, freed, path in sorted(found):
            if excess > 0 and path.suffix == ".parquet":
                path.unlink(missing_ok=True)
                excess -= freed

    def _line(self, shard: Shard) -> str:
        """Where the manifest lists the shard, for people who look there."""
        try:
            lines = replace(self.storage, patience=0.0).read(MANIFEST).decode().splitlines()
        except (OSError, UnicodeDecodeError):
            return MANIFEST
        start = next((i for i, line in enumerate(lines) if json.dumps(shard.path) in line), None)
        if start is None:
            return MANIFEST
        behind = (i for i in range(start, len(lines)) if '"sha256"' in lines[i])
        return f"{MANIFEST} (line {next(behind, start) + 1})"

    def _unreadable(self, shard: Shard, error: OSError) -> CorpusError:
        place = f"shard {self.storage.uri}/{shard.path} is listed in {self._line(shard)} but"
        if isinstance(error, FileNotFoundError):
            return ShardError(f"{place} does not exist. {REMEDY}")
        return CorpusError(f"{place} can not be read: {error}. The same command then goes on.")

    def _corrupt(self, shard: Shard, what: str, found: str, expected: str | int) -> CorpusError:
        return ShardError(
            f"shard {self.storage.uri}/{shard.path} is corrupt: {what} {found}, "
            f"{self._line(shard)} says {expected}. {REMEDY}"
        )

    def _refused(self, shard: Shard, error: OSError) -> CorpusError:
        if error.errno in NO_ROOM:
            return CorpusError(
                f"the disk of the cache {self.directory} is full: shard {self.storage.uri}/{shard.path} "
                f"needs {shard.size / 1e6:.1f} MB. Make room there, or set the key "
                "stream.cache_directory to a larger disk."
            )
        return CorpusError(
            f"the cache {self.directory} can not be used: {error}. "
            "Mend it, or set the key stream.cache_directory to a folder that can be written."
        )


def _mapped(path: Path, shard: Shard) -> pa.MemoryMappedFile | None:
    """The file at `path` if it is the shard, hashed unless this process has done so."""
    try:
        identity = _identity(path)
        if path.stat().st_size != shard.size:
            return None
        file = pa.memory_map(str(path))
    except FileNotFoundError:
        return None
    if _verified.get(str(path)) != identity:
        if _sha256(file) != shard.sha256:
            return None
        _verified[str(path)] = identity
    return file


def _identity(path: Path) -> tuple[int, ...]:
    """Tells a file from another at the same path; not from itself when it is touched."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size


def _sha256(file: pa.MemoryMappedFile) -> str:
    digest = hashlib.sha256()
    while chunk := file.read_buffer(HASHED_AT_ONCE):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


def _downloads(hashes: list[str]) -> str:
    if len(set(hashes)) < len(hashes):
        return " (every time: the object itself is rotten)"
    return f" ({len(hashes)} downloads differ: suspect the network or this node's memory)"


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock, also against other threads; yields whether it could be had."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
