"""The stages of a preparation as Ray Data tasks: files come in, written shards go out.

The one idea: the SHA-256 of a document's text decides all about it (which others repeat it, its
split, its place in the order), so that the outcome depends neither on the order of tasks nor on
where they run. The driver holds names and counts; texts stay in Ray's object store, which spills to
disk, and pass through the driver only as the sample that the tokenizer is trained on.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from panthalassa import config
from panthalassa.corpus.balance import sample_shares
from panthalassa.corpus.documents import Document, Problem, SourceFile
from panthalassa.corpus.manifest import Shard, Split
from panthalassa.corpus.pack import pack
from panthalassa.corpus.shards import count_targets, unigram_loss, write_shard
from panthalassa.corpus.sources import read_documents
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

TASK_BYTES = 64 << 20  # text that one task gathers
YIELD_BYTES = 16 << 20  # text that a reading task hands on at once
TOKENIZER_BYTES = 256 << 20  # text that the tokenizer is trained on
YIELD_ROWS = 65_536
NAMED_PROBLEMS = 3
PROBLEM_CHARACTERS = 300
ENCODE_ROWS = 32  # documents that are encoded at once
TASK: dict[str, Any] = {"num_cpus": 0.25, "batch_format": "pyarrow"}

# `position` is the first 8 bytes of the hash, as a fraction of 2**64. A row without a text is a
# problem, by which `lost` records are missing.
SCHEMA = pa.schema(
    {
        "hash": pa.binary(),
        "position": pa.uint64(),
        "domain": pa.string(),
        "text": pa.large_string(),
        "bucket": pa.uint64(),
        "problem": pa.string(),
        "lost": pa.int64(),
    }
)


@dataclass(frozen=True)
class Census:
    """The distinct documents of `read` ones, counted by `{split}/{domain}`.

    Neither number has the `near_duplicates`, which were dropped before. Held out are those whose
    position is below `held_out_below`; the least position is `lowest`.
    """

    held_out_below: int
    lowest: int
    read: int
    documents: Counter[str]
    characters: Counter[str]
    text_bytes: Counter[str]
    near_duplicates: int = 0

    def parts(self, group: str) -> int:
        """Tasks that share a domain's split; which one has a document is random by its hash."""
        return _tasks(self.text_bytes[group])

    def train_bytes(self) -> dict[str, int]:
        """Text of the train split by domain."""
        return {
            group.removeprefix("train/"): size
            for group, size in self.text_bytes.items()
            if group.startswith("train/")
        }

    def held_out(self) -> int:
        return sum(n for group, n in self.documents.items() if group.startswith("held_out/"))


def _tasks(text_bytes: int) -> int:
    """Tasks for so much text: small corpora pay for few worker processes, whose start is slow."""
    return max(1, math.ceil(text_bytes / TASK_BYTES))


def buckets_of(files: list[SourceFile]) -> int:
    """The number of buckets that the documents are in, each of which has its task."""
    return _tasks(sum(file.size for file in files))


def distinct_documents(
    files: list[SourceFile], max_bad_share: float, report: Callable[[str], None]
) -> ray.data.Dataset:
    """Each text once, with columns hash, position, domain, text and copies; kept by Ray.

    A text of several domains goes to the one whose name sorts first. Raises CorpusError when more
    than `max_bad_share` of the records could not be read.
    """
    tasks = buckets_of(files)
    rows = [asdict(file) for file in files]
    everything: ray.data.Dataset = (
        ray.data.from_items(rows, override_num_blocks=min(tasks, len(rows)))
        .map_batches(partial(_read, buckets=tasks, at_once=YIELD_BYTES), batch_size=1, **TASK)
        .groupby("bucket", num_partitions=tasks)
        .map_groups(_deduplicate, **TASK)
        .materialize()
    )
    check_problems(everything, max_bad_share, report)
    documents: ray.data.Dataset = everything.map_batches(
        _documents, batch_size=None, **TASK
    ).materialize()
    return documents


