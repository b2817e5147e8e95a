"""The last stages of a preparation: documents that are kept come in, written shards go out.

A tokenizer is trained on a sample of them; each partition is encoded, and keeps its documents by the
task that will write them; and each of those tasks reads its own from all partitions, packs them part by
part and writes the shards. The hash of a document's text gives it its split and its part. The driver
holds names and counts; texts pass through it only as the sample that the tokenizer is trained on.
"""

import hashlib
import json
import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import groupby
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from panthalassa import config
from panthalassa.corpus.balance import sample_shares
from panthalassa.corpus.components import digests_of, positions_of
from panthalassa.corpus.manifest import Images, Index, Shard, Split
from panthalassa.corpus.pack import Packing, pack, pack_whole
from panthalassa.corpus.pairs import caption_start
from panthalassa.corpus.parts import INDEX, INDEXED, Part, finished_parts, result, write_index
from panthalassa.corpus.selection import Census, groups_of
from panthalassa.corpus.shards import count_targets, unigram_loss, write_shard
from panthalassa.corpus.staging import COMPUTING, MOST_TASKS, Stage, Tables, numbered
from panthalassa.corpus.tokenizer import Tokenizer, Tokens
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

TOKENIZER_BYTES = 256 << 20  # text that the tokenizer is trained on
PART_BYTES = 64 << 20  # text of a part
HELD_BYTES = 64 << 20  # tokens that encoding holds


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


def texts_of(kept: Kept, census: Census, corpus: config.Corpus) -> Iterator[str]:
    """The texts of the train split, or a sample of them, drawn by hash, when that is large: what a
    tokenizer is trained on."""
    shares = sample_shares(census.train_bytes(), TOKENIZER_BYTES, corpus.tokenizer_alpha)
    sample = partial(_sample, kept=kept, shares=shares)
    texts = numbered(kept.partitions).map_batches(sample, batch_size=1, **COMPUTING).iter_rows()
    return (row["text"] for row in texts)


def _sample(batch: pa.Table, kept: Kept, shares: dict[str, float]) -> Iterator[pa.Table]:
    for table in kept.tables(batch["number"][0].as_py()):
        position = table["position"].to_numpy()
        below = [int(shares.get(domain, 0) * 2**32) for domain in table["domain"].to_pylist()]
        drawn = position % 2**32 < np.array(below)  # the low bits: the high ones make the split
        drawn &= position >= np.uint64(kept.held_out_below)
        yield table.select(["text"]).filter(pa.array(drawn))


@dataclass(frozen=True)
class Division:
    """How many `parts` each `{split}/{domain}` has, and which of the `tasks` writes each part. A
    document's hash chooses among the parts of its group, so that of a few long documents a part may
    get none; of many, parts of a group are about equal, and so are tasks."""

    parts: dict[str, int]
    tasks: int
    task: dict[Part, int]

    @classmethod
    def of(cls, text_bytes: Counter[str]) -> "Division":
        """From the bytes of each group's text: PART_BYTES a part and a task at most, or more where
        there would be more than MOST_TASKS. A small corpus has few of both, because worker processes
        are slow to start."""
        most = max(PART_BYTES, text_bytes.total() / MOST_TASKS)
        parts = {group: math.ceil(size / most) or 1 for group, size in text_bytes.items()}
        sizes = {
            (group, part): text_bytes[group] / count
            for group, count in parts.items()
            for part in range(count)
        }
        tasks = math.ceil(text_bytes.total() / most) or 1
        loads = [(0.0, number) for number in range(tasks)]
        task = {}
        for part in sorted(sizes, key=lambda part: (-sizes[part], part)):
            load, task[part] = heappop(loads)
            heappush(loads, (load + sizes[part], task[part]))
        return cls(parts, tasks, task)

    @property
    def digest(self) -> str:
        """Says whether two divisions give the same documents to the same tasks."""
        told = json.dumps([self.tasks, self.parts], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


def encode(
    number: int, partition: str, kept: Kept, vocabulary: bytes, division: Division
) -> Tables:
    """The documents of a partition as `bos ids eos`, in place of their texts; tables by the task that
    reads them, written whenever they hold HELD_BYTES."""
    tables = (_encoded(table, kept, vocabulary, division) for table in kept.tables(number))
    yield from by_reader(tables, division)
    return ""


def by_reader(encoded: Iterable[pa.Table], division: Division) -> Iterator[tuple[str, pa.Table]]:
    """The rows of encoded tables by the task that reads them, whenever they hold HELD_BYTES."""
    held: defaultdict[int, list[pa.Table]] = defaultdict(list)
    size = 0
    for table in encoded:
        for task, part in _by_task(table, division):
            held[task].append(part)
            size += part.nbytes
        if size > HELD_BYTES:
            yield from _joined(held)
            held.clear()
            size = 0
    yield from _joined(held)


def _encoded(table: pa.Table, kept: Kept, vocabulary: bytes, division: Division) -> pa.Table:
    tokenizer = tokenizer_of(vocabulary)
    ids = [tokenizer.encode_document(text) for text in table["text"].to_pylist()]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *ids])
    positions = table["position"].to_numpy()
    groups = groups_of(table["domain"], positions, kept.held_out_below).to_pylist()
    pairs = zip(positions.tolist(), groups, strict=True)
    parts = [position % division.parts[group] for position, group in pairs]
    return (
        table.select(INDEXED)
        .append_column("group", pa.array(groups, pa.string()))
        .append_column("part", pa.array(parts, pa.int64()))
        .append_column("ids", pa.LargeListArray.from_arrays(offsets, flat))
    )


