"""Near-duplicates: distinct documents come in, and all but the best of each group of similar ones are
marked.

The one idea: texts stay where they are. Band keys of 8 bytes are shuffled and give candidates; only
the sketches of candidates are shuffled to be compared; edges between similar ones are joined to
components; and the names of what is dropped go back to the blocks that hold it. What has to meet
goes by `bucket`, a number that follows from its content, so that neither the order of tasks nor
their number decides anything. The driver holds counts and references to blocks, never their rows.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray

from panthalassa.corpus.components import (
    NODE_BYTES,
    Edges,
    Nodes,
    both_ways,
    large_star,
    name_nodes,
    positions,
    small_star,
    stars,
)
from panthalassa.corpus.minhash import (
    SKETCH,
    Indices,
    Ragged,
    candidates,
    choose_bands,
    jaccard,
    sketches,
    text_keys,
)
from panthalassa.corpus.reading import TASK, TASK_BYTES

EDGES_AT_ONCE = 1 << 20  # that one task joins to components: 48 MiB of names
PAIRS_AT_ONCE = 1 << 12  # that are compared at once: at most 32 MiB of sketches

Blocks = dict[int, list[Any]]  # references to Arrow tables, which Ray resolves


def mark_near_duplicates(
    documents: ray.data.Dataset, threshold: float, buckets: int
) -> ray.data.Dataset:
    """The documents with a column `near_duplicate`: whether a better one is like it; kept by Ray.

    Near-duplicates are those whose shingles have a Jaccard similarity of at least `threshold`, and
    whatever a chain of such pairs connects. The longest of them is the best, and of equally long
    ones that with the least hash. Takes the columns of `distinct_documents`, in the same number of
    buckets: with one, one task does it all.
    """
    if buckets == 1:
        whole = documents.repartition(1) if documents.num_blocks() > 1 else documents
        return _mapped(whole, partial(mark, threshold=threshold))
    blocks: Blocks = {}
    wanted = _find_candidates(documents, threshold, buckets)
    if count := wanted.count():
        edges = _compare(documents, wanted, threshold, buckets, parts=_tasks(count))
        if edges.count():
            dropped = _connect(edges, buckets).map_batches(
                partial(_address, buckets=buckets), **TASK
            )
            blocks = _blocks(_shuffled(dropped, buckets, _once))
    return _mapped(documents, partial(_mark_from, blocks=blocks, buckets=buckets))


def mark(documents: pa.Table, threshold: float) -> pa.Table:
    """`mark_near_duplicates` of documents that fit into memory."""
    nodes = _nodes(documents)
    first, second = similar_pairs(documents["text"], nodes, threshold)
    dropped, _ = stars((nodes[first], nodes[second]))
    return documents.append_column("near_duplicate", pa.array(np.isin(nodes, dropped)))


def similar_pairs(
    texts: pa.ChunkedArray, nodes: Nodes, threshold: float
) -> tuple[Indices, Indices]:
    """The pairs of texts that are found and as similar as the threshold, each once."""
    bands, rows = choose_bands(threshold)
    which, keys = text_keys(texts, bands, rows)
    owners = np.repeat(which, bands)
    rank = np.argsort(np.argsort(nodes))
    pairs = owners[np.stack(candidates(keys.ravel(), rank[owners]))]
    pairs = np.unique(pairs, axis=1)
    compared, codes = np.unique(pairs, return_inverse=True)
    first, second = codes.reshape(pairs.shape)
    similar = _similar(sketches(texts.take(compared)), first, second, threshold)
    return pairs[0][similar], pairs[1][similar]


def _similar(
    sketch: Ragged, first: Indices, second: Indices, threshold: float
) -> NDArray[np.bool_]:
    """Which pairs of sketches are as similar as the threshold."""
    found = [np.zeros(0, dtype=bool)]
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        found.append(jaccard(sketch.take(first[part]), sketch.take(second[part])) >= threshold)
    return np.concatenate(found)


# Candidates: each is asked for a sketch by every pair that it is in.


def _find_candidates(
    documents: ray.data.Dataset, threshold: float, buckets: int
) -> ray.data.Dataset:
    """Rows of a document and a pair that it is in, each once, in the bucket of the document."""
    bands, rows = choose_bands(threshold)
    key = partial(_key, bands=bands, rows=rows, buckets=buckets)
    keys = documents.map_batches(key, batch_size=None, **TASK)
    pairs = _shuffled(keys, buckets, partial(_pair, buckets=buckets))
    return _shuffled(pairs, buckets, _once)


def _key(batch: pa.Table, bands: int, rows: int, buckets: int) -> pa.Table:
    which, keys = text_keys(batch["text"], bands, rows)
    nodes = _nodes(batch)[np.repeat(which, bands)]
    keys = keys.ravel()
    return pa.table({"bucket": keys % np.uint64(buckets), "key": keys, "node": _column(nodes)})


def _pair(group: pa.Table, buckets: int) -> pa.Table:
    nodes = _names(group["node"])
    _, rank = np.unique(nodes, return_inverse=True)
    first, second = candidates(group["key"].to_numpy(), rank)
    a, b = nodes[first], nodes[second]
    document = np.concatenate((a, b))
    return pa.table(
        {
            "bucket": positions(document) % np.uint64(buckets),
            "document": _column(document),
            "a": _column(np.concatenate((a, a))),
            "b": _column(np.concatenate((b, b))),
        }
    )


def _once(group: pa.Table) -> pa.Table:
    return group.group_by(group.column_names, use_threads=False).aggregate([])


# Comparison: the sketches of a pair meet in one task.


def _compare(
    documents: ray.data.Dataset,
    wanted: ray.data.Dataset,
    threshold: float,
    buckets: int,
    parts: int,
) -> ray.data.Dataset:
    """The pairs that are as similar as the threshold, as edges from the lesser to the better."""
    answer = partial(_answer, blocks=_blocks(wanted), buckets=buckets, parts=parts)
    answers = documents.map_batches(answer, batch_size=None, **TASK)
    return _shuffled(answers, parts, partial(_verify, threshold=threshold))


def _answer(batch: pa.Table, blocks: Blocks, buckets: int, parts: int) -> Iterator[pa.Table]:
    nodes = _nodes(batch)
    order = np.argsort(nodes)
    yield _answers(nodes[:0], nodes[:0], Ragged(np.zeros(0, np.uint32), np.zeros(1, np.int64)), 1)
    for table in _tables(blocks, nodes, buckets):
        names = _names(table["document"])
        place = np.searchsorted(nodes, names, sorter=order)
        here = order[np.minimum(place, len(order) - 1)]
        held = np.flatnonzero(nodes[here] == names)
        for start in range(0, len(held), PAIRS_AT_ONCE):
            rows = held[start : start + PAIRS_AT_ONCE]
            texts, codes = np.unique(here[rows], return_inverse=True)
            sketch = sketches(batch["text"].take(texts)).take(codes)
            a, b = _names(table["a"].take(rows)), _names(table["b"].take(rows))
            yield _answers(a, b, sketch, parts)


def _answers(a: Nodes, b: Nodes, sketch: Ragged, parts: int) -> pa.Table:
    return pa.table(
        {
            "bucket": (positions(a) + positions(b)) % np.uint64(parts),
            "a": _column(a),
            "b": _column(b),
            "sketch": pa.LargeListArray.from_arrays(sketch.offsets, sketch.values),
        }
    )


def _verify(group: pa.Table, threshold: float) -> pa.Table:
    a, b = _names(group["a"]), _names(group["b"])
    lists = group["sketch"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy()
    sketch = Ragged(lists.flatten().to_numpy(), np.concatenate(([0], np.cumsum(lengths))))
    both = np.lexsort((b, a))  # the two sketches of a pair become neighbours
    first, second = both[::2], both[1::2]
    similar = first[_similar(sketch, first, second, threshold)]
    return _edges((b[similar], a[similar]))


# Components.


def _connect(edges: ray.data.Dataset, buckets: int) -> ray.data.Dataset:
    """An edge from every document that is not the best of its component to the one that is."""
    if edges.count() <= EDGES_AT_ONCE:
        return _mapped(edges.repartition(1), _stars)
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
    edges = _names(table["u"]), _names(table["v"])
    u, v = both_ways(edges) if both else edges
    bucket = positions(u) % np.uint64(buckets)
    return pa.table({"bucket": bucket, "u": _column(u), "v": _column(v)})


def _stars(table: pa.Table) -> pa.Table:
    return _edges(stars((_names(table["u"]), _names(table["v"]))))


def _large(group: pa.Table) -> pa.Table:
    return _edges(*large_star((_names(group["u"]), _names(group["v"]))))


def _small(group: pa.Table) -> pa.Table:
    return _edges(*small_star((_names(group["u"]), _names(group["v"]))))


def _edges(edges: Edges, moved: NDArray[np.bool_] | None = None) -> pa.Table:
    columns: dict[str, Any] = {"u": _column(edges[0]), "v": _column(edges[1])}
    if moved is not None:
        columns["moved"] = moved
    return pa.table(columns)


def _moved(edges: ray.data.Dataset) -> int:
    counts = edges.map_batches(_count_moved, batch_size=None, **TASK)
    return sum(row["moved"] for row in counts.iter_rows())


def _count_moved(table: pa.Table) -> pa.Table:
    return pa.table({"moved": [pc.sum(table["moved"]).as_py() or 0]})


# What is dropped, and how rows get to the documents of their bucket.


def _mark_from(batch: pa.Table, blocks: Blocks, buckets: int) -> pa.Table:
    nodes = _nodes(batch)
    dropped = np.zeros(len(nodes), dtype=bool)
    for table in _tables(blocks, nodes, buckets):
        dropped |= np.isin(nodes, _names(table["u"]))
    return batch.append_column("near_duplicate", pa.array(dropped))


def _mapped(rows: ray.data.Dataset, function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    done: ray.data.Dataset = rows.map_batches(function, batch_size=None, **TASK).materialize()
    return done


def _shuffled(
    rows: ray.data.Dataset, buckets: int, function: Callable[[pa.Table], pa.Table]
) -> ray.data.Dataset:
    groups = rows.groupby("bucket", num_partitions=buckets)
    done: ray.data.Dataset = groups.map_groups(function, **TASK).materialize()
    return done


def _blocks(rows: ray.data.Dataset) -> Blocks:
    """For each bucket the blocks with rows of it."""
    blocks: Blocks = defaultdict(list)
    references = rows.to_arrow_refs()
    for reference, present in zip(
        references, ray.get([_present.remote(r) for r in references]), strict=True
    ):
        for bucket in present:
            blocks[bucket].append(reference)
    return dict(blocks)


@ray.remote(num_cpus=TASK["num_cpus"])
def _present(block: pa.Table) -> list[int]:
    return pc.unique(block["bucket"]).to_pylist() if block.num_rows else []


def _tables(blocks: Blocks, nodes: Nodes, buckets: int) -> Iterator[pa.Table]:
    """The blocks with rows of the buckets of these documents, one at a time."""
    own = np.unique(positions(nodes) % np.uint64(buckets)).tolist()
    for reference in dict.fromkeys(ref for bucket in own for ref in blocks.get(bucket, [])):
        yield ray.get(reference)


def _tasks(wanted: int) -> int:
    """Tasks for the sketches of so many rows."""
    return max(1, math.ceil(wanted * SKETCH * 4 / TASK_BYTES))


def _nodes(documents: pa.Table) -> Nodes:
    lengths = pc.binary_length(documents["text"]).to_numpy()
    return name_nodes(lengths, documents["hash"].to_pylist())


def _column(nodes: Nodes) -> pa.Array:
    data = np.ascontiguousarray(nodes).tobytes()
    buffers = [None, pa.py_buffer(data)]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(NODE_BYTES), len(nodes), buffers)


def _names(column: pa.ChunkedArray) -> Nodes:
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype=f"S{NODE_BYTES}")[chunk.offset :][: len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, dtype=f"S{NODE_BYTES}"), *chunks])