def check_problems(
    everything: ray.data.Dataset, max_bad_share: float, report: Callable[[str], None]
) -> None:
    """Count and name what could not be read; raise CorpusError when it is more than that share."""
    read, lost = 0, 0
    first: list[str] = []
    for row in everything.map_batches(_count_problems, batch_size=None, **TASK).iter_rows():
        read, lost = read + row["read"], lost + row["lost"]
        first = sorted({*first, *row["first"]})[:NAMED_PROBLEMS]
    if lost:
        _judge(read, lost, first, max_bad_share, report)
    if not read:
        raise CorpusError("the files of corpus.sources hold no text. Add some that do.")


def _judge(
    read: int, lost: int, first: list[str], max_bad_share: float, report: Callable[[str], None]
) -> None:
    told = (
        f"{lost} of {read + lost} records ({100 * lost / (read + lost):.2g} %) can not be read: "
        + "; ".join(first)
    )
    if lost > max_bad_share * (read + lost):
        raise CorpusError(
            f"{told}. Correct the files, take them out of the folder, or raise "
            f"corpus.max_bad_share above {max_bad_share:g}."
        )
    report(told)


def _count_problems(batch: pa.Table) -> pa.Table:
    problems = batch.filter(pc.is_valid(batch["problem"]))
    documents = batch.filter(pc.is_null(batch["problem"]))
    return pa.table(
        {
            "read": pa.array([pc.sum(documents["copies"]).as_py() or 0], pa.int64()),
            "lost": pa.array([pc.sum(problems["lost"]).as_py() or 0], pa.int64()),
            "first": pa.array(
                [sorted(problems["problem"].to_pylist())[:NAMED_PROBLEMS]], pa.list_(pa.string())
            ),
        }
    )


def _documents(batch: pa.Table) -> pa.Table:
    return batch.filter(pc.is_null(batch["problem"])).drop_columns(["problem", "lost"])


def _read(batch: pa.Table, buckets: int, at_once: int) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    size = 0
    for file in batch.to_pylist():
        for found in read_documents(SourceFile(**file)):
            rows.append(_row(found, buckets))
            size += len((rows[-1]["text"] or "").encode())
            if size > at_once or len(rows) >= YIELD_ROWS:
                yield pa.Table.from_pylist(rows, SCHEMA)
                rows, size = [], 0
    yield pa.Table.from_pylist(rows, SCHEMA)


def _row(found: Document | Problem, buckets: int) -> dict[str, Any]:
    if isinstance(found, Problem):
        digest = hashlib.sha256(f"problem {found}".encode(errors="replace")).digest()
        row: dict[str, Any] = {"problem": str(found)[:PROBLEM_CHARACTERS], "lost": found.records}
    else:
        digest = hashlib.sha256(found.text.encode()).digest()
        row = {"domain": found.domain}
    text = None if isinstance(found, Problem) else found.text
    position = int.from_bytes(digest[:8])
    return row | {"hash": digest, "position": position, "bucket": position % buckets, "text": text}


def _deduplicate(bucket: pa.Table) -> pa.Table:
    distinct = bucket.group_by(["hash", "position"], use_threads=False).aggregate(
        [
            ("domain", "min"),
            ("text", "one"),
            ("hash", "count"),
            ("problem", "min"),
            ("lost", "sum"),
        ]
    )
    return distinct.rename_columns(
        ["hash", "position", "domain", "text", "copies", "problem", "lost"]
    )


def take_census(
    documents: ray.data.Dataset, held_out_share: float, near_duplicates: int = 0
) -> Census:
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
    return replace(census, near_duplicates=near_duplicates)


def _count(documents: ray.data.Dataset, held_out_below: int) -> Census:
    count = partial(_count_batch, held_out_below=held_out_below)
    counts = documents.map_batches(count, batch_size=None, **TASK)
    kept: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    text_bytes: Counter[str] = Counter()
    read, lowest = 0, 2**64
    for row in counts.iter_rows():
        kept[row["group"]] += row["documents"]
        characters[row["group"]] += row["characters"]
        text_bytes[row["group"]] += row["text_bytes"]
        read += row["copies"]
        lowest = min(lowest, row["lowest"])
    return Census(held_out_below, lowest, read, kept, characters, text_bytes)


