"""Connected components: edges between documents come in, each document's best one goes out.

A node is a document's name, whose bytes sort as the documents do: the best one first; at its end it
has the place of the text. So the least node of a component is the document to keep, and finding the
components finds it. `stars` does that for edges that fit into one task. Edges that do not are
rewritten by `large_star` and `small_star` in turn, each of which needs only the edges of one node at a
time, until every component is a star around its least node; no edge is ever added. Source: Kiveris,
Lattanzi, Mirrokni, Rastogi and Vassilvitskii, Connected components in MapReduce and beyond, 2014.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Nodes = NDArray[np.bytes_]
Edges = tuple[Nodes, Nodes]

DIGEST_BYTES = 32  # SHA-256
LENGTH_BYTES, HASH_BYTES, PLACE_BYTES = 8, 16, 8  # what a node has
NODE_BYTES = LENGTH_BYTES + HASH_BYTES + PLACE_BYTES
TEXT_BYTES = LENGTH_BYTES + HASH_BYTES  # the part that documents of the same text share


def name_nodes(lengths: Any, digests: NDArray[np.uint8], partition: int, first: int) -> Nodes:
    """Nodes that sort by falling length (bytes), then by the SHA-256 of the text [n, DIGEST_BYTES],
    and then by their place: rows `first` and following of a partition.

    16 bytes of the hash: that two of 10^12 documents share them has the probability 10^-15.
    """
    falling = (np.uint64(2**64 - 1) - np.asarray(lengths, dtype=np.uint64)).astype(">u8")
    place = np.empty((len(digests), 2), dtype=">u4")
    place[:, 0], place[:, 1] = partition, np.arange(first, first + len(digests))
    parts = (falling.reshape(-1, 1), np.ascontiguousarray(digests[:, :HASH_BYTES]), place)
    names = np.concatenate([part.view(np.uint8) for part in parts], axis=1)
    return names.reshape(-1).view(f"S{NODE_BYTES}")


def digests_of(hashes: pa.ChunkedArray) -> NDArray[np.uint8]:
    """[n, DIGEST_BYTES] of a column of hashes."""
    return np.frombuffer(b"".join(hashes.to_pylist()), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def positions_of(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[n] the position of each document: the first 8 bytes of its hash, as a fraction of 2**64."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def positions(nodes: Nodes) -> NDArray[np.uint64]:
    """[n] the position of each node's document."""
    return _words(nodes)[:, 1].astype(np.uint64)


def places(nodes: Nodes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The partition and the row of each node's document."""
    last = _words(nodes)[:, -1].astype(np.uint64)
    return (last >> np.uint64(32)).astype(np.int64), (last & np.uint64(2**32 - 1)).astype(np.int64)


def _words(nodes: Nodes) -> NDArray[np.uint64]:
    table = np.frombuffer(np.ascontiguousarray(nodes).tobytes(), dtype=">u8")
    return table.reshape(-1, NODE_BYTES // 8)


def same_text(nodes: Nodes) -> NDArray[np.bool_]:
    """Of nodes that ascend: whether a document has the text of the one before it."""
    texts = np.frombuffer(nodes.tobytes(), np.uint8).reshape(-1, NODE_BYTES)[:, :TEXT_BYTES]
    again = np.zeros(len(nodes), dtype=bool)
    again[1:] = (texts[1:] == texts[:-1]).all(axis=1)
    return again


def stars(edges: Edges) -> Edges:
    """Every node but the least of its component, and that one."""
    nodes, codes = np.unique(np.concatenate(edges), return_inverse=True)
    u, v = np.split(codes, 2)
    graph = coo_array((np.ones(len(u), dtype=bool), (u, v)), shape=(len(nodes), len(nodes)))
    count, labels = connected_components(graph, directed=False)
    least = np.full(count, len(nodes))
    np.minimum.at(least, labels, np.arange(len(nodes)))
    roots = least[labels]
    rest = np.flatnonzero(roots != np.arange(len(nodes)))
    return nodes[rest], nodes[roots[rest]]


def both_ways(edges: Edges) -> Edges:
    return np.concatenate(edges), np.concatenate(edges[::-1])


def large_star(edges: Edges) -> tuple[Edges, NDArray[np.bool_]]:
    """Tie the greater neighbours of each node to the least of it and all its neighbours.

    `edges` holds all edges of the nodes in its first column, both ways. Given are edges from the
    greater to the lesser node, and which of them are new. When neither this nor `small_star` makes
    a new one anywhere, all components are stars.
    """
    nodes, u, v = _distinct(edges)
    least = np.arange(len(nodes))
    np.minimum.at(least, u, v)
    greater = v > u
    u, v = u[greater], v[greater]
    return (nodes[v], nodes[least[u]]), least[u] != u


def small_star(edges: Edges) -> tuple[Edges, NDArray[np.bool_]]:
    """Tie each node and its lesser neighbours to the least of these.

    `edges` holds all edges of the nodes in its first column to lesser ones. Gives what `large_star`
    gives.
    """
    nodes, u, v = _distinct(edges)
    least = np.arange(len(nodes))
    np.minimum.at(least, u, v)
    others = v != least[u]
    tied = np.where(others, v, u)
    return (nodes[tied], nodes[least[u]]), others


def _distinct(edges: Edges) -> tuple[Nodes, NDArray[np.int64], NDArray[np.int64]]:
    """The nodes, ascending, and each edge once, as indices of them."""
    nodes, codes = np.unique(np.concatenate(edges), return_inverse=True)
    u, v = np.split(codes.astype(np.int64), 2)
    pairs = np.unique(u * len(nodes) + v)
    return nodes, pairs // max(len(nodes), 1), pairs % max(len(nodes), 1)
