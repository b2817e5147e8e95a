"""Duplicates: the names and band keys of documents come in, the names of those to drop go out.

The one idea: texts stay where they are. A document's name says how good it is and where its text lies
(`components`). Names meet by their hash, which shows the copies; the keys of bands of 8 bytes are
shuffled and give candidates of near-duplicates; only the sketches of candidates are read from their
texts and shuffled to be compared; and edges between similar ones are joined to components. What has to
meet goes by a number that follows from its content, so that neither the order of tasks nor their
number decides anything. The driver holds counts, never rows. Where all names and keys fit into one task
(`fit_one_task`), `find_duplicates` does the same there, without a shuffle.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray

from panthalassa.corpus.components import (
    NODE_BYTES,
    Edges,
    Nodes,
    both_ways,
    large_star,
    places,
    positions,
    same_text,
    small_star,
    stars,
)
from panthalassa.corpus.minhash import (
    SKETCH,
    Hashes,
    Indices,
    Ragged,
    candidates,
    jaccard,
    sketches,
)
from panthalassa.corpus.staging import TASK, filled

KEY_BYTES = 8
TASK_BYTES = 64 << 20  # names and keys that meet in one task
EDGES_AT_ONCE = 1 << 20  # that one task joins to components: 64 MiB of names
PAIRS_AT_ONCE = 1 << 12  # that are compared at once: at most 32 MiB of sketches

Texts = Callable[[int, Indices], pa.ChunkedArray]
"""The texts [n] of rows [n], ascending, of a partition."""


def find_duplicates(names: pa.Table, threshold: float | None, texts: Texts) -> tuple[Nodes, Nodes]:
    """`find_duplicates_apart` of documents whose keys fit into one task: copies, and worse."""
    marked = _mark_copies(names)
    copies = names_of(marked["name"].filter(marked["copy"]))
    if threshold is None:
        return copies, copies[:0]
    worse, _ = stars(similar_pairs(_distinct(marked), threshold, texts))
    return copies, worse


def similar_pairs(names: pa.Table, threshold: float, texts: Texts) -> Edges:
    """The pairs of documents that are found and as similar as the threshold, each once, the better one
    last. `names` has to be in the order of the names."""
    nodes, (keys, owners) = names_of(names["name"]), _keys_of(names)
    first, second = candidates(keys, owners)
    pairs = np.unique(owners[first] * len(nodes) + owners[second])
    better, worse = np.divmod(pairs, max(1, len(nodes)))
    asked, codes = np.unique(np.concatenate((better, worse)), return_inverse=True)
    read = list(_read_sketches(nodes[asked], texts))  # in another order, that of their places
    place = np.argsort(np.concatenate([codes[:0], *(some for some, _ in read)]))
    sketch = Ragged.join([part for _, part in read])
    better_place, worse_place = np.split(place[codes], 2)
    similar = _similar(sketch, better_place, worse_place, threshold)
    return nodes[worse[similar]], nodes[better[similar]]


def find_duplicates_apart(
    names: ray.data.Dataset, threshold: float | None, texts: Texts, buckets: int
) -> ray.data.Dataset:
    """Rows with a `name` to drop, whether it is a `copy`, and the `number` of its partition; among them
    some of nulls.

    names: rows of a `name` and its `keys`, of which there are none where no near-duplicates are looked
    for. Of documents with the same text the one whose place comes first stays. Near-duplicates are
    those whose shingles have a Jaccard similarity of at least `threshold`, and whatever a chain of
    such pairs connects; the longest of them is the best and stays, and of equally long ones that with
    the least hash.
    """
    bucketed = names.map_batches(partial(_by_position, buckets=buckets), batch_size=None, **TASK)
    marked = _shuffled(bucketed, buckets, _mark_copies)
    copies = marked.map_batches(_copies, batch_size=None, **TASK)
    if threshold is None:
        return copies
    distinct = marked.map_batches(_distinct, batch_size=None, **TASK)
    keyed = distinct.map_batches(partial(_keyed, buckets=buckets), batch_size=None, **TASK)
    pairs = _shuffled(keyed, buckets, partial(_pair, buckets=buckets))
    wanted = _shuffled(pairs, buckets, _once)
    if not (count := wanted.count()):
        return copies
    parts = math.ceil(count * SKETCH * 4 / TASK_BYTES)
    answer = partial(_answer, texts=texts, parts=parts)
    answers = wanted.map_batches(answer, batch_size=None, **TASK)
    edges = _shuffled(answers, parts, partial(_verify, threshold=threshold))
    if not edges.count():
        return copies
    worse = _connect(edges, buckets).map_batches(_worse, batch_size=None, **TASK)
    return copies.union(worse)


def fit_one_task(documents: int, bands: int) -> bool:
    """Whether `find_duplicates` has the memory for so many documents."""
    return documents * max(1, bands) * KEY_BYTES <= TASK_BYTES


def buckets_of(documents: int, bands: int) -> int:
    """Tasks among which so many documents are divided with their keys, each of which takes its name
    along."""
    return max(1, math.ceil(documents * max(1, bands) * (KEY_BYTES + NODE_BYTES) / TASK_BYTES))


# Copies.


def _by_position(batch: pa.Table, buckets: int) -> pa.Table:
    bucket = positions(names_of(batch["name"])) % np.uint64(buckets)
    return filled(batch.append_column("bucket", pa.array(bucket)))


def _mark_copies(group: pa.Table) -> pa.Table:
    names = names_of(group["name"])
    order = np.argsort(names)
    table = group.select(["name", "keys"]).take(order)
    return table.append_column("copy", pa.array(same_text(names[order])))


def _copies(batch: pa.Table) -> pa.Table:
    return _dropped(batch["name"].filter(batch["copy"]), copy=True)


def _worse(edges: pa.Table) -> pa.Table:
    return _dropped(edges["u"], copy=False)


def _dropped(column: pa.ChunkedArray, copy: bool) -> pa.Table:
    numbers, _ = places(names_of(column))
    return filled(pa.table({"number": numbers, "name": column, "copy": np.full(len(column), copy)}))


def _distinct(batch: pa.Table) -> pa.Table:
    return batch.select(["name", "keys"]).filter(pc.invert(batch["copy"]))


# Candidates: each is asked for a sketch by every pair that it is in.


def _keyed(batch: pa.Table, buckets: int) -> pa.Table:
    keys, owners = _keys_of(batch)
    nodes = name_column(names_of(batch["name"])[owners])
    return filled(pa.table({"bucket": keys % np.uint64(buckets), "key": keys, "node": nodes}))


def _keys_of(names: pa.Table) -> tuple[Hashes, Indices]:
    """All keys [n], and the rows [n] that have them."""
    lengths = pc.fill_null(pc.list_value_length(names["keys"]), 0).to_numpy()
    keys = pc.list_flatten(names["keys"]).to_numpy()
    return keys, np.repeat(np.arange(len(names)), lengths)


def _pair(group: pa.Table, buckets: int) -> pa.Table:
    nodes = names_of(group["node"])
    _, rank = np.unique(nodes, return_inverse=True)
    first, second = candidates(group["key"].to_numpy(), rank)
    a, b = nodes[first], nodes[second]
    document = np.concatenate((a, b))
    return pa.table(
        {
            "bucket": places(document)[0] % buckets,
            "document": name_column(document),
            "a": name_column(np.concatenate((a, a))),
            "b": name_column(np.concatenate((b, b))),
        }
    )


def _once(group: pa.Table) -> pa.Table:
    return group.group_by(group.column_names, use_threads=False).aggregate([])


# Comparison: the sketches of a pair meet in one task.


def _answer(wanted: pa.Table, texts: Texts, parts: int) -> Iterator[pa.Table]:
    """The sketches of the documents that are wanted, each with its pair, in the bucket of that."""
    a, b = names_of(wanted["a"]), names_of(wanted["b"])
    for rows, sketch in _read_sketches(names_of(wanted["document"]), texts):
        yield _answers(a[rows], b[rows], sketch, parts)


def _read_sketches(nodes: Nodes, texts: Texts) -> Iterator[tuple[Indices, Ragged]]:
    """The sketches of documents, some at a time, partition by partition, and which of them."""
    partitions, rows = places(nodes)
    order = np.lexsort((rows, partitions))
    for held in np.split(order, np.flatnonzero(np.diff(partitions[order])) + 1):
        for start in range(0, len(held), PAIRS_AT_ONCE):
            some = held[start : start + PAIRS_AT_ONCE]
            distinct, codes = np.unique(rows[some], return_inverse=True)
            yield some, sketches(texts(int(partitions[some[0]]), distinct)).take(codes)


def _answers(a: Nodes, b: Nodes, sketch: Ragged, parts: int) -> pa.Table:
    return pa.table(
        {
            "bucket": (positions(a) + positions(b)) % np.uint64(parts),
            "a": name_column(a),
            "b": name_column(b),
            "sketch": pa.LargeListArray.from_arrays(sketch.offsets, sketch.values),
        }
    )


def _verify(group: pa.Table, threshold: float) -> pa.Table:
    """The pairs that are as similar as the threshold, as edges from the lesser to the better."""
    a, b = names_of(group["a"]), names_of(group["b"])
    lists = group["sketch"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy()
    sketch = Ragged(lists.flatten().to_numpy(), np.concatenate(([0], np.cumsum(lengths))))
    both = np.lexsort((b, a))  # the two sketches of a pair become neighbours
    first, second = both[::2], both[1::2]
    similar = first[_similar(sketch, first, second, threshold)]
    return _edges((b[similar], a[similar]))


def _similar(
    sketch: Ragged, first: Indices, second: Indices, threshold: float
) -> NDArray[np.bool_]:
    """Which pairs of sketches are as similar as the threshold."""
    found = [np.zeros(0, dtype=bool)]
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        found.append(jaccard(sketch.take(first[part]), sketch.take(second[part])) >= threshold)
    return np.concatenate(found)


# Components.


def _connect(edges: ray.data.Dataset, buckets: int) -> ray.data.Dataset:
    """An edge from every document that is not the best of its component to the one that is."""
    if edges.count() <= EDGES_AT_ONCE:
        one: ray.data.Dataset = edges.repartition(1).map_batches(_stars, batch_size=None, **TASK)
        return one
    double = partial(_address, buckets=buckets, both=True)
    single = partial(_address, buckets=buckets)
    moved = 1
    while moved:
        large = _shuffled(edges.map_batches(double, **TASK), buckets, _large)
        edges = _shuffled(large.map_batches(single, **TASK), buckets, _small)
        moved = _moved(large) + _moved(edges)
    return edges


def _address(table: pa.Table, buckets: int, both: bool = False) -> pa.Table:
    """The edges in the buckets of their first nodes, or of both."""
    edges = names_of(table["u"]), names_of(table["v"])
    u, v = both_ways(edges) if both else edges
    bucket = positions(u) % np.uint64(buckets)
    return pa.table({"bucket": bucket, "u": name_column(u), "v": name_column(v)})


def _stars(table: pa.Table) -> pa.Table:
    return _edges(stars((names_of(table["u"]), names_of(table["v"]))))


def _large(group: pa.Table) -> pa.Table:
    return _edges(*large_star((names_of(group["u"]), names_of(group["v"]))))


def _small(group: pa.Table) -> pa.Table:
    return _edges(*small_star((names_of(group["u"]), names_of(group["v"]))))


def _edges(edges: Edges, moved: NDArray[np.bool_] | None = None) -> pa.Table:
    columns: dict[str, Any] = {"u": name_column(edges[0]), "v": name_column(edges[1])}
    if moved is not None:
        columns["moved"] = moved
    return pa.table(columns)


def _moved(edges: ray.data.Dataset) -> int:
    counts = edges.map_batches(_count_moved, batch_size=None, **TASK)
    return sum(row["moved"] for row in counts.iter_rows())


def _count_moved(table: pa.Table) -> pa.Table:
    return pa.table({"moved": [pc.sum(table["moved"]).as_py() or 0]})


def _shuffled(
    rows: ray.data.Dataset, buckets: int, function: Callable[[pa.Table], pa.Table]
) -> ray.data.Dataset:
    groups = rows.groupby("bucket", num_partitions=buckets)
    done: ray.data.Dataset = groups.map_groups(
        partial(_without_fillers, function=function), **TASK
    ).materialize()
    return done


def _without_fillers(group: pa.Table, function: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return function(group.filter(pc.is_valid(group["bucket"])))


def name_column(nodes: Nodes) -> pa.Array:
    """Nodes as a column of a table, whose inverse is `names_of`."""
    data = np.ascontiguousarray(nodes).tobytes()
    buffers = [None, pa.py_buffer(data)]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(NODE_BYTES), len(nodes), buffers)


def names_of(column: pa.ChunkedArray) -> Nodes:
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype=f"S{NODE_BYTES}")[chunk.offset :][: len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, dtype=f"S{NODE_BYTES}"), *chunks])
