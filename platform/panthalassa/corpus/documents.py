"""What reading gives: documents with their provenance, and the problems of what could not be read.

A reader (`formats/`) takes a file apart into `Record`s; `sources.read_documents` makes a `Document`
of each. A `Problem` stands in the place of what is lost, so that it can be counted and named.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from panthalassa.corpus.images import BadImage

DOCUMENT_BYTES = 128 << 20
"""The longest document; it bounds the memory of a reader, whatever a file holds or unpacks to."""

READ = pa.schema(
    {
        "hash": pa.binary(),
        "domain": pa.string(),
        "text": pa.large_string(),
        "bytes": pa.int64(),
        "source": pa.string(),
        "place": pa.string(),
        "url": pa.string(),
        "license": pa.string(),
    }
)
"""What is kept of a document, or of a pair, that was read; its `place` is below its `source`."""


@dataclass(frozen=True)
class SourceFile:
    """A file at `path` below `root`; `domain` holds for its documents that name no language.

    `source` is the name of the root wherever it is kept: its last folder, numbered where two share it.
    """

    root: str
    path: str
    size: int
    domain: str
    source: str

    @property
    def place(self) -> str:
        return f"{self.root}/{self.path}"


@dataclass(frozen=True)
class Provenance:
    """Where a document is from: its `source` as configured, its `place` (the file, with line, row,
    record or page), its `url` and `license` where the source tells them."""

    source: str
    place: str
    url: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Document:
    """A normalised text of one domain. With an `image`, the bytes of its file or why there are none, the
    text is its caption, which may be empty, and the domain its language as claimed, or empty."""

    text: str
    domain: str
    provenance: Provenance
    image: "bytes | BadImage | None" = None


@dataclass(frozen=True)
class Problem:
    """What at `place` is lost and why; of how many `records`, as far as that is known."""

    place: str
    reason: str
    records: int = 1

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """A text as it stands in a file; the values of columns are not checked yet. A pair has an image."""

    place: str
    text: Any
    language: Any = None
    url: Any = None
    license: Any = None
    image: "bytes | BadImage | None" = None


def short(value: Any) -> str:
    """The value in at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"no UTF-8: {error.reason} {error.object[error.start]:#04x}"
