"""Selection of pairs: those that were read come in, which are kept and in which split goes out.

Images are the same when their pixels are, or when they are near (`image_hash`), and whatever a chain of
near ones connects; the least hash among them decides the split, in whatever language they are told
about. A language has an image once, with the longest of its captions; the same image in several
languages stays. All of it happens in one task, which holds some 400 bytes a pair: no images, no texts.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from panthalassa import config
from panthalassa.corpus.components import digests_of, positions_of
from panthalassa.corpus.funnel import Tally
from panthalassa.corpus.image_hash import Signatures, near
from panthalassa.corpus.selection import KEPT, STEPS, Census, count_dropped, position_of
from panthalassa.corpus.staging import COMPUTING, Stage, Tables, numbered
from panthalassa.errors import CorpusError

COLUMNS: Final = ["hash", "domain", "bytes", "pixels", "bits", "colours", "evaluation"]
COUNTED: Final = ("characters", "bytes", "image_bytes")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PairCensus:
    """The pairs that are kept, by `{split}/{domain}`, and the bytes of their captions and images."""

    census: Census
    sizes: Counter[str]

    @classmethod
    def empty(cls, corpus: config.Corpus) -> "PairCensus":
        return cls(Census.empty(corpus), Counter())

    def encode(self) -> str:
        return json.dumps([self.census.encode(), self.sizes])

    @classmethod
    def decode(cls, encoded: str) -> "PairCensus":
        census, sizes = json.loads(encoded)
        return cls(Census.decode(census), Counter(sizes))


def select_pairs(
    documents: Stage, kept: Stage, partitions: int, corpus: config.Corpus, tally: Tally
) -> PairCensus:
    """Decide about all pairs of the partitions.

    `kept` gets for each table `pairs` of `documents` one with the columns `kept` and `held_out`; what is
    dropped is added to the tally. Held out are the images that lie below `corpus.held_out_share`, or the
    one lowest when none does.
    """
    below = position_of(corpus.held_out_share)
    work = partial(
        _all_of_them,
        documents=documents,
        kept=kept,
        partitions=partitions,
        distance=corpus.images.near_duplicates,
        held_out_below=below,
    )
    notes = numbered(1).map_batches(work, batch_size=1, **COMPUTING)
    return _add_up((row["note"] for row in notes.iter_rows()), below, tally)


def refuse_one_split(census: Census, tally: Tally, near_duplicates: int | None) -> None:
    """Raises CorpusError when there is nothing to train on, or nothing to evaluate."""
    held_out, left = census.held_out(), census.documents.total()
    if 0 < held_out < left:
        return
    dropped = ", ".join(f"{count} by {rule}" for rule, count in sorted(tally.drops().items()))
    or_else = "" if near_duplicates is None else ", or set corpus.images.near_duplicates to null"
    raise CorpusError(
        f"{left - held_out} documents are left to train on and {held_out} to evaluate, where an image "
        f"and what looks like it are on one side; dropped are {dropped or 'none'}. Add pairs to "
        f"corpus.sources{or_else}."
    )


def _all_of_them(
    batch: pa.Table,
    documents: Stage,
    kept: Stage,
    partitions: int,
    distance: int | None,
    held_out_below: int,
) -> Iterator[pa.Table]:
    tables, starts = [], [0]
    for number in range(partitions):
        tables += [table.select(COLUMNS) for table in documents.tables(number, "pairs")]
        starts.append(sum(map(len, tables)))
    if not starts[-1]:
        return
    step, held_out = decide(pa.concat_tables(tables), distance, held_out_below)
    for number in range(partitions):
        part = slice(starts[number], starts[number + 1])
        settle = partial(_partition, documents, number, step[part], held_out[part])
        yield pa.table({"note": [kept.keep(number, settle)]})


def decide(
    pairs: pa.Table, distance: int | None, held_out_below: int
) -> tuple[Ints, NDArray[np.bool_]]:
    """For each pair [n] the index in STEPS by which it is dropped, or KEPT, and if it is held out."""
    digests = digests_of(pairs["pixels"])
    images, first, of_pair = np.unique(
        digests.view("V32").reshape(-1), return_index=True, return_inverse=True
    )
    position, component = positions_of(digests[first]), np.arange(len(images))
    if distance is not None:
        signatures = Signatures(*(_rows(pairs[name], first) for name in ("bits", "colours")))
        component = _components(len(images), *near(signatures, distance))

    _, domains = np.unique(pairs["domain"].to_numpy(zero_copy_only=False), return_inverse=True)
    _, hashes = np.unique(digests_of(pairs["hash"]).view("V32").reshape(-1), return_inverse=True)
    longest = -pairs["bytes"].to_numpy()
    place = np.arange(len(pairs))
    copies = _repeated(domains, hashes, place)
    again = _repeated(domains, component[of_pair], longest, hashes, place)
    step = np.full(len(pairs), KEPT)
    step[pc.is_valid(pairs["evaluation"]).to_numpy()] = STEPS.index("contaminated")
    step[again] = STEPS.index("near_duplicate")
    step[copies] = STEPS.index("duplicate")

    least = np.full(len(images), np.iinfo(np.uint64).max)
    np.minimum.at(least, component, position)
    root = least[component][of_pair]
    lowest = root[step == KEPT].min(initial=np.iinfo(np.uint64).max)
    return step, root < max(np.uint64(held_out_below), lowest + np.uint64(1))


def _rows(column: pa.ChunkedArray, rows: Ints) -> NDArray[np.uint8]:
    data = column.take(pa.array(rows)).to_pylist()
    return np.frombuffer(b"".join(data), dtype=np.uint8).reshape(len(rows), -1)


def _components(count: int, first: Ints, second: Ints) -> Ints:
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    labels: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _repeated(domain: Ints, same: Ints, *order: Ints) -> NDArray[np.bool_]:
    """Which rows have a domain and another number in common with one that comes before by the order."""
    by = np.lexsort((*reversed(order), same, domain))
    again = np.zeros(len(by), dtype=bool)
    ahead, behind = by[1:], by[:-1]
    again[ahead] = (domain[ahead] == domain[behind]) & (same[ahead] == same[behind])
    return again


def _partition(documents: Stage, number: int, step: Ints, held_out: NDArray[np.bool_]) -> Tables:
    tally, counts = Tally(), [Counter[str]() for _ in ("documents", *COUNTED)]
    first = 0
    for pairs in documents.tables(number, "pairs"):
        part = slice(first, first + len(pairs))
        count_dropped(pairs, step[part], tally)
        left, apart = pa.array(step[part] == KEPT), pa.array(held_out[part])
        table = pa.table({"kept": left, "held_out": apart})
        _count(with_group(pairs, table).filter(left), counts)
        yield "kept", table
        first += len(pairs)
    return json.dumps({"tally": tally.encode(), "counts": counts})


def with_group(pairs: pa.Table, kept: pa.Table) -> pa.Table:
    """The pairs with their `group`, `{split}/{domain}`."""
    split = pc.if_else(kept["held_out"], "held_out", "train")
    group = pc.binary_join_element_wise(split, pairs["domain"], "/")
    return pairs.append_column("group", group)


def _count(pairs: pa.Table, counts: list[Counter[str]]) -> None:
    sums: list[tuple[Any, str]] = [("hash", "count"), *((name, "sum") for name in COUNTED)]
    found = pairs.group_by("group", use_threads=False).aggregate(sums)
    for group, *figures in zip(*(column.to_pylist() for column in found.columns), strict=True):
        for counter, figure in zip(counts, figures, strict=True):
            counter[group] += figure


def _add_up(notes: Iterable[str], held_out_below: int, tally: Tally) -> PairCensus:
    counts = [Counter[str]() for _ in ("documents", *COUNTED)]
    for note in map(json.loads, notes):
        tally.merge(note["tally"])
        for counter, found in zip(counts, note["counts"], strict=True):
            counter.update(found)
    documents, characters, text_bytes, image_bytes = counts
    return PairCensus(
        Census(held_out_below, documents, characters, text_bytes), text_bytes + image_bytes
    )
