"""Reading: files come in, each text once goes out, with its provenance, and a tally of the rest.

The first stages of a preparation as Ray Data tasks: a task reads and refines files, and documents
meet by their hash, so that the outcome depends neither on the order of tasks nor on where they run.
A row is a document, or a tally of what a task saw, which the driver adds up. Texts stay in Ray's
object store, which spills to disk.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from panthalassa.corpus.documents import Document, Problem, SourceFile
from panthalassa.corpus.funnel import EXAMPLE_CHARACTERS, Example, Step, Tally
from panthalassa.corpus.refine import Refiner
from panthalassa.corpus.sources import read_documents
from panthalassa.errors import CorpusError

TASK_BYTES = 64 << 20  # text that one task gathers
YIELD_BYTES = 16 << 20  # text that a reading task hands on at once
YIELD_ROWS = 65_536
TASK: dict[str, Any] = {"num_cpus": 0.25, "batch_format": "pyarrow"}

# `position` is the first 8 bytes of the hash, as a fraction of 2**64; `place` is below `source`. A
# row without a text is a `tally`.
SCHEMA = pa.schema(
    {
        "hash": pa.binary(),
        "position": pa.uint64(),
        "domain": pa.string(),
        "text": pa.large_string(),
        "bucket": pa.uint64(),
        "source": pa.string(),
        "place": pa.string(),
        "url": pa.string(),
        "license": pa.string(),
        "tally": pa.string(),
    }
)


def tasks_for(text_bytes: int) -> int:
    """Tasks for so much text: small corpora pay for few worker processes, whose start is slow."""
    return max(1, math.ceil(text_bytes / TASK_BYTES))


def buckets_of(files: list[SourceFile]) -> int:
    """The number of buckets that the documents are in, each of which has its task."""
    return tasks_for(sum(file.size for file in files))


def distinct_documents(files: list[SourceFile], refine: Refiner, tally: Tally) -> ray.data.Dataset:
    """Each text once, with the columns of SCHEMA but `tally`; kept by Ray.

    A text of several domains goes to the one whose name sorts first, and in it to the source and
    place that do.
    """
    tasks = buckets_of(files)
    rows = [asdict(file) for file in files]
    read = partial(_read, refine=refine, buckets=tasks, at_once=YIELD_BYTES)
    everything: ray.data.Dataset = (
        ray.data.from_items(rows, override_num_blocks=min(tasks, len(rows)))
        .map_batches(read, batch_size=1, **TASK)
        .groupby("bucket", num_partitions=tasks)
        .map_groups(_deduplicate, **TASK)
        .materialize()
    )
    add_up(everything.map_batches(_tallies, batch_size=None, **TASK), tally)
    documents = everything.map_batches(_documents, batch_size=None, **TASK)
    distinct: ray.data.Dataset = documents.materialize()
    return distinct


def add_up(tallies: ray.data.Dataset, tally: Tally) -> None:
    """Add the column `tally` of the rows."""
    for row in tallies.iter_rows():
        tally.merge(row["tally"])


def check_problems(tally: Tally, max_bad_share: float, files: list[SourceFile]) -> str | None:
    """What could not be read, counted and named; None when that is nothing.

    Raises CorpusError when it is more than `max_bad_share` of the records, or all there is.
    """
    read, lost = tally.total("read"), tally.total("unreadable")
    told = None
    if lost:
        roots = {file.source: file.root for file in files}
        named = [
            f"{roots[example.place.partition('/')[0]]}/{example.place.partition('/')[2]}: "
            f"{example.reason}"
            for example in tally.examples("unreadable")
        ]
        told = (
            f"{lost} of {read + lost} records ({100 * lost / (read + lost):.2g} %) can not be read: "
            + "; ".join(named)
        )
        if lost > max_bad_share * (read + lost):
            raise CorpusError(
                f"{told}. Correct the files, take them out of the folder, or raise "
                f"corpus.max_bad_share above {max_bad_share:g}."
            )
    if not read:
        raise CorpusError("the files of corpus.sources hold no text. Add some that do.")
    if tally.total("rule") == read:
        reasons = "; ".join(f"{e.place}: {e.reason}" for e in tally.examples("rule"))
        raise CorpusError(
            f"all of the {read} documents were dropped by rules ({reasons}). Add documents to "
            "corpus.sources, or set corpus.clean to false."
        )
    return told


def _documents(batch: pa.Table) -> pa.Table:
    return batch.filter(pc.is_valid(batch["text"])).drop_columns(["tally"])


def _tallies(batch: pa.Table) -> pa.Table:
    return batch.filter(pc.is_valid(batch["tally"])).select(["tally"])


def _read(batch: pa.Table, refine: Refiner, buckets: int, at_once: int) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    size = 0
    for fields in batch.to_pylist():
        file, tally = SourceFile(**fields), Tally()
        for found in read_documents(file):
            if isinstance(found, Problem):
                place = Example(place=_place(file, found.place), reason=found.reason)
                tally.add("unreadable", file.domain, found.records, example=place)
            elif document := _refined(found, file, refine, tally):
                rows.append(_row(document, file, buckets))
                size += len(rows[-1]["text"].encode())
            if size > at_once or len(rows) >= YIELD_ROWS:
                yield pa.Table.from_pylist(rows, SCHEMA)
                rows, size = [], 0
        bucket = zlib.crc32(file.place.encode(errors="replace")) % buckets
        rows.append({"bucket": bucket, "tally": tally.encode()})
    yield pa.Table.from_pylist(rows, SCHEMA)


def _place(file: SourceFile, place: str) -> str:
    """The place of a document without what is before its source, which no corpus depends on."""
    return f"{file.source}/{place.removeprefix(f'{file.root}/')}"


def _refined(
    document: Document, file: SourceFile, refine: Refiner, tally: Tally
) -> Document | None:
    size = len(document.text.encode())
    refined = refine(document)
    domain = refined.document.domain
    tally.add("read", domain, size=size)
    if removal := refined.removal:
        example = Example(
            place=_place(file, document.provenance.place),
            reason=removal.reason,
            text=document.text,
        )
        tally.add("rule", domain, size=size, rule=removal.rule, example=example)
        return None
    if refined.document.text != document.text:
        tally.add("trimmed", domain, size=size - len(refined.document.text.encode()))
    for kind, count in refined.masked.items():
        tally.add("masked", domain, count, rule=kind)
    return refined.document


def _row(document: Document, file: SourceFile, buckets: int) -> dict[str, Any]:
    digest = hashlib.sha256(document.text.encode()).digest()
    position = int.from_bytes(digest[:8])
    provenance = document.provenance
    return {
        "hash": digest,
        "position": position,
        "domain": document.domain,
        "text": document.text,
        "bucket": position % buckets,
        "source": file.source,
        "place": provenance.place.removeprefix(f"{file.root}/"),
        "url": provenance.url,
        "license": provenance.license,
    }


def _deduplicate(bucket: pa.Table) -> pa.Table:
    """The first document of each text, and one tally: of the duplicates, and those of the bucket."""
    tally = Tally()
    for encoded in bucket["tally"].drop_null().to_pylist():
        tally.merge(encoded)
    texts = bucket.filter(pc.is_valid(bucket["text"]))
    order = [(name, "ascending") for name in ("hash", "domain", "source", "place")]
    texts = texts.take(pc.sort_indices(texts, order))
    hashes = np.array(texts["hash"].to_pylist(), dtype=object)
    again = np.concatenate(([False], hashes[1:] == hashes[:-1]))[: len(hashes)]
    count_dropped("duplicate", texts.filter(pa.array(again, pa.bool_())), tally)
    kept = texts.filter(pa.array(~again, pa.bool_()))
    note = {"bucket": bucket["bucket"][0].as_py(), "tally": tally.encode()}
    return pa.concat_tables([kept, pa.Table.from_pylist([note], SCHEMA)])


def count_dropped(step: Step, documents: pa.Table, tally: Tally) -> None:
    """Count documents that a step drops."""
    begins = pc.utf8_slice_codeunits(documents["text"], 0, EXAMPLE_CHARACTERS)
    counted = documents.select(["domain", "source", "place"])
    counted = counted.append_column("size", pc.binary_length(documents["text"]))
    for row in counted.append_column("begins", begins).to_pylist():
        example = Example(place=f"{row['source']}/{row['place']}", text=row["begins"])
        tally.add(step, row["domain"], size=row["size"], example=example)
