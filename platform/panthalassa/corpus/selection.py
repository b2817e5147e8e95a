"""Selection: documents that were read come in, which of them are kept goes out, with the census.

The second stage of a preparation: copies and near-duplicates are found among all partitions, and then
each partition leaves out what is one, or shares a passage with an evaluation. What it keeps is written
as a column `kept`, table by table beside the documents. The SHA-256 of a document's text decides its
split, so that the outcome depends neither on the order of tasks nor on where they run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray

from panthalassa import config
from panthalassa.corpus.components import (
    DIGEST_BYTES,
    NODE_BYTES,
    Nodes,
    digests_of,
    name_nodes,
    places,
    positions_of,
)
from panthalassa.corpus.dedup import (
    buckets_of,
    find_duplicates,
    find_duplicates_apart,
    fit_one_task,
    name_column,
    names_of,
)
from panthalassa.corpus.funnel import Example, Step, Tally
from panthalassa.corpus.minhash import Indices
from panthalassa.corpus.reading import bands_of
from panthalassa.corpus.staging import COMPUTING, TASK, Stage, Tables, numbered
from panthalassa.errors import CorpusError

STEPS: tuple[Step, ...] = ("duplicate", "near_duplicate", "contaminated")
KEPT = -1
COUNTED = ("documents", "characters", "text_bytes")


@dataclass(frozen=True)
class Census:
    """The documents that are kept, counted by `{split}/{domain}`. Held out are those whose position
    is below `held_out_below`."""

    held_out_below: int
    documents: Counter[str]
    characters: Counter[str]
    text_bytes: Counter[str]

    @classmethod
    def empty(cls, corpus: config.Corpus) -> "Census":
        return cls(position_of(corpus.held_out_share), Counter(), Counter(), Counter())

    def train_bytes(self) -> dict[str, int]:
        """Text of the train split by domain."""
        return {
            group.removeprefix("train/"): size
            for group, size in self.text_bytes.items()
            if group.startswith("train/")
        }

    def held_out(self) -> int:
        return sum(n for group, n in self.documents.items() if group.startswith("held_out/"))

    def plus(self, other: "Census") -> "Census":
        """Both, of which no group is the same."""
        counts = ((getattr(self, name) + getattr(other, name)) for name in COUNTED)
        return Census(self.held_out_below, *counts)

    def encode(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, encoded: str) -> "Census":
        held_out_below, *counts = json.loads(encoded).values()
        return cls(held_out_below, *map(Counter, counts))


def position_of(share: float) -> int:
    """The position below which such a share of the documents lies."""
    return int(share * 2**64)


def groups_of(domains: pa.ChunkedArray, positions: NDArray[np.uint64], held_out_below: int) -> Any:
    """For each document its `{split}/{domain}`."""
    held_out = pa.array(positions < np.uint64(held_out_below))
    return pc.binary_join_element_wise(pc.if_else(held_out, "held_out", "train"), domains, "/")


def select(
    documents: Stage, kept: Stage, partitions: int, corpus: config.Corpus, tally: Tally
) -> Census:
    """Decide about all documents of the partitions.

    `kept` gets for each table `about` of `documents` one with the column `kept`. The tally is that of
    what was read, and what is dropped is added to it. Held out is what lies below
    `corpus.held_out_share`; when nothing does, the one lowest document is. Raises CorpusError when
    nothing is left to train on.
    """
    bands = bands_of(corpus)
    read = tally.total("read") - tally.total("rule")
    keys = bands[0] if bands else 0
    below = position_of(corpus.held_out_share)
    settle = partial(_settle, documents=documents, kept=kept, held_out_below=below)
    if fit_one_task(read, keys):
        rows = _select_in_one_task(documents, partitions, corpus.near_duplicates, settle)
    else:
        buckets = buckets_of(read, keys)
        rows = _select_apart(documents, partitions, corpus.near_duplicates, settle, buckets)
    return _add_up((row["note"] for row in rows.iter_rows()), below, tally)


def _select_in_one_task(
    documents: Stage,
    partitions: int,
    threshold: float | None,
    settle: Callable[[int, Nodes, Nodes], str],
) -> ray.data.Dataset:
    def all_of_them(batch: pa.Table) -> Iterator[pa.Table]:
        names = pa.concat_tables(
            table for number in range(partitions) for table in _names_of(documents, number)
        )
        copies, worse = find_duplicates(names, threshold, partial(_texts, documents))
        of_copies, of_worse = places(copies)[0], places(worse)[0]
        for number in range(partitions):
            note = settle(number, copies[of_copies == number], worse[of_worse == number])
            yield pa.table({"note": [note]})

    notes: ray.data.Dataset = numbered(1).map_batches(all_of_them, **COMPUTING)
    return notes


def _select_apart(
    documents: Stage,
    partitions: int,
    threshold: float | None,
    settle: Callable[[int, Nodes, Nodes], str],
    buckets: int,
) -> ray.data.Dataset:
    names = numbered(partitions).map_batches(
        partial(_names, documents=documents), batch_size=1, **TASK
    )
    dropped = find_duplicates_apart(names, threshold, partial(_texts, documents), buckets)
    # A row of each partition, so that each has a group.
    nothing = numbered(partitions).map_batches(_nothing, batch_size=None, **TASK)
    notes: ray.data.Dataset = (
        dropped.union(nothing)
        .groupby("number", num_partitions=min(partitions, buckets))
        .map_groups(partial(_settle_group, settle=settle), **TASK)
    )
    return notes


def _names_of(documents: Stage, number: int) -> Iterator[pa.Table]:
    first = 0
    nobody = name_nodes([], np.zeros((0, DIGEST_BYTES), np.uint8), number, first)
    yield pa.table({"name": name_column(nobody), "keys": pa.array([], pa.list_(pa.uint64()))})
    for about in documents.tables(number, "about"):
        nodes = name_nodes(about["bytes"], digests_of(about["hash"]), number, first)
        yield pa.table({"name": name_column(nodes), "keys": about["keys"]})
        first += len(about)


def _names(batch: pa.Table, documents: Stage) -> Iterator[pa.Table]:
    yield from _names_of(documents, batch["number"][0].as_py())


def _texts(documents: Stage, number: int, rows: Indices) -> pa.ChunkedArray:
    """The texts of rows, ascending, of a partition."""
    found = []

    def wanted(first: int, stop: int) -> bool:
        return bool(np.searchsorted(rows, first) < np.searchsorted(rows, stop))

    for table, first in documents.tables_with(number, "texts", wanted):
        here = rows[(rows >= first) & (rows < first + len(table))] - first
        found += table["text"].take(here).chunks
    return pa.chunked_array(found, pa.large_string())


def _nothing(numbers: pa.Table) -> pa.Table:
    names = pa.nulls(len(numbers), pa.binary(NODE_BYTES))
    return numbers.append_column("name", names).append_column("copy", names.is_valid())


def _settle_group(group: pa.Table, settle: Callable[[int, Nodes, Nodes], str]) -> pa.Table:
    number = group["number"][0].as_py()
    if number is None:
        return pa.table({"note": pa.array([], pa.string())})
    dropped = group.filter(pc.is_valid(group["name"]))
    copies = names_of(dropped["name"].filter(dropped["copy"]))
    worse = names_of(dropped["name"].filter(pc.invert(dropped["copy"])))
    return pa.table({"note": [settle(number, copies, worse)]})


# One partition: what is dropped of it, and what is left.


def _settle(
    number: int, copies: Nodes, worse: Nodes, documents: Stage, kept: Stage, held_out_below: int
) -> str:
    return kept.keep(number, lambda: _partition(documents, number, copies, worse, held_out_below))


def _partition(
    documents: Stage, number: int, copies: Nodes, worse: Nodes, held_out_below: int
) -> Tables:
    tally, counts = Tally(), [Counter[str]() for _ in COUNTED]
    lowest: list[list[Any]] = []
    first = 0
    for about in documents.tables(number, "about"):
        step = np.full(len(about), KEPT)
        step[pc.is_valid(about["evaluation"]).to_numpy()] = STEPS.index("contaminated")
        for index, nodes in enumerate((copies, worse)):
            rows = places(nodes)[1]
            step[rows[(rows >= first) & (rows < first + len(about))] - first] = index
        count_dropped(about, step, tally)
        left = pa.array(step == KEPT)
        lowest += _count_kept(about.filter(left), held_out_below, counts)
        yield "kept", pa.table({"kept": left})
        first += len(about)
    return json.dumps(
        {"tally": tally.encode(), "counts": counts, "lowest": min(lowest, default=[])}
    )


def _count_kept(
    about: pa.Table, held_out_below: int, counts: list[Counter[str]]
) -> list[list[Any]]:
    """Adds to the counts; returns the document with the lowest position, if there is any."""
    if not len(about):
        return []
    positions = positions_of(digests_of(about["hash"]))
    groups = groups_of(about["domain"], positions, held_out_below)
    sums = (
        about.append_column("group", groups)
        .group_by("group", use_threads=False)
        .aggregate([("hash", "count"), ("characters", "sum"), ("bytes", "sum")])
    )
    for group, *figures in zip(*(column.to_pylist() for column in sums.columns), strict=True):
        for counter, figure in zip(counts, figures, strict=True):
            counter[group] += figure
    lowest = int(np.argmin(positions))
    row = about.slice(lowest, 1).to_pylist()[0]
    return [[int(positions[lowest]), row["domain"], 1, row["characters"], row["bytes"]]]


def count_dropped(about: pa.Table, step: NDArray[np.int64], tally: Tally) -> None:
    dropped = pa.array(np.flatnonzero(step != KEPT))
    columns = ["domain", "source", "place", "bytes", "evaluation", "begins"]
    rows = about.select(columns).take(dropped).to_pylist()
    for row, index in zip(rows, step[step != KEPT].tolist(), strict=True):
        example = Example(place=f"{row['source']}/{row['place']}", text=row["begins"])
        rule = row["evaluation"] if STEPS[index] == "contaminated" else ""
        tally.add(STEPS[index], row["domain"], size=row["bytes"], rule=rule, example=example)


def _add_up(notes: Iterable[str], held_out_below: int, tally: Tally) -> Census:
    counts = [Counter[str]() for _ in COUNTED]
    lowest: list[list[Any]] = []
    for note in map(json.loads, notes):
        tally.merge(note["tally"])
        lowest += [note["lowest"]] if note["lowest"] else []
        for counter, found in zip(counts, note["counts"], strict=True):
            counter.update(found)
    census = Census(held_out_below, *counts)
    if lowest and not census.held_out():
        position, domain, *figures = min(lowest)
        for counter, figure in zip(counts, figures, strict=True):
            counter[f"train/{domain}"] -= figure
            counter[f"held_out/{domain}"] += figure
        census = Census(position + 1, *(+counter for counter in counts))
    if not census.documents:
        raise CorpusError(
            "nothing is left of the sources: all documents share passages with corpus.evaluation_files. "
            "Add others to corpus.sources, or correct that key."
        )
    if census.held_out() == census.documents.total():
        raise CorpusError(
            "nothing is left of the sources to train on: all distinct documents that are kept, "
            f"{census.held_out()}, fall to the held-out split. Add documents to corpus.sources."
        )
    return census
