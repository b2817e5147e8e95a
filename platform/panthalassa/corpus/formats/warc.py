"""Web crawls: WARC gives the main text of its HTML responses, WET the text that it holds.

FastWARC parses a record, but can not go on behind a broken one, and gives what is left of a torn
one as if it were whole. So records are cut out here, where a wrong length, garbage and a lost gzip
member cost one record each, and FastWARC gets them one by one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastwarc.warc import WarcRecord, WarcRecordType

from panthalassa.corpus.documents import Problem, Record, SourceFile, not_utf8
from panthalassa.corpus.formats.html import decoded, main_text
from panthalassa.corpus.formats.stream import (
    PIECE_BYTES,
    Damaged,
    gzip_members,
    pieces,
    seekable,
    unpacked,
)

RECORD_BYTES = 16 << 20
"""The longest record that is read: a page of more is no text. Common Crawl cuts at 5 MiB."""
HEADER_BYTES = 64 << 10
START = b"WARC/1."
LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d{1,18})[ \t]*\r?$", re.I | re.M)
KIND = re.compile(rb"^WARC-Type:[ \t]*(?:response|resource|conversion)[ \t]*\r?$", re.I | re.M)
WRONG_LENGTH = "torn, or its Content-Length is wrong"
REASON = 80
"""Characters of what a library says, which may quote the page."""
HTML = ("text/html", "application/xhtml+xml")


class Broken(ValueError):
    """No record can be cut out here; the message says why."""


def read_warc(file: SourceFile) -> Iterator[Record | Problem]:
    """The texts of a WARC or WET file; what is neither HTML nor text is left out."""
    with _stream(file) as parts:
        number = 0
        for number, part in enumerate(_records(parts), start=1):
            place = f"{file.place}, record {number}"
            if isinstance(part, str):
                yield Problem(place, part)
            elif part and (record := _text(place, part)):
                yield record


@contextmanager
def _stream(file: SourceFile) -> Iterator["Parts"]:
    if file.path.lower().endswith(".gz"):
        with seekable(file) as stream:
            yield Parts(gzip_members(stream))
    else:
        with unpacked(file) as stream:
            yield Parts(pieces(stream))


class Parts:
    """A stream that can be given back to, over pieces of which some are `Damaged`."""

    def __init__(self, given: Iterator[bytes | Damaged]) -> None:
        self._given = given
        self._buffer = bytearray()
        self._damage: Damaged | None = None
        """That which comes behind the buffer, when it is known."""

    def _more(self) -> bool:
        piece = self._damage or next(self._given, None)
        if isinstance(piece, Damaged):
            self._damage = piece
            raise piece
        self._buffer += piece or b""
        return piece is not None

    def skip(self, mark: bytes) -> bool:
        """Go to the `mark` that stands before the damage, or else behind the damage."""
        start = self._buffer.find(mark)
        if start < 0:
            self._damage = None
        del self._buffer[: start if start >= 0 else None]
        return start >= 0

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end. Raises Damaged, and goes on behind it after a `skip`."""
        while len(self._buffer) < size and self._more():
            pass
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def until(self, mark: bytes, limit: int) -> bytes | None:
        """What there is up to and with `mark`; None, and nothing is read, when it is not near."""
        begun = 0
        while (end := self._buffer.find(mark, begun, limit)) < 0:
            begun = max(0, len(self._buffer) - len(mark))
            if len(self._buffer) >= limit or not self._more():
                return None
        return self.read(end + len(mark))

    def give_back(self, data: bytes) -> None:
        self._buffer[:0] = data

    def seek(self, mark: bytes) -> bool:
        """Drop what is before the next `mark`, which is in the rest or not."""
        while (start := self._buffer.find(mark)) < 0:
            del self._buffer[: -len(mark)]
            if not self._more():
                self._buffer.clear()
                return False
        del self._buffer[:start]
        return True


def _records(parts: Parts) -> Iterator[bytes | str]:
    """The records, whole, empty when they hold no text; a str says why one is lost."""
    while True:
        try:
            record = _cut(parts)
        except Damaged as error:
            yield WRONG_LENGTH if parts.skip(START) else f"damaged: {error}"
            continue
        except Broken as error:
            yield str(error)
            try:
                if not parts.seek(START):
                    return
            except Damaged:  # between here and the next record: one loss
                parts.skip(START)
            continue
        if record is None:
            return
        yield record


def _cut(parts: Parts) -> bytes | None:
    start = parts.read(len(START))
    while start[:1] in (b"\r", b"\n"):
        start = start[1:] + parts.read(1)
    if not start:
        return None
    if start != START:
        raise Broken("no WARC record begins here")
    header = parts.until(b"\r\n\r\n", HEADER_BYTES)
    if header and (next_start := header.find(START)) >= 0:
        parts.give_back(header[next_start:])
        raise Broken("torn in its header")
    length = LENGTH.search(header) if header else None
    if header is None or length is None:
        raise Broken("the header has no end, or no Content-Length")
    size, wanted = int(length[1]), KIND.search(header) is not None
    if size > RECORD_BYTES:
        _skip(parts, size)
        return b""
    block = parts.read(size + 4)
    if len(block) < size or block[size:] not in (b"\r\n\r\n", b"\r\n", b""):
        parts.give_back(block)  # a length that is too great swallows what follows
        raise Broken(WRONG_LENGTH)
    return START + header + block[:size] if wanted else b""


def _skip(parts: Parts, size: int) -> None:
    while size > 0:
        if not (piece := parts.read(min(size, PIECE_BYTES))):
            raise Broken("the file ends inside of it")
        size -= len(piece)


def _text(place: str, data: bytes) -> Record | Problem | None:
    try:
        return _parsed(place, data)
    except UnicodeDecodeError as error:
        return Problem(place, not_utf8(error))
    except (ValueError, OSError, LookupError) as error:
        return Problem(place, f"can not be parsed: {str(error)[:REASON]}")
    except BaseException as error:  # a panic of the libraries' Rust is no Exception
        if type(error).__name__ != "PanicException":
            raise
        return Problem(place, f"can not be parsed: {str(error)[:REASON]}")


def _parsed(place: str, data: bytes) -> Record | None:
    record = WarcRecord.from_bytes(data)
    url = record.headers.get("WARC-Target-URI")
    if record.record_type == WarcRecordType.conversion:
        return Record(place, record.reader.read().decode(), url=url)
    mime, charset = record.headers.get("Content-Type") or "", None
    if record.record_type == WarcRecordType.response:
        record.parse_http(auto_decode="all")
        if record.http_headers is None or record.http_headers.status_code is None:
            raise ValueError("the response has no status line of HTTP")
        if record.http_headers.status_code != 200:
            return None
        mime, charset = record.http_content_type or "", record.http_charset
    mime = mime.partition(";")[0].strip().lower()
    if mime == "text/plain":
        return Record(place, decoded(record.reader.read(), charset), url=url)
    if mime not in HTML:
        return None
    text, terms = main_text(record.reader.read(), charset)
    return Record(place, text, url=url, license=terms)
