"""JSON lines and Parquet with images: a row that has one is a pair, any other a document as before.

A pair has the columns `image` and `text` or `caption`, and what a document may have. In Parquet an
image is the bytes of its file, or a struct with these as `bytes`, as Hugging Face's `datasets` write it;
in JSON lines it is the path of the file from the folder of the JSON lines on, and stays inside of that.
"""

import errno
import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panthalassa.corpus.documents import Problem, Record, SourceFile, short
from panthalassa.corpus.formats.stream import changed, seekable, unreadable
from panthalassa.corpus.formats.tables import (
    COLUMNS,
    Row,
    json_record,
    json_rows,
    parquet_rows,
    read_parquet,
)
from panthalassa.corpus.image_paths import ListedImages, inside
from panthalassa.corpus.images import BadImage
from panthalassa.storage import Storage, open_storage

IMAGE = "image"
PAIRS = (*COLUMNS, "caption", IMAGE)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
NOT_LISTED = "is in a folder that begins with a dot, or ends as no image does"


def read_json_pairs(
    file: SourceFile, max_bytes: int, listed: ListedImages | None = None
) -> Iterator[Record | Problem]:
    storage = open_storage(file.root)
    folder = str(PurePosixPath(file.path).parent)
    for row in json_rows(file):
        if isinstance(row, Problem):
            yield row
        elif IMAGE not in row.columns and ("text" in row.columns or "caption" not in row.columns):
            yield json_record(row)
        elif isinstance(path := row.columns.get(IMAGE), str) or path is None:
            yield pair_of(row, stored_image(storage, folder, path, max_bytes, listed))
        else:
            yield Problem(row.place, f"`image` is {short(path)}, expected a path")


def stored_image(
    storage: Storage,
    folder: str,
    path: str | None,
    max_bytes: int,
    listed: ListedImages | None = None,
) -> bytes | BadImage:
    """The file at a path that others wrote, which leads nowhere out of the folder, or what is wrong with
    the path. With `listed`, only what is listed and has not changed since.

    Raises CorpusError for a file that is there and can not be read, or has changed.
    """
    if not path:
        return BadImage("image-missing", "there is no image beside the caption")
    sha256 = None
    try:
        place = inside(storage, folder, path)
        sha256 = listed.sha256(storage, place) if listed else None
        size = storage.size(place)
        if listed and sha256 is None:
            return BadImage("image-path", f"{short(path)} {NOT_LISTED}")
        if size > max_bytes:
            return BadImage("image-too-large", f"{size} bytes, more than {max_bytes}")
        data = storage.read(place, sha256)
    except BadImage as bad:
        return bad
    except FileNotFoundError:
        if sha256:
            raise changed(f"{storage.uri}/{place}") from None
        return BadImage("image-missing", f"there is no file {short(path)}")
    except OSError as error:
        if error.errno in NO_PATH:
            return BadImage("image-path", f"{short(path)} is no path of a file")
        raise unreadable(f"{storage.uri}/{place}", error) from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise changed(f"{storage.uri}/{place}")
    return data or BadImage("image-missing", f"{short(path)} is empty")


def read_parquet_pairs(file: SourceFile, max_bytes: int) -> Iterator[Record | Problem]:
    rows, kind = _column_of_images(file)
    if kind is None:
        yield from read_parquet(file)
        return
    if not _holds_files(kind):
        expected = "the bytes of a file, or a struct that has them as `bytes`"
        yield Problem(
            file.place, f"the column `{IMAGE}` is {kind}, expected {expected}", max(1, rows)
        )
        return
    for row in parquet_rows(file, PAIRS, needed=(IMAGE,)):
        if isinstance(row, Problem):
            yield row
        else:
            yield pair_of(row, _held_image(row.columns[IMAGE], max_bytes))


def _column_of_images(file: SourceFile) -> tuple[int, pa.DataType | None]:
    """The rows, and the type of the column of images, or None when there is no such column; what is no
    Parquet file is for the reader of texts to tell."""
    try:
        with seekable(file) as stream:
            found = pq.read_metadata(stream)
        schema = found.schema.to_arrow_schema()
    except (pa.ArrowException, OSError):
        return 0, None
    if IMAGE not in schema.names:
        return found.num_rows, None
    return found.num_rows, schema.field(schema.names.index(IMAGE)).type  # by name, not of two


def _holds_files(kind: pa.DataType) -> bool:
    """Whether a column of this type has the bytes of files, or nothing in any row."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_files(kind.field(index).type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)
    )


def _held_image(value: Any, max_bytes: int) -> bytes | BadImage:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        return BadImage("image-missing", "there are no bytes of an image beside the caption")
    if len(data) > max_bytes:
        return BadImage("image-too-large", f"{len(data)} bytes, more than {max_bytes}")
    return bytes(data)


def pair_of(row: Row, image: bytes | BadImage) -> Record:
    """A pair whose text is one of two columns, or empty."""
    columns = row.columns
    text = columns.get("text")
    text = columns.get("caption") if text is None else text
    terms = columns.get("license") or columns.get("licence")
    text = "" if text is None else text
    return Record(row.place, text, columns.get("language"), columns.get("url"), terms, image)
