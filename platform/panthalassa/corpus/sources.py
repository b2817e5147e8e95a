"""Sources: folders of files come in, documents go out, each with its domain and its provenance.

`list_files` tells what there is without reading it; `read_documents` reads one file and can run on
any machine that sees it. What is wrong inside of a file is a Problem beside the documents, for the
caller to count; a file that can not be had at all is a CorpusError, for a corpus that silently
lacks a part of its sources is worse than none.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa

from panthalassa.corpus.documents import Document, Problem, Provenance, Record, SourceFile, short
from panthalassa.corpus.formats.pairs import read_json_pairs, read_parquet_pairs
from panthalassa.corpus.formats.stream import unreadable
from panthalassa.corpus.formats.tables import read_json_lines, read_parquet
from panthalassa.corpus.formats.text import read_text
from panthalassa.corpus.formats.warc import read_warc
from panthalassa.corpus.formats.webdataset import IMAGE_KINDS, read_webdataset
from panthalassa.corpus.formats.wikipedia import read_wikipedia
from panthalassa.corpus.image_paths import ListedImages
from panthalassa.corpus.normalise import normalise
from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage

__all__ = [
    "Document",
    "Listing",
    "Problem",
    "SourceFile",
    "content_sha256",
    "find_files",
    "list_files",
    "read_documents",
]

PYTHON_REFERENCE = "python-reference"
"""The source that every CPython carries: the topics of its language reference."""

Reader = Callable[[SourceFile], Iterator[Record | Problem]]

PACKED = r"(\.(gz|zst|bz2))?$"
READERS: list[tuple[re.Pattern[str], Reader]] = [
    (re.compile(r"\.txt" + PACKED, re.I), read_text),
    (re.compile(r"\.(jsonl|ndjson|json)" + PACKED, re.I), read_json_lines),
    (re.compile(r"\.parquet$", re.I), read_parquet),
    (re.compile(r"\.xml(-p\d+p\d+)?" + PACKED, re.I), read_wikipedia),
    (re.compile(r"\.(warc|wet)" + PACKED, re.I), read_warc),
]
PairReader = Callable[[SourceFile, int], Iterator[Record | Problem]]
PAIR_READERS: list[tuple[re.Pattern[str], PairReader]] = [
    (re.compile(r"\.(jsonl|ndjson|json)" + PACKED, re.I), read_json_pairs),
    (re.compile(r"\.parquet$", re.I), read_parquet_pairs),
    (re.compile(r"\.tar" + PACKED, re.I), read_webdataset),
]
"""In place of READERS, where images are taken."""
IMAGE_FILE = re.compile(rf"\.({'|'.join(IMAGE_KINDS)})$", re.I)
NO_SOURCE = re.compile(r"-multistream-index\d*\.txt")
"""The index beside a Wikipedia dump, which is no text."""
KINDS = ".txt, .jsonl, .ndjson, .json, .parquet, .xml (a Wikipedia dump), .warc or .wet"
ENDING = re.compile(r"(\.\w{1,8}(?=\.(gz|zst|bz2|xz)$))?\.[a-z0-9_-]{1,12}$", re.A)


@dataclass(frozen=True)
class Listing:
    """The files of sources, the files of images beside them, and how many of which endings were left out
    for being of another kind."""

    files: list[SourceFile] = field(default_factory=list)
    images: list[SourceFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_files(sources: list[str]) -> list[SourceFile]:
    """The files of `list_files`."""
    return list_files(sources).files


def list_files(sources: list[str], images: bool = False) -> Listing:
    """Every file of every source, in the order of the sources and then of paths.

    With `images` those of pairs are among them. Files of other kinds are left out and counted, those
    whose name or folder begins with a dot are no sources at all. A file to which several links lead is
    listed once.
    Raises CorpusError for a source that is missing, unreadable, or holds no text.
    """
    if not sources:
        raise CorpusError(
            f"corpus.sources is empty: list folders with {KINDS} files, or {PYTHON_REFERENCE}."
        )
    listing = Listing()
    roots: dict[str, str] = {}
    for source in sources:
        found = _listing(source, images)
        listing.left_out.update(found.left_out)
        for files, named in (found.files, listing.files), (found.images, listing.images):
            for file in files:
                name, number = file.source, 1
                while roots.setdefault(name, file.root) != file.root:
                    number += 1
                    name = f"{file.source}-{number}"
                named.append(replace(file, source=name))
    return listing


def _listing(source: str, images: bool) -> Listing:
    if source == PYTHON_REFERENCE:
        size = sum(len(text.encode()) for text in topics.values())
        return Listing([SourceFile(PYTHON_REFERENCE, "topics", size, "python", PYTHON_REFERENCE)])
    mend = "Correct the key corpus.sources."
    try:
        storage = open_storage(source)
        local = storage.is_local
        found = _local_files(storage.root, images) if local else storage.files()
    except FileNotFoundError:
        raise CorpusError(f"source {source} does not exist. {mend}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise CorpusError(f"source {source} is no readable folder: {error}. {mend}") from error
    name = PurePosixPath(storage.root).name
    listing = Listing()
    for path, size in found:
        if path.startswith(".") or "/." in path or NO_SOURCE.search(path):
            continue
        is_image = images and IMAGE_FILE.search(path) is not None
        if not _is_source(path, images) and not is_image:
            ending = ENDING.search(path.lower())
            listing.left_out[ending[0] if ending else "no ending"] += 1
        elif path != path.encode(errors="replace").decode():
            raise CorpusError(
                f"source {source}: the name {os.fsencode(path)!r} is not UTF-8. Rename the file, or "
                "take it out of the folder."
            )
        else:
            folder, separator, _ = path.partition("/")
            domain = path_safe(folder if separator else name)
            of_kind = listing.images if is_image else listing.files
            of_kind.append(SourceFile(storage.uri, path, size, domain, name))
    if not listing.files:
        kinds = f"{KINDS}, or .tar (WebDataset)" if images else KINDS
        raise CorpusError(
            f"source {source} holds no {kinds} file. Add some, or correct the key corpus.sources."
        )
    return listing


def _local_files(root: str, images: bool) -> list[tuple[str, int]]:
    """What `Storage.files` gives, but for hidden files; links may lead in circles, and names be any
    bytes. Of several names that lead to one file, the first that tells its kind counts. A link that
    leads nowhere is given where it would be a source, for that is to be told; pipes and the like never.

    Raises OSError.
    """
    found: dict[tuple[str, bool], tuple[str, int]] = {}
    seen = {str(folder) for folder in Path(os.path.realpath(root)).parents}
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.join(folder, name)
            target = os.path.realpath(path) if os.path.islink(path) else os.path.join(real, name)
            is_source = _is_source(name, images)
            is_there = os.path.exists(path)
            if not os.path.isfile(path) and (is_there or not is_source):
                continue
            size = os.path.getsize(path) if is_there else 0
            which = target, not is_source
            found.setdefault(which, (os.path.relpath(path, root), size))
    return sorted(found.values())


def _raise(error: OSError) -> None:
    raise error


def _reader(path: str) -> Reader | None:
    name = PurePosixPath(path).name
    return next((reader for kind, reader in READERS if kind.search(name)), None)


def _pair_reader(path: str) -> PairReader | None:
    name = PurePosixPath(path).name
    return next((reader for kind, reader in PAIR_READERS if kind.search(name)), None)


def _is_source(path: str, images: bool) -> bool:
    return _reader(path) is not None or (images and _pair_reader(path) is not None)


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


def read_documents(
    file: SourceFile, image_bytes: int | None = None, images: ListedImages | None = None
) -> Iterator[Document | Problem]:
    """The documents of one file, normalised, and what of it could not be read; empty ones are left out.

    With `image_bytes`, pairs with the files of images up to that size are among them. Of the images
    that JSON lines name, only `images` are taken, as they were listed.

    Raises CorpusError when the file is gone or its storage fails, or one of `images` has changed.
    """
    try:
        for record in _records(file, image_bytes, images):
            if isinstance(record, Problem):
                yield record
            elif document := _document(file, record):
                yield document
    except OSError as error:
        yield Problem(file.place, f"damaged; the rest is lost: {error}")


def _records(
    file: SourceFile, image_bytes: int | None, images: ListedImages | None
) -> Iterator[Record | Problem]:
    if file.root == PYTHON_REFERENCE:
        return (Record(f"{PYTHON_REFERENCE}/{name}", topics[name]) for name in sorted(topics))
    if image_bytes is not None and (pairs := _pair_reader(file.path)):
        if pairs is read_json_pairs:
            return read_json_pairs(file, image_bytes, images)
        return pairs(file, image_bytes)
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
    cleaned = normalise(text)
    if not cleaned and record.image is None:
        return None
    url, terms = _string(record.url), _string(record.license)
    provenance = Provenance(file.root, record.place, url, terms)
    if record.image is not None:
        return Document(cleaned, language or "", provenance, record.image)
    return Document(cleaned, path_safe(language) if language else file.domain, provenance)


def _string(value: Any) -> str | None:
    """The value as it is, or its items when it is a list of strings."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or None
    return value if isinstance(value, str) and value else None
