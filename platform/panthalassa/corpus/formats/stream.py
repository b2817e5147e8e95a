"""Streams of bytes from a source file: local or on S3, plain or compressed, in constant memory.

What storage can not deliver is a CorpusError, which ends a preparation: a bad network must not
decide what a corpus holds. What is wrong with the bytes themselves is an OSError of the codec, or a
`Damaged`, behind which reading goes on: those become problems.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pyarrow as pa

from panthalassa.corpus.documents import DOCUMENT_BYTES, SourceFile
from panthalassa.errors import CorpusError
from panthalassa.retry import retrying
from panthalassa.storage import Storage, open_storage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
REQUEST_BYTES = 8 << 20
PIECE_BYTES = 256 << 10
HELD_BYTES = 4 << 20
GZIP = b"\x1f\x8b\x08"

Result = TypeVar("Result")
Stream: TypeAlias = "io.BufferedReader[Any]"


class Damaged(ValueError):
    """A part of a compressed stream is lost; reading on gives what follows it."""


class StoredFile(io.RawIOBase):
    """A stored object that can be read anywhere; each request to S3 is tried again for a while.

    Raises CorpusError when the object is not there or can not be read.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__()
        self._storage = storage
        self._path = path
        self._position = 0
        self._file = self._trying(
            lambda: storage.filesystem.open_input_file(storage.path(path)),
        )
        self._size: int = self._trying(self._file.size)

    def _trying(self, operation: Callable[[], Result]) -> Result:
        place = f"{self._storage.uri}/{self._path}"
        try:
            if self._storage.is_local:
                return operation()
            return retrying(operation, place, self._storage.patience)
        except OSError as error:
            raise unreadable(place, error) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        if count == 0:
            return 0
        data = self._trying(lambda: self._file.read_at(count, self._position))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def unreadable(place: str, error: OSError) -> CorpusError:
    return CorpusError(
        f"{place} can not be read: {error}. Correct the file or take it out of the folder."
    )


def changed(place: str) -> CorpusError:
    return CorpusError(
        f"{place} has changed since the preparation began. Put back what it was, or prepare the sources "
        "as they are now into an empty folder."
    )


@contextmanager
def seekable(file: SourceFile) -> Iterator[Stream]:
    """The file as it is stored. Raises CorpusError."""
    raw = StoredFile(open_storage(file.root), file.path)
    with io.BufferedReader(raw, REQUEST_BYTES) as stream:
        yield stream


@contextmanager
def unpacked(file: SourceFile) -> Iterator[Stream]:
    """The file's content, decompressed as its name's end says.

    Raises CorpusError; reading raises an OSError when the compressed stream is torn or rotten.
    """
    codec = CODECS.get(PurePosixPath(file.path).suffix.lower())
    with seekable(file) as stream:
        if codec is None or not stream.peek(1):
            yield stream
            return
        # pyarrow would close the stream under the reader that still owns it.
        plain = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)
        yield io.BufferedReader(plain)


def lines(stream: Stream, limit: int = DOCUMENT_BYTES) -> Iterator[tuple[bytes, bool]]:
    """The lines, with their ends, and whether they are whole: one is cut at `limit` bytes."""
    while line := stream.readline(limit):
        whole = len(line) < limit or line.endswith(b"\n")
        yield line, whole
        rest = b"" if whole else b"x"
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(PIECE_BYTES)


def pieces(stream: Stream) -> Iterator[bytes | Damaged]:
    """A stream in pieces; when it turns out to be torn or rotten, a `Damaged` is the last."""
    try:
        while piece := stream.read1(PIECE_BYTES):
            yield piece
    except OSError as error:
        yield Damaged(str(error))


def gzip_members(stream: Stream) -> Iterator[bytes | Damaged]:
    """The content of a file of many gzip members, as WARC has one a record.

    A member is given when its checksum fits, in pieces when it is large, and as far as there is one
    when the file ends inside of it. In the place of what is torn or rotten is a `Damaged`, and the
    next member follows.
    """
    data = b""
    while data := data or stream.read1(PIECE_BYTES):
        decoder = zlib.decompressobj(wbits=31)
        held: list[bytes] = []
        try:
            while not decoder.eof:
                if not (data := data or stream.read1(PIECE_BYTES)):
                    yield b"".join(held)
                    raise zlib.error("the file ends inside of a gzip member")
                held.append(decoder.decompress(data, HELD_BYTES))
                data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                if sum(map(len, held)) > HELD_BYTES:
                    yield b"".join(held)
                    held = []
            yield b"".join(held)
        except zlib.error as error:
            yield Damaged(str(error))
            data = _next_member(data, stream)


def _next_member(data: bytes, stream: Stream) -> bytes:
    """What follows from the next gzip member's start on, behind the first byte of `data`."""
    while (start := data.find(GZIP, 1)) < 0:
        if not (more := stream.read1(PIECE_BYTES)):
            return b""
        data = data[-len(GZIP) :] + more
    return data[start:]
