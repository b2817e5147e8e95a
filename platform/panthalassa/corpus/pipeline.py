"""The stages of a preparation as Ray Data tasks: distinct documents come in, written shards go out.

The one idea: the SHA-256 of a document's text decides all about it (which others repeat it, its
split, its place in the order), so that the outcome depends neither on the order of tasks nor on
where they run. The driver holds names and counts; texts stay in Ray's object store, and pass through
the driver only as the sample that the tokenizer is trained on.
"""

import hashlib
from bisect import insort
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from panthalassa import config
from panthalassa.corpus.balance import sample_shares
from panthalassa.corpus.dedup import mark_near_duplicates
from panthalassa.corpus.funnel import Tally
from panthalassa.corpus.manifest import Index, Shard, Split
from panthalassa.corpus.pack import pack
from panthalassa.corpus.parts import INDEX, Part, finished_parts, result, write_index
from panthalassa.corpus.reading import TASK, add_up, count_dropped, tasks_for
from panthalassa.corpus.shards import count_targets, unigram_loss, write_shard
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

TOKENIZER_BYTES = 256 << 20  # text that the tokenizer is trained on
ENCODE_ROWS = 32  # documents that are encoded at once


@dataclass(frozen=True)
class Census:
    """The documents that are left, counted by `{split}/{domain}`.

    Held out are those whose position is below `held_out_below`; the least position is `lowest`.
    """

    held_out_below: int
    lowest: int
    documents: Counter[str]
    characters: Counter[str]
    text_bytes: Counter[str]

    def parts(self, group: str) -> int:
        """Tasks that share a domain's split; which one has a document is random by its hash."""
        return tasks_for(self.text_bytes[group])

    def train_bytes(self) -> dict[str, int]:
        """Text of the train split by domain."""
        return {
            group.removeprefix("train/"): size
            for group, size in self.text_bytes.items()
            if group.startswith("train/")
        }

    def held_out(self) -> int:
        return sum(n for group, n in self.documents.items() if group.startswith("held_out/"))


def drop_near_duplicates(
    documents: ray.data.Dataset, threshold: float, buckets: int, tally: Tally
) -> ray.data.Dataset:
    """The documents without the near-duplicates of a better one, which are counted."""
    marked = mark_near_duplicates(documents, threshold, buckets)
    add_up(marked.map_batches(_count_near_duplicates, batch_size=None, **TASK), tally)
    kept: ray.data.Dataset = marked.map_batches(
        _without_near_duplicates, batch_size=None, **TASK
    ).materialize()
    return kept


def _count_near_duplicates(batch: pa.Table) -> pa.Table:
    tally = Tally()
    count_dropped("near_duplicate", batch.filter(batch["near_duplicate"]), tally)
    return pa.table({"tally": [tally.encode()]})


def _without_near_duplicates(batch: pa.Table) -> pa.Table:
    return batch.filter(pc.invert(batch["near_duplicate"])).drop_columns(["near_duplicate"])


def take_census(documents: ray.data.Dataset, held_out_share: float) -> Census:
    """Fix the split and count both sides of it.

    Held out is what lies below held_out_share; when nothing does, the one lowest document is.
    """
    census = _count(documents, int(held_out_share * 2**64))
    if not census.held_out():
        census = _count(documents, census.lowest + 1)
    if census.held_out() == census.documents.total():
        raise CorpusError(
            f"the sources hold {census.held_out()} distinct documents, and all of them fall to the "
            "held-out split. Add documents to corpus.sources."
        )
    return census


def _count(documents: ray.data.Dataset, held_out_below: int) -> Census:
    count = partial(_count_batch, held_out_below=held_out_below)
    counts = documents.map_batches(count, batch_size=None, **TASK)
    kept: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    text_bytes: Counter[str] = Counter()
    lowest = 2**64
    for row in counts.iter_rows():
        kept[row["group"]] += row["documents"]
        characters[row["group"]] += row["characters"]
        text_bytes[row["group"]] += row["text_bytes"]
        lowest = min(lowest, row["lowest"])
    return Census(held_out_below, lowest, kept, characters, text_bytes)


