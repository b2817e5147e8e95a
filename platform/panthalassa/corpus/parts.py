"""Parts: what a preparation writes at a time, and does not write again when it goes on.

A part is the documents of a split and domain that one task packs. Its shards are written first and
then its index: `documents/{split}/{domain}/{part}.parquet`, a row for each document
in the order of hashes (`hash`, `domain`, `split`, `source`, `place`, `url`, `license`, `bytes` of
text), with the records of the shards and the tokenizer's SHA-256 as metadata. So an index that is
there says that its part is whole, and the hashes in it show whether it still is.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from panthalassa.corpus.manifest import TOKENIZER, Index, Shard
from panthalassa.corpus.shards import Counts, count_targets, decode_shard, write
from panthalassa.corpus.staging import COMPUTING
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.storage import Storage

INDEX = "documents"
SHARDS = "shards"
INDEXED = ["hash", "source", "place", "url", "license", "bytes"]
"""Of a document, beside its domain and split."""
Part = tuple[str, int]
"""`{split}/{domain}` and a number."""


def index_path(group: str, part: int) -> str:
    return f"{INDEX}/{group}/{part:05d}.parquet"


def write_index(
    storage: Storage,
    group: str,
    part: int,
    documents: pa.Table,
    shards: list[Shard],
    vocabulary: bytes,
) -> Index:
    """Write the index of a part whose shards are written. Raises CorpusError when that fails."""
    split, domain = group.split("/")
    table = documents.select(INDEXED)
    table = table.add_column(1, "domain", pa.array([domain] * len(table)).dictionary_encode())
    table = table.add_column(2, "split", pa.array([split] * len(table)).dictionary_encode())
    records = json.dumps([shard.model_dump() for shard in shards])
    metadata = {SHARDS: records, TOKENIZER: hashlib.sha256(vocabulary).hexdigest()}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        write_page_checksum=True,
    )
    data, path = buffer.getvalue(), index_path(group, part)
    write(storage, path, data)
    return _record(path, data, len(table))


def _record(path: str, data: bytes, documents: int) -> Index:
    digest = hashlib.sha256(data).hexdigest()
    return Index(path=path, documents=documents, size=len(data), sha256=digest)


def result(group: str, part: int, shards: list[Shard], index: Index, targets: Counts) -> pa.Table:
    """What is known of a part that is written, as one row."""
    return pa.table(
        {
            "group": [group],
            "part": [part],
            "shards": [[shard.model_dump_json() for shard in shards]],
            "index": [index.model_dump_json()],
            "targets": [targets],
        }
    )


def finished_parts(
    parts: dict[str, int], vocabulary: bytes, tasks: int, storage: Storage
) -> Iterator[dict[str, Any]]:
    """The results of the parts that are written with this vocabulary and whole; their shards are
    read and hashed for it."""
    try:
        there = {f"{INDEX}/{path}" for path, _ in storage.below(INDEX).files()}
    except FileNotFoundError:
        there = set()
    written = [
        {"group": group, "part": part}
        for group, count in parts.items()
        for part in range(count)
        if index_path(group, part) in there
    ]
    if not written:
        return
    read = partial(_read_part, vocabulary=vocabulary, storage=storage)
    found: ray.data.Dataset = ray.data.from_items(
        written, override_num_blocks=min(tasks, len(written))
    ).map_batches(read, batch_size=1, **COMPUTING)
    yield from found.iter_rows()


def _read_part(batch: pa.Table, vocabulary: bytes, storage: Storage) -> Iterator[pa.Table]:
    """The result of a part as its files tell it; nothing when one is missing, rotten or another's."""
    group, part = batch["group"][0].as_py(), batch["part"][0].as_py()
    path = index_path(group, part)
    targets = np.zeros(Tokenizer.from_bytes(vocabulary).vocabulary_size, dtype=np.int64)
    try:
        data = storage.read(path)
        if (index := _read_index(data, vocabulary)) is None:
            return
        documents, shards = index
        for shard in shards:
            content = storage.read(shard.path, shard.sha256)
            if hashlib.sha256(content).hexdigest() != shard.sha256:
                return
            targets += count_targets(decode_shard(content), len(targets))
    except FileNotFoundError:
        return
    yield result(group, part, shards, _record(path, data, documents), targets)


def _read_index(data: bytes, vocabulary: bytes) -> tuple[int, list[Shard]] | None:
    """How many documents an index has, and its shards; None for what is none of this vocabulary."""
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        metadata = table.schema.metadata
        if metadata[TOKENIZER.encode()].decode() != hashlib.sha256(vocabulary).hexdigest():
            return None
        return len(table), [Shard(**record) for record in json.loads(metadata[SHARDS.encode()])]
    # pyarrow says OSError of bytes that are no Parquet, too
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
