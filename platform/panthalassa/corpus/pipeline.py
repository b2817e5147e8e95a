"""The last stages of a preparation: documents that are kept come in, written shards go out.

A tokenizer is trained on a sample of them; each partition is encoded; and what belongs to a part of a
domain's split meets in one task, which packs it and writes its shards. The hash of a document's text
gives it its split and its part. The driver holds names and counts; texts pass through it only as the
sample that the tokenizer is trained on.
"""

import hashlib
import math
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from panthalassa import config
from panthalassa.corpus.balance import sample_shares
from panthalassa.corpus.components import digests_of, positions_of
from panthalassa.corpus.manifest import Index, Shard, Split
from panthalassa.corpus.pack import pack
from panthalassa.corpus.parts import INDEX, Part, finished_parts, result, write_index
from panthalassa.corpus.selection import Census, groups_of
from panthalassa.corpus.shards import count_targets, unigram_loss, write_shard
from panthalassa.corpus.staging import COMPUTING, Stage, Tables, numbered
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

TOKENIZER_BYTES = 256 << 20  # text that the tokenizer is trained on
PART_BYTES = 64 << 20  # text of a part


@dataclass(frozen=True)
class Kept:
    """The documents of the partitions of stage `documents` that stage `kept` keeps."""

    documents: Stage
    kept: Stage
    partitions: int
    held_out_below: int

    def tables(self, number: int) -> Iterator[pa.Table]:
        """Those of a partition, with the columns of `about`, their `text` and `position`."""
        stages = {"about": self.documents, "texts": self.documents, "kept": self.kept}
        tables = (stage.tables(number, kind) for kind, stage in stages.items())
        for about, texts, kept in zip(*tables, strict=True):
            table = about.append_column("text", texts["text"]).filter(kept["kept"])
            positions = positions_of(digests_of(table["hash"]))
            yield table.append_column("position", pa.array(positions))


def train_tokenizer(kept: Kept, census: Census, corpus: config.Corpus) -> Tokenizer:
    """Train on the train split, or on a sample of it, drawn by hash, when that is large."""
    shares = sample_shares(census.train_bytes(), TOKENIZER_BYTES, corpus.tokenizer_alpha)
    sample = partial(_sample, kept=kept, shares=shares)
    texts = numbered(kept.partitions).map_batches(sample, batch_size=1, **COMPUTING).iter_rows()
    return Tokenizer.train((row["text"] for row in texts), corpus.vocabulary_size)


def _sample(batch: pa.Table, kept: Kept, shares: dict[str, float]) -> Iterator[pa.Table]:
    for table in kept.tables(batch["number"][0].as_py()):
        position = table["position"].to_numpy()
        below = [int(shares.get(domain, 0) * 2**32) for domain in table["domain"].to_pylist()]
        drawn = position % 2**32 < np.array(below)  # the low bits: the high ones make the split
        drawn &= position >= np.uint64(kept.held_out_below)
        yield table.select(["text"]).filter(pa.array(drawn))


def encode(number: int, partition: str, kept: Kept, vocabulary: bytes) -> Tables:
    """The documents of a partition as `bos ids eos`, in place of their texts."""
    tokenizer = _tokenizer(vocabulary)
    for table in kept.tables(number):
        ids = [tokenizer.encode_document(text) for text in table["text"].to_pylist()]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        flat = np.concatenate([np.zeros(0, dtype=np.int32), *ids])
        groups = groups_of(table["domain"], table["position"].to_numpy(), kept.held_out_below)
        yield (
            "ids",
            table.drop_columns(["text", "begins", "keys", "evaluation"])
            .append_column("group", groups)
            .append_column("ids", pa.LargeListArray.from_arrays(offsets, flat)),
        )
    return ""


