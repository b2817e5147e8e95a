"""Sources: folders of text files come in, documents go out, each with its domain and its origin.

`find_files` lists what there is without reading it; `read_documents` reads one file and can run on
any machine that sees it. Whatever is wrong with a file is a CorpusError that names the file and the
line, for a corpus that silently lacks a part of its sources is worse than none.
"""

import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage

PYTHON_REFERENCE = "python-reference"
"""The source that every CPython carries: the topics of its language reference."""

SUFFIXES = (".txt", ".jsonl", ".parquet")
PARQUET_ROWS = 1024
MEND = "Correct the file or take it out of the folder."


@dataclass(frozen=True)
class SourceFile:
    """A file at `path` below `root`; `domain` holds for its documents that name no language."""

    root: str
    path: str
    size: int
    domain: str

    @property
    def place(self) -> str:
        return f"{self.root}/{self.path}"


@dataclass(frozen=True)
class Document:
    """A cleaned text of one domain; `provenance` is its file, with its line or row."""

    text: str
    domain: str
    provenance: str


def find_files(sources: list[str]) -> list[SourceFile]:
    """Every file of every source, in the order of the sources and then of paths.

    Files of other kinds, and those whose name or folder begins with a dot, are left out.
    Raises CorpusError for a source that is missing, unreadable, or holds no text.
    """
    if not sources:
        raise CorpusError(
            "corpus.sources is empty: list folders with .txt, .jsonl or .parquet files, "
            f"or {PYTHON_REFERENCE}."
        )
    return [file for source in sources for file in _files_of(source)]


def _files_of(source: str) -> list[SourceFile]:
    if source == PYTHON_REFERENCE:
        size = sum(len(text.encode()) for text in topics.values())
        return [SourceFile(PYTHON_REFERENCE, "topics", size, "python")]
    mend = "Correct the key corpus.sources."
    try:
        storage = open_storage(source)
        found = storage.files()
    except FileNotFoundError:
        raise CorpusError(f"source {source} does not exist. {mend}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise CorpusError(f"source {source} is no readable folder: {error}. {mend}") from error
    name = PurePosixPath(storage.root).name
    files = []
    for path, size in found:
        hidden = path.startswith(".") or "/." in path
        if path.endswith(SUFFIXES) and not hidden:
            folder, separator, _ = path.partition("/")
            domain = path_safe(folder if separator else name)
            files.append(SourceFile(storage.uri, path, size, domain))
    if not files:
        raise CorpusError(
            f"source {source} holds no .txt, .jsonl or .parquet file. Add some, or correct the "
            "key corpus.sources."
        )
    return files


def path_safe(domain: str) -> str:
    """The domain as a name for folders: letters, digits, `.`, `_` and `-`, at most 64 of them.

    A name that has to be changed gets a piece of its hash, so that different ones stay different.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", domain)[:64].lstrip("._-")
    if safe == domain and safe:
        return safe
    mark = hashlib.sha256(domain.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe[:55].rstrip('-') or 'domain'}-{mark}"


def clean(text: str) -> str:
    """The text in Unicode NFC, without NULs, byte-order marks and white space around it."""
    return unicodedata.normalize("NFC", text.replace("\0", "").replace("\ufeff", "")).strip()


def content_sha256(file: SourceFile) -> str:
    """SHA-256 of the file as it is now."""
    if file.root == PYTHON_REFERENCE:
        return hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()
    try:
        return open_storage(file.root).sha256(file.path)
    except OSError as error:
        raise _unreadable(file, error) from error


def read_documents(file: SourceFile) -> Iterator[Document]:
    """The documents of one file, cleaned; empty ones are left out.

    Raises CorpusError, naming file and line or row, for what is no UTF-8, no JSON, no Parquet, or
    has no text.
    """
    if file.root == PYTHON_REFERENCE:
        records: Iterator[tuple[str, Any, Any]] = _topics()
    else:
        reader = {".txt": _text, ".jsonl": _lines, ".parquet": _rows}
        records = reader[PurePosixPath(file.path).suffix](file)
    try:
        for place, text, language in records:
            if document := _document(file, place, text, language):
                yield document
    except OSError as error:
        raise _unreadable(file, error) from error


def _document(file: SourceFile, place: str, text: Any, language: Any) -> Document | None:
    if not isinstance(text, str):
        raise CorpusError(f"{place}: `text` is {_short(text)}, expected a string. {MEND}")
    if language is not None and not isinstance(language, str):
        raise CorpusError(f"{place}: `language` is {_short(language)}, expected a string. {MEND}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise CorpusError(f"{place}: the text is not valid Unicode: {error}. {MEND}") from error
    cleaned = clean(text)
    domain = path_safe(language) if language else file.domain
    return Document(cleaned, domain, place) if cleaned else None


def _topics() -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(topics):
        yield f"{PYTHON_REFERENCE}/{name}", topics[name], None


def _text(file: SourceFile) -> Iterator[tuple[str, Any, Any]]:
    yield file.place, _decode(file, 1, open_storage(file.root).read(file.path)), None


def _lines(file: SourceFile) -> Iterator[tuple[str, Any, Any]]:
    storage = open_storage(file.root)
    with storage.filesystem.open_input_stream(storage.path(file.path)) as stream:
        for number, line in enumerate(io.BufferedReader(stream), start=1):
            place = f"{file.place}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(_decode(file, number, line))
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{place}: not JSON: {error}. {MEND}") from error
            if not isinstance(record, dict) or "text" not in record:
                raise CorpusError(
                    f"{place}: expected an object with the key `text`, found {_short(record)}. "
                    f"{MEND}"
                )
            yield place, record["text"], record.get("language")


def _rows(file: SourceFile) -> Iterator[tuple[str, Any, Any]]:
    storage = open_storage(file.root)
    number = 0
    try:
        with storage.filesystem.open_input_file(storage.path(file.path)) as stream:
            parquet = pq.ParquetFile(stream)
            names = parquet.schema_arrow.names
            if "text" not in names:
                raise CorpusError(
                    f"{file.place}: there is no column `text` among {', '.join(names)}. "
                    "Rename the column of the texts."
                )
            columns = [name for name in ("text", "language") if name in names]
            for batch in parquet.iter_batches(PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    text = "" if row["text"] is None else row["text"]
                    yield f"{file.place}, row {number}", text, row.get("language")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file.place}, after row {number}: no UTF-8: {error}. {MEND}") from error
    except pa.ArrowException as error:
        raise CorpusError(f"{file.place} is no readable Parquet file: {error}. {MEND}") from error


def _decode(file: SourceFile, line: int, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise CorpusError(
            f"{file.place}, line {line}: no UTF-8: {error.reason} {data[error.start]:#04x}. "
            "Convert the file to UTF-8 or take it out of the folder."
        ) from error


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _unreadable(file: SourceFile, error: OSError) -> CorpusError:
    return CorpusError(f"{file.place} can not be read: {error}. {MEND}")