def _count_batch(batch: pa.Table, held_out_below: int) -> pa.Table:
    groups = _groups(batch, held_out_below)
    counted = (
        batch.append_column("group", groups)
        .append_column("characters", pc.utf8_length(batch["text"]))
        .append_column("size", pc.binary_length(batch["text"]))
    )
    sums = [(column, "sum") for column in ("characters", "size", "copies")]
    return (
        counted.group_by("group")
        .aggregate([("hash", "count"), *sums, ("position", "min")])
        .rename_columns(["group", "documents", "characters", "text_bytes", "copies", "lowest"])
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


def write_shards(
    documents: ray.data.Dataset,
    census: Census,
    vocabulary: bytes,
    corpus: config.Corpus,
    storage: Storage,
) -> tuple[list[Shard], float]:
    """Encode, gather, pack and write. Returns the shards, sorted by path, and the unigram loss."""
    parts = {group: census.parts(group) for group in census.documents}
    tasks = _tasks(census.text_bytes.total())
    encode = partial(
        _encode, vocabulary=vocabulary, held_out_below=census.held_out_below, parts=parts
    )
    write_group = partial(
        _write_group, parts=parts, vocabulary=vocabulary, corpus=corpus, storage=storage
    )
    results: ray.data.Dataset = (
        documents.map_batches(encode, batch_size=ENCODE_ROWS, **TASK)
        .groupby(["group", "part"], num_partitions=tasks)
        .map_groups(write_group, **TASK)
    )
    shards: list[Shard] = []
    size = Tokenizer.from_bytes(vocabulary).vocabulary_size
    targets = {split: np.zeros(size, dtype=np.int64) for split in get_args(Split)}
    for row in results.iter_rows():
        found = [Shard.model_validate_json(record) for record in row["shards"]]
        targets[found[0].split] += row["targets"]
        shards += found
    loss = unigram_loss(targets["train"], targets["held_out"])
    return sorted(shards, key=lambda shard: shard.path), loss


@lru_cache(maxsize=1)
def _tokenizer(vocabulary: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(vocabulary)


def _encode(
    batch: pa.Table, vocabulary: bytes, held_out_below: int, parts: dict[str, int]
) -> pa.Table:
    """Documents as `bos ids eos`, each with the group and the part of it where it belongs."""
    tokenizer = _tokenizer(vocabulary)
    groups = _groups(batch, held_out_below)
    positions = batch["position"].to_pylist()
    part = [p % parts[g] for p, g in zip(positions, groups.to_pylist(), strict=True)]
    ids = [tokenizer.encode_document(text) for text in batch["text"].to_pylist()]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    return pa.table(
        {
            "group": groups,
            "part": pa.array(part, pa.int64()),
            "hash": batch["hash"],
            "ids": pa.ListArray.from_arrays(offsets, np.concatenate(ids)),
        }
    )


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
    ids = table.sort_by("hash")["ids"].combine_chunks()
    documents = [scalar.values.to_numpy() for scalar in ids]
    seed = int.from_bytes(hashlib.sha256(f"{group}/{part}".encode()).digest()[:16])
    packed = pack(documents, corpus.sequence_length, tokenizer.pad).shuffled(seed)
    shards = []
    for index, start in enumerate(range(0, len(packed.tokens), corpus.rows_per_shard)):
        # Parts count in step, so that their names never meet.
        path = f"{group}/{part + index * parts[group]:05d}.parquet"
        rows = packed.slice(start, start + corpus.rows_per_shard)
        shards.append(write_shard(storage, path, split, domain, rows, corpus.rows_per_group))
    return pa.table(
        {
            "shards": [[shard.model_dump_json() for shard in shards]],
            "targets": [count_targets(packed, tokenizer.vocabulary_size)],
        }
    )