class Written:
    """What is known of the parts that are written: their shards, their index, their target tokens."""

    def __init__(self, vocabulary_size: int) -> None:
        self.shards: list[Shard] = []
        self.index: list[Index] = []
        self.parts: set[Part] = set()
        self.documents: Counter[str] = Counter()
        self._targets = {s: np.zeros(vocabulary_size, dtype=np.int64) for s in get_args(Split)}

    def add(self, row: dict[str, Any]) -> None:
        """Add the `result` of a part."""
        shards = [Shard.model_validate_json(record) for record in row["shards"]]
        index = Index.model_validate_json(row["index"])
        insort(self.index, index, key=lambda file: file.path)
        for shard in shards:
            insort(self.shards, shard, key=lambda shard: shard.path)
        self.parts.add((row["group"], row["part"]))
        self.documents[row["group"]] += index.documents
        self._targets[shards[0].split] += row["targets"]

    def unigram_loss(self) -> float:
        return unigram_loss(self._targets["train"], self._targets["held_out"])


def write_shards(
    encoded: Stage,
    partitions: int,
    census: Census,
    vocabulary: bytes,
    corpus: config.Corpus,
    storage: Storage,
) -> Written:
    """Gather, pack and write what is not there yet, part by part."""
    parts = {group: _tasks(size) for group, size in census.text_bytes.items()}
    tasks = _tasks(census.text_bytes.total())
    written = Written(Tokenizer.from_bytes(vocabulary).vocabulary_size)
    for row in finished_parts(parts, vocabulary, tasks, storage):
        written.add(row)
    if written.documents != census.documents:
        gather = partial(_gather, encoded=encoded, parts=parts, finished=frozenset(written.parts))
        write_part = partial(
            _write_part, parts=parts, vocabulary=vocabulary, corpus=corpus, storage=storage
        )
        gathered = numbered(partitions).map_batches(gather, batch_size=1, **COMPUTING)
        by_part = gathered.groupby(["group", "part"], num_partitions=tasks)
        for row in by_part.map_groups(write_part, **COMPUTING).iter_rows():
            written.add(row)
    if written.documents != census.documents:
        raise CorpusError(
            f"{storage.uri}/{INDEX} holds parts that another version of the libraries has made of "
            "the same sources. Remove that folder, and the same command goes on."
        )
    return written


def _tasks(text_bytes: int) -> int:
    """Parts of so much text: few for a small corpus, because worker processes are slow to start."""
    return max(1, math.ceil(text_bytes / PART_BYTES))


@lru_cache(maxsize=1)
def _tokenizer(vocabulary: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(vocabulary)


def _gather(
    batch: pa.Table, encoded: Stage, parts: dict[str, int], finished: frozenset[Part]
) -> Iterator[pa.Table]:
    """The documents of a partition, each with the part of its group where it belongs."""
    for table in encoded.tables(batch["number"][0].as_py(), "ids"):
        pairs = zip(table["position"].to_pylist(), table["group"].to_pylist(), strict=True)
        part = [(group, position % parts[group]) for position, group in pairs]
        numbers = pa.array([number for _, number in part], pa.int64())
        wanted = pa.array([which not in finished for which in part], pa.bool_())
        yield table.append_column("part", numbers).filter(wanted)


def _write_part(
    table: pa.Table,
    parts: dict[str, int],
    vocabulary: bytes,
    corpus: config.Corpus,
    storage: Storage,
) -> pa.Table:
    """Pack one part of a domain's split and write its shards; Ray hands over each part whole.

    A part's rows are shuffled in itself. That is as good as over the domain: its hash gives a document
    its part, so each part is a random draw of the domain, and no order of the sources is left in it.
    """
    group, part = table["group"][0].as_py(), table["part"][0].as_py()
    split, domain = group.split("/")
    tokenizer = _tokenizer(vocabulary)
    table = table.sort_by("hash")
    documents = [scalar.values.to_numpy() for scalar in table["ids"].combine_chunks()]
    seed = int.from_bytes(hashlib.sha256(f"{group}/{part}".encode()).digest()[:16])
    packed = pack(documents, corpus.sequence_length, tokenizer.pad).shuffled(seed)
    shards = []
    for index, start in enumerate(range(0, len(packed.tokens), corpus.rows_per_shard)):
        # Parts count in step, so that their names never meet.
        path = f"{group}/{part + index * parts[group]:05d}.parquet"
        rows = packed.slice(start, start + corpus.rows_per_shard)
        shards.append(write_shard(storage, path, split, domain, rows, corpus.rows_per_group))
    record = write_index(storage, group, part, table, shards, vocabulary)
    return result(group, part, shards, record, count_targets(packed, tokenizer.vocabulary_size))