def _count_batch(batch: pa.Table, held_out_below: int) -> pa.Table:
    groups = _groups(batch, held_out_below)
    counted = (
        batch.append_column("group", groups)
        .append_column("characters", pc.utf8_length(batch["text"]))
        .append_column("size", pc.binary_length(batch["text"]))
    )
    sums = [(column, "sum") for column in ("characters", "size")]
    return (
        counted.group_by("group")
        .aggregate([("hash", "count"), *sums, ("position", "min")])
        .rename_columns(["group", "documents", "characters", "text_bytes", "lowest"])
    )


def _groups(batch: pa.Table, held_out_below: int) -> Any:
    """For each document its `{split}/{domain}`."""
    held_out = pc.less(batch["position"], pa.scalar(held_out_below, pa.uint64()))
    return pc.binary_join_element_wise(
        pc.if_else(held_out, "held_out", "train"), batch["domain"], "/"
    )


def train_tokenizer(
    documents: ray.data.Dataset, census: Census, corpus: config.Corpus
) -> Tokenizer:
    """Train on the train split, or on a sample of it, drawn by hash, when that is large."""
    shares = sample_shares(census.train_bytes(), TOKENIZER_BYTES, corpus.tokenizer_alpha)
    sample = partial(_sample, held_out_below=census.held_out_below, shares=shares)
    texts = documents.map_batches(sample, batch_size=None, **TASK).iter_rows()
    return Tokenizer.train((row["text"] for row in texts), corpus.vocabulary_size)


def _sample(batch: pa.Table, held_out_below: int, shares: dict[str, float]) -> pa.Table:
    position = batch["position"].to_numpy()
    below = [int(shares.get(domain, 0) * 2**32) for domain in batch["domain"].to_pylist()]
    drawn = position % 2**32 < np.array(below)  # the low bits: the high ones make the split
    return batch.select(["text"]).filter(pa.array(drawn & (position >= held_out_below)))


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
    documents: ray.data.Dataset,
    census: Census,
    vocabulary: bytes,
    corpus: config.Corpus,
    storage: Storage,
) -> Written:
    """Encode, gather, pack and write what is not there yet, part by part."""
    parts = {group: census.parts(group) for group in census.documents}
    tasks = tasks_for(census.text_bytes.total())
    written = Written(Tokenizer.from_bytes(vocabulary).vocabulary_size)
    for row in finished_parts(parts, vocabulary, tasks, storage):
        written.add(row)
    if written.documents != census.documents:
        encode = partial(
            _encode,
            vocabulary=vocabulary,
            held_out_below=census.held_out_below,
            parts=parts,
            finished=frozenset(written.parts),
        )
        write_group = partial(
            _write_group, parts=parts, vocabulary=vocabulary, corpus=corpus, storage=storage
        )
        results: ray.data.Dataset = (
            documents.map_batches(encode, batch_size=ENCODE_ROWS, **TASK)
            .groupby(["group", "part"], num_partitions=tasks)
            .map_groups(write_group, **TASK)
        )
        for row in results.iter_rows():
            written.add(row)
    if written.documents != census.documents:
        raise CorpusError(
            f"{storage.uri}/{INDEX} holds parts that another version of the libraries has made of "
            "the same sources. Remove that folder, and the same command goes on."
        )
    return written


@lru_cache(maxsize=1)
def _tokenizer(vocabulary: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(vocabulary)


def _encode(
    batch: pa.Table,
    vocabulary: bytes,
    held_out_below: int,
    parts: dict[str, int],
    finished: frozenset[Part],
) -> pa.Table:
    """Documents as `bos ids eos`, each with the group and the part of it where it belongs."""
    tokenizer = _tokenizer(vocabulary)
    groups = _groups(batch, held_out_below)
    positions = batch["position"].to_pylist()
    part = [p % parts[g] for p, g in zip(positions, groups.to_pylist(), strict=True)]
    batch = batch.append_column("group", groups).append_column("part", pa.array(part, pa.int64()))
    wanted = [which not in finished for which in zip(groups.to_pylist(), part, strict=True)]
    batch = batch.filter(pa.array(wanted, pa.bool_()))
    ids = [tokenizer.encode_document(text) for text in batch["text"].to_pylist()]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *ids])
    table = batch.append_column("bytes", pc.binary_length(batch["text"])).drop_columns(
        ["text", "position", "bucket"]
    )
    return table.append_column("ids", pa.ListArray.from_arrays(offsets, flat))


def _write_group(
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
