"""Plain text: a file is a document."""

from collections.abc import Iterator

from panthalassa.corpus.documents import DOCUMENT_BYTES, Problem, Record, SourceFile, not_utf8
from panthalassa.corpus.formats.stream import unpacked


def read_text(file: SourceFile) -> Iterator[Record | Problem]:
    with unpacked(file) as stream:
        data = stream.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        yield Problem(file.place, f"longer than {DOCUMENT_BYTES >> 20} MiB, the most of a document")
        return
    try:
        yield Record(file.place, data.decode())
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        yield Problem(f"{file.place}, line {line}", f"{not_utf8(error)}. Convert the file to UTF-8")
