"""Where ranks can run: the free places on a Ray cluster's nodes, and which of them a run takes.

`survey` asks Ray, and knocks at the nodes themselves, because Ray believes for seconds that a dead one
lives. What follows from the answers is pure. A run says for each rank on which node it goes, so that
tensor-parallel groups stay inside nodes and nothing waits for a node that is dead or about to leave.
"""

import socket
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from panthalassa.config import Cluster
from panthalassa.stream.reader import READ_CPUS

KNOCK_SECONDS = 1.0
DRAINING = "DRAINING"


@dataclass(frozen=True)
class Node:
    """A node as Ray knows it."""

    id: str
    total: Mapping[str, float]
    """All of its resources, by Ray's names."""
    free: Mapping[str, float]
    leaving: bool = False
    """It is being drained: what runs there ends soon, and nothing new starts."""
    silent: bool = False
    """It did not answer when it was asked: it is dead, and Ray does not know yet."""
    refuses: bool = False
    """Its machine did, and says that Ray's process is not there."""
    scaled: bool = False
    """It bears the name that an autoscaler knows it by."""


def survey(asked: Container[str] | None = None) -> list[Node]:
    """The nodes that Ray believes alive, of which those in `asked`, or all, are asked themselves."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [
        Node(
            str(found.node_id),
            found.total_resources(),
            found.available_resources(),
            found.node_status == DRAINING,
            scaled=bool(found.instance_id),
        )
        for found in (*status.active_nodes, *status.idle_nodes)
    ]
    ports = {
        node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
    }

    def knock(node: Node) -> Node:
        if asked is not None and node.id not in asked:
            return node
        if node.id not in ports:
            return replace(node, silent=True)
        try:
            with socket.create_connection(ports[node.id], timeout=KNOCK_SECONDS):
                return node
        except ConnectionRefusedError:
            return replace(node, silent=True, refuses=True)
        except OSError:
            return replace(node, silent=True)

    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(knock, nodes))


def per_rank(cluster: Cluster) -> dict[str, float]:
    """What Ray reserves for a rank."""
    gpus = {"GPU": float(cluster.gpus_per_worker)} if cluster.gpus_per_worker else {}
    return {"CPU": cluster.cpus_per_worker, **gpus}


def need(cluster: Cluster) -> str:
    """The same, for people."""
    return ", ".join(f"{amount:g} {name}" for name, amount in per_rank(cluster).items())


def places(
    resources: Mapping[str, Mapping[str, float]],
    rank: Mapping[str, float],
    reading: float = READ_CPUS,
) -> dict[str, int]:
    """How many ranks each node takes when all that is in `resources` is theirs.

    Somewhere room for one reading task is left: without it, ranks that fill every CPU wait for ever.
    """
    found = {
        node: int(min(have.get(name, 0.0) // amount for name, amount in rank.items()))
        for node, have in resources.items()
    }
    left = (have.get("CPU", 0.0) - found[node] * rank["CPU"] for node, have in resources.items())
    if any(found.values()) and max(left) < reading:
        found[max(found, key=lambda node: found[node])] -= 1
    return found


def plan(found: Mapping[str, int], tp_size: int, most: int) -> list[str]:
    """The node of each rank: as many whole tensor-parallel groups as there are places for, up to
    `most` ranks, on as few nodes as possible."""
    ranks: list[str] = []
    for node in sorted(found, key=lambda node: (-(found[node] // tp_size), node)):
        groups = min(found[node] // tp_size, (most - len(ranks)) // tp_size)
        ranks += [node] * (groups * tp_size)
    return ranks


def free(nodes: Iterable[Node], cluster: Cluster, ours: Sequence[str] = ()) -> dict[str, int]:
    """Places that a run can have now; it has one on each node of `ours` already."""
    rank = per_rank(cluster)
    resources = {
        node.id: {
            name: min(
                node.total.get(name, 0.0), node.free.get(name, 0.0) + ours.count(node.id) * amount
            )
            for name, amount in rank.items()
        }
        for node in _usable(nodes)
    }
    return places(resources, rank)


def whole(nodes: Iterable[Node], cluster: Cluster, reading: float = READ_CPUS) -> dict[str, int]:
    """Places that a run could have if it had the nodes for itself."""
    return places({node.id: node.total for node in _usable(nodes)}, per_rank(cluster), reading)


def crowded(nodes: Sequence[Node], cluster: Cluster, tp_size: int) -> bool:
    """Whether one more group of ranks had a place if nothing had to be read."""
    without, with_reading = (
        plan(whole(nodes, cluster, cpus), tp_size, cluster.workers) for cpus in (0.0, READ_CPUS)
    )
    return len(without) > len(with_reading)


def _usable(nodes: Iterable[Node]) -> Iterator[Node]:
    return (node for node in nodes if not node.leaving and not node.silent)
