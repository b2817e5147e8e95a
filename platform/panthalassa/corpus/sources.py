"""Sources: folders of files come in, documents go out, each with its domain and its provenance.

`find_files` lists what there is without reading it; `read_documents` reads one file and can run on
any machine that sees it. What is wrong inside of a file is a Problem beside the documents, for the
caller to count; a file that can not be had at all is a CorpusError, for a corpus that silently
lacks a part of its sources is worse than none.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa

from panthalassa.corpus.documents import Document, Problem, Provenance, Record, SourceFile, short
from panthalassa.corpus.formats.stream import unreadable
from panthalassa.corpus.formats.tables import read_json_lines, read_parquet
from panthalassa.corpus.formats.text import read_text
from panthalassa.corpus.formats.warc import read_warc
from panthalassa.corpus.formats.wikipedia import read_wikipedia
from panthalassa.corpus.normalise import normalise
from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage

__all__ = ["Document", "Problem", "SourceFile", "content_sha256", "find_files", "read_documents"]

PYTHON_REFERENCE = "python-reference"
"""The source that every CPython carries: the topics of its language reference."""

Reader = Callable[[SourceFile], Iterator[Record | Problem]]

PACKED = r"(\.(gz|zst|bz2))?$"
READERS: list[tuple[re.Pattern[str], Reader]] = [
    (re.compile(r"\.txt" + PACKED), read_text),
    (re.compile(r"\.jsonl" + PACKED), read_json_lines),
    (re.compile(r"\.parquet$"), read_parquet),
    (re.compile(r"\.xml(-p\d+p\d+)?" + PACKED), read_wikipedia),
    (re.compile(r"\.(warc|wet)" + PACKED), read_warc),
]
NO_SOURCE = re.compile(r"-multistream-index\d*\.txt")
"""The index beside a Wikipedia dump, which is no text."""
KINDS = ".txt, .jsonl, .parquet, .xml (a Wikipedia dump), .warc or .wet"


def find_files(sources: list[str]) -> list[SourceFile]:
    """Every file of every source, in the order of the sources and then of paths.

    Files of other kinds, and those whose name or folder begins with a dot, are left out.
    Raises CorpusError for a source that is missing, unreadable, or holds no text.
    """
    if not sources:
        raise CorpusError(
            f"corpus.sources is empty: list folders with {KINDS} files, or {PYTHON_REFERENCE}."
        )
    files: list[SourceFile] = []
    roots: dict[str, str] = {}
    for source in sources:
        for file in _files_of(source):
            name, number = file.source, 1
            while roots.setdefault(name, file.root) != file.root:
                number += 1
                name = f"{file.source}-{number}"
            files.append(replace(file, source=name))
    return files


def _files_of(source: str) -> list[SourceFile]:
    if source == PYTHON_REFERENCE:
        size = sum(len(text.encode()) for text in topics.values())
        return [SourceFile(PYTHON_REFERENCE, "topics", size, "python", PYTHON_REFERENCE)]
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
        if _reader(path) and not hidden:
            folder, separator, _ = path.partition("/")
            domain = path_safe(folder if separator else name)
            files.append(SourceFile(storage.uri, path, size, domain, name))
    if not files:
        raise CorpusError(
            f"source {source} holds no {KINDS} file. Add some, or correct the key corpus.sources."
        )
    return files


def _reader(path: str) -> Reader | None:
    name = PurePosixPath(path).name
    if NO_SOURCE.search(name):
        return None
    return next((reader for kind, reader in READERS if kind.search(name)), None)


def path_safe(domain: str) -> str:
    """The domain as a name for folders: letters, digits, `.`, `_` and `-`, at most 64 of them.

    A name that has to be changed gets a piece of its hash, so that different ones stay different.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", domain)[:64].lstrip("._-")
    if safe == domain and safe:
        return safe
    mark = hashlib.sha256(domain.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe[:55].rstrip('-') or 'domain'}-{mark}"


def content_sha256(file: SourceFile) -> str:
    """SHA-256 of the file as it is now."""
    if file.root == PYTHON_REFERENCE:
        return hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()
    try:
        return open_storage(file.root).sha256(file.path)
    except OSError as error:
        raise unreadable(file.place, error) from error


def read_documents(file: SourceFile) -> Iterator[Document | Problem]:
    """The documents of one file, normalised, and what of it could not be read; empty ones are left out.

    Raises CorpusError when the file is gone or its storage fails.
    """
    try:
        for record in _records(file):
            if isinstance(record, Problem):
                yield record
            elif document := _document(file, record):
                yield document
    except OSError as error:
        yield Problem(file.place, f"damaged; the rest is lost: {error}")


def _records(file: SourceFile) -> Iterator[Record | Problem]:
    if file.root == PYTHON_REFERENCE:
        return (Record(f"{PYTHON_REFERENCE}/{name}", topics[name]) for name in sorted(topics))
    reader = _reader(file.path)
    if reader is None:
        raise CorpusError(f"{file.place} is of no known kind. Sources are {KINDS} files.")
    return reader(file)


def _document(file: SourceFile, record: Record) -> Document | Problem | None:
    text, language = record.text, record.language
    if not isinstance(text, str):
        return Problem(record.place, f"`text` is {short(text)}, expected a string")
    if language is not None and not isinstance(language, str):
        return Problem(record.place, f"`language` is {short(language)}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        return Problem(record.place, f"the text is not valid Unicode: {error}")
    if not (cleaned := normalise(text)):
        return None
    url, terms = _string(record.url), _string(record.license)
    domain = path_safe(language) if language else file.domain
    return Document(cleaned, domain, Provenance(file.root, record.place, url, terms))


def _string(value: Any) -> str | None:
    """The value as it is, or its items when it is a list of strings."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or None
    return value if isinstance(value, str) and value else None
