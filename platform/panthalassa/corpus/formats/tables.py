"""JSON lines and Parquet: a row is a document, with the columns `text`, and if there are any
`language`, `url`, and `license` or `licence`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panthalassa.corpus.documents import (
    DOCUMENT_BYTES,
    Problem,
    Record,
    SourceFile,
    not_utf8,
    short,
)
from panthalassa.corpus.formats.stream import lines, seekable, unpacked

COLUMNS = ("text", "language", "url", "license", "licence")
ROWS_AT_ONCE = 64
PAGE_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """The columns of one row, unchecked."""

    place: str
    columns: dict[str, Any]


def read_json_lines(file: SourceFile) -> Iterator[Record | Problem]:
    for row in json_rows(file):
        yield row if isinstance(row, Problem) else json_record(row)


def json_record(row: Row) -> Record | Problem:
    if "text" in row.columns:
        return _record(row)
    what = f"expected an object with the key `text`, found {short(row.columns)}"
    return Problem(row.place, what)


def json_rows(file: SourceFile) -> Iterator[Row | Problem]:
    """A row for each line that is an object."""
    with unpacked(file) as stream:
        for number, (line, whole) in enumerate(lines(stream), start=1):
            place = f"{file.place}, line {number}"
            if number == 1 and line.strip() in (b"[", b"{"):
                yield Problem(place, "one value over many lines, expected an object a line")
                return
            if not whole:
                yield Problem(place, f"longer than {DOCUMENT_BYTES >> 20} MiB")
            elif line.strip():
                yield _json_row(place, line)


def _json_row(place: str, line: bytes) -> Row | Problem:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # a file may begin with the mark of its encoding
    except UnicodeDecodeError as error:
        return Problem(place, not_utf8(error))
    except (ValueError, RecursionError) as error:
        return Problem(place, f"not JSON: {error}")
    if not isinstance(row, dict):
        return Problem(place, f"expected an object, found {short(row)}")
    return Row(place, row)


def _record(row: Row) -> Record:
    columns = row.columns
    terms = columns.get("license") or columns.get("licence")
    return Record(row.place, columns["text"], columns.get("language"), columns.get("url"), terms)


def read_parquet(file: SourceFile) -> Iterator[Record | Problem]:
    for row in parquet_rows(file, COLUMNS, needed=("text",)):
        if isinstance(row, Problem):
            yield row
        else:
            text = row.columns["text"]
            yield _record(Row(row.place, {**row.columns, "text": "" if text is None else text}))


def parquet_rows(
    file: SourceFile, columns: Sequence[str], needed: Sequence[str] = ()
) -> Iterator[Row | Problem]:
    """The rows in their order, with those of the columns that there are; a row group that can not be
    read is one problem of all its rows, and so is a file without one of the `needed` columns."""
    with seekable(file) as stream:
        parquet = _opened(file, stream, columns, needed)
        if isinstance(parquet, Problem):
            yield parquet
            return
        columns = [name for name in columns if name in parquet.schema_arrow.names]
        start = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            yield from _row_group(file, parquet, group, columns, start, rows)
            start += rows


def _opened(
    file: SourceFile, stream: Any, columns: Sequence[str], needed: Sequence[str]
) -> pq.ParquetFile | Problem:
    try:
        # A buffer makes pyarrow read a column page by page instead of whole.
        parquet = pq.ParquetFile(stream, buffer_size=PAGE_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        return Problem(file.place, f"no readable Parquet file: {error}")
    names, rows = parquet.schema_arrow.names, max(1, parquet.metadata.num_rows)
    for name in needed:
        if name not in names:
            return Problem(
                file.place, f"there is no column `{name}` among {', '.join(names)}", rows
            )
    for name in columns:
        if names.count(name) > 1:
            return Problem(file.place, f"there is more than one column `{name}`", rows)
    return parquet


def _row_group(
    file: SourceFile, parquet: Any, group: int, columns: Sequence[str], start: int, rows: int
) -> Iterator[Row | Problem]:
    number = start
    try:
        batches = parquet.iter_batches(ROWS_AT_ONCE, [group], columns, use_threads=False)
        for batch in batches:
            for index in range(batch.num_rows):
                number += 1
                yield _parquet_row(f"{file.place}, row {number}", batch, index)
    except (pa.ArrowException, OSError) as error:
        where = f"{file.place}, rows {number + 1} to {start + rows}"
        yield Problem(where, f"can not be read: {error}", start + rows - number)


def _parquet_row(place: str, batch: pa.RecordBatch, index: int) -> Row | Problem:
    try:
        return Row(place, {name: batch[name][index].as_py() for name in batch.schema.names})
    except UnicodeDecodeError as error:
        return Problem(place, not_utf8(error))
    except (ValueError, OverflowError) as error:  # a date that Python does not have
        return Problem(place, f"can not be read: {error}")