def _by_task(encoded: pa.Table, division: Division) -> Iterator[tuple[int, pa.Table]]:
    owners = zip(encoded["group"].to_pylist(), encoded["part"].to_pylist(), strict=True)
    tasks = np.array([division.task[part] for part in owners], dtype=np.int64)
    for task in np.unique(tasks).tolist():
        yield task, encoded.filter(pa.array(tasks == task))


def _joined(held: dict[int, list[pa.Table]]) -> Iterator[tuple[str, pa.Table]]:
    for task, tables in held.items():
        yield _of_task(task), pa.concat_tables(tables)


def _of_task(task: int) -> str:
    """The kind of the tables that a task reads."""
    return f"ids-{task:05d}"


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

    @property
    def has_images(self) -> bool:
        return any(shard.images for shard in self.shards)

    def unigram_loss(self) -> float:
        return unigram_loss(self._targets["train"], self._targets["held_out"])


def write_shards(
    encoded: Stage,
    partitions: int,
    division: Division,
    census: Census,
    vocabulary: bytes,
    corpus: config.Corpus,
    storage: Storage,
    written: Written,
    images: Images | None = None,
) -> None:
    """Gather, pack and write what is not there yet, part by part; what is known of it is added to
    `written`. `images` are those of pairs."""
    before = Counter(written.documents)
    for row in finished_parts(division.parts, vocabulary, division.tasks, storage):
        written.add(row)
    if written.documents - before != census.documents:
        parts = frozenset(written.parts)
        writer = _Writer(encoded, partitions, division, parts, vocabulary, corpus, storage, images)
        tasks = numbered(division.tasks).map_batches(writer.write, batch_size=1, **COMPUTING)
        for row in tasks.iter_rows():
            written.add(row)
    if written.documents - before != census.documents:
        raise CorpusError(
            f"{storage.uri}/{INDEX} holds parts that another version of the libraries has made of "
            "the same sources. Remove that folder, and the same command goes on."
        )


@lru_cache(maxsize=1)
def tokenizer_of(vocabulary: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(vocabulary)


@dataclass(frozen=True)
class _Writer:
    """Writes the parts of a task that are not finished."""

    encoded: Stage
    partitions: int
    division: Division
    finished: frozenset[Part]
    vocabulary: bytes
    corpus: config.Corpus
    storage: Storage
    images: Images | None

    def write(self, batch: pa.Table) -> Iterator[pa.Table]:
        kind = _of_task(batch["number"][0].as_py())
        read = partial(self.encoded.tables, kind=kind)
        tables = [table for n in range(self.partitions) for table in read(n)]
        if not tables:
            return
        encoded = pa.concat_tables(tables)
        # The ids are views of these tables, and never sorted themselves: they are most of the memory.
        ids = [document.values.to_numpy() for chunk in encoded["ids"].chunks for document in chunk]
        by_part = [(key, "ascending") for key in ("group", "part", "hash")]
        order = pc.sort_indices(encoded, by_part).to_pylist()
        # So are images, which are most of it where there are any.
        images = (
            [image for chunk in encoded["image"].chunks for image in chunk] if self.images else []
        )
        documents = encoded.select([*INDEXED, "group", "part"]).take(order)
        tokens = [ids[row] for row in order]
        images = [images[row] for row in order] if images else []
        parts = zip(documents["group"].to_pylist(), documents["part"].to_pylist(), strict=True)
        start = 0
        for part, rows in groupby(parts):
            stop = start + len(list(rows))
            if part not in self.finished:
                yield self._write_part(
                    part,
                    documents.slice(start, stop - start),
                    self._packing(tokens[start:stop], images[start:stop]),
                )
            start = stop

    def _packing(self, tokens: list[Tokens], images: list[pa.Scalar]) -> Packing:
        length, pad = self.corpus.sequence_length, Tokenizer.pad
        if not self.images:
            return pack(tokens, length, pad)
        start = caption_start(self.images.tokens)
        answers = [[[start, len(pair)]] for pair in tokens]
        shown = [[[image.as_py()]] for image in images]
        return pack_whole([[pair] for pair in tokens], answers, length, pad, shown)

    def _write_part(self, which: Part, documents: pa.Table, packing: Packing) -> pa.Table:
        """Write one part of a domain's split: its shards and its index.

        A part's rows are shuffled in itself. That is as good as over the domain: its hash gives a
        document its part, so each part is a random draw of the domain, and no order of the sources is
        left in it.
        """
        group, part = which
        split: Split = "train" if group.startswith("train/") else "held_out"
        domain = group.partition("/")[2]
        corpus, tokenizer = self.corpus, tokenizer_of(self.vocabulary)
        seed = int.from_bytes(hashlib.sha256(f"{group}/{part}".encode()).digest()[:16])
        packing = packing.shuffled(seed)
        targets = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
        shards = []
        for index, start in enumerate(range(0, len(packing), corpus.rows_per_shard)):
            # Parts count in step, so that their names never meet.
            path = f"{group}/{part + index * self.division.parts[group]:05d}.parquet"
            rows = packing.filled(start, start + corpus.rows_per_shard)
            shards.append(
                write_shard(self.storage, path, split, domain, rows, corpus.rows_per_group)
            )
            targets += count_targets(rows, len(targets))
        record = write_index(self.storage, group, part, documents, shards, self.vocabulary)
        return result(group, part, shards, record, targets)
