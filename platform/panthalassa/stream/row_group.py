"""A row group of a shard, as it is kept while samples are cut from it: images are still encoded."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from panthalassa.corpus.manifest import ANSWERS, IMAGES, Shard
from panthalassa.errors import CorpusError
from panthalassa.stream.cache import ShardCache

COLUMNS = ("tokens", "lengths", ANSWERS, IMAGES)
"""Of a shard."""
PADDING = -1

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class RowGroup:
    """tokens, documents: int32 [rows, row length]; counted: bool of that shape; images: the files of
    those of each row, where the shard has any."""

    tokens: Tokens
    documents: Tokens
    counted: NDArray[np.bool_]
    images: pa.ListArray | None = None


@lru_cache(maxsize=64)
def _file(cache: ShardCache, shard: Shard) -> pq.ParquetFile:
    return pq.ParquetFile(cache.open(shard))


@lru_cache(maxsize=128)
def read_row_group(cache: ShardCache, shard: Shard, group: int) -> RowGroup:
    """Raises CorpusError for a missing or rotten shard."""
    try:
        file = _file(cache, shard)
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        table = file.read_row_group(group, columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise CorpusError(
            f"shard {cache.storage.uri}/{shard.path} was whole but can not be read any more: "
            f"{error}. Restore the file; the same command then goes on."
        ) from error
    column, lengths = table["tokens"].combine_chunks(), table["lengths"].combine_chunks()
    tokens = column.flatten().to_numpy().reshape(len(column), -1)
    starts = lengths.offsets.to_numpy()
    documents = _documents(lengths.flatten().to_numpy(), starts, tokens.shape[1])
    counted = documents != PADDING
    if ANSWERS in columns:
        answers = table[ANSWERS].combine_chunks()
        bounds, starts = answers.flatten().to_numpy(), answers.offsets.to_numpy()
        counted = _inside(bounds, starts, tokens.shape[1])
    images = table[IMAGES].combine_chunks() if IMAGES in columns else None
    return RowGroup(tokens, documents, counted, images)


def _documents(lengths: Tokens, starts: Tokens, row_length: int) -> Tokens:
    """The document of each token [rows, row_length].

    `lengths` are those of the documents of all rows; `starts` [rows + 1] where each row's begin.
    """
    row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    number = np.arange(len(lengths)) - starts[row]
    ends = np.cumsum(lengths)
    first_of_row = np.concatenate((np.zeros(1, ends.dtype), ends))[starts[row]]
    place = row * row_length + ends - lengths - first_of_row
    documents = np.full((len(starts) - 1) * row_length, PADDING, np.int32)
    token = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
    documents[np.repeat(place, lengths) + token] = np.repeat(number, lengths)
    return documents.reshape(-1, row_length)


def _inside(bounds: Tokens, starts: Tokens, row_length: int) -> NDArray[np.bool_]:
    """Whether each token [rows, row_length] lies in one of its row's runs.

    `bounds` are start and end of the runs of all rows; `starts` [rows + 1] where each row's begin.
    """
    row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    crossings = np.zeros((len(starts) - 1, row_length + 1), np.int8)
    np.add.at(crossings, (row, bounds), np.tile(np.array((1, -1), np.int8), len(bounds) // 2))
    return np.cumsum(crossings[:, :-1], axis=1, dtype=np.int8) > 0
