"""What a run asks a cluster's autoscaler for: room for the ranks that it lacks.

It asks with Ray's placement groups. One that has no room waits, and the autoscaler sees it wait and adds
nodes for it; one that has holds it, so that what was added for this run is neither taken by others
nor ended as idle before its ranks start there. A tensor-parallel group is one bundle: it fits a node.
Ray removes them all with the process that asked, however that ends.

Ray's `request_resources` would do none of this. A cluster keeps one such request: the last one replaces
those of all other jobs, and stays when its job is gone. Ray Train and Ray Data renew theirs every 20 s.
"""

from collections.abc import Sequence

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from panthalassa.config import Cluster
from panthalassa.stream.reader import READ_CPUS
from panthalassa.train.placement import Node, crowded, per_rank


class Demand:
    """What this process asks for; nothing on a cluster whose nodes no autoscaler knows."""

    def __init__(self, cluster: Cluster, tp_size: int) -> None:
        self._cluster, self._tp_size = cluster, tp_size
        self._bundle = {name: amount * tp_size for name, amount in per_rank(cluster).items()}
        self._ranks: list[PlacementGroup] = []
        self._reading: list[PlacementGroup] = []
        self._only_least = False

    def ask(self, nodes: Sequence[Node], size: int) -> bool:
        """Ask for what a run with `size` ranks on some of `nodes` lacks; returns whether that is new.

        Where room for reading is all that is missing, that is what is asked for.
        """
        if not any(node.scaled for node in nodes):
            return False
        before = bool(self._ranks)
        lacking = (self._cluster.workers - size) // self._tp_size
        reading = lacking > 0 and crowded(nodes, self._cluster, self._tp_size)
        new = {"ray.io/node-id": f"!in({','.join(node.id for node in nodes)})"}
        if size:
            # On nodes that are still to join: what these have left is needed for reading. Each group by
            # itself, as a run grows by what there is.
            _keep(self._ranks, [1] * (lacking - reading), self._bundle, new)
        else:
            _keep(self._ranks, self._waiting(lacking), self._bundle)
        reading = reading and all(map(_nodes_of, self._ranks))
        _keep(self._reading, [1] * reading, {"CPU": READ_CPUS}, new)
        return bool(self._ranks) and not before

    def _waiting(self, groups: int) -> list[int]:
        """All or nothing for the least that the run starts with, and for the rest: of two runs that wait
        neither may hold what the other one lacks."""
        least = -(-(self._cluster.min_workers or self._cluster.workers) // self._tp_size)
        if len(self._ranks) == 2:
            self._only_least |= bool(_nodes_of(self._ranks[1]) and not _nodes_of(self._ranks[0]))
        return [least] if self._only_least or least == groups else [least, groups - least]

    def held(self) -> list[str]:
        """The node of each rank that room is held for."""
        nodes = [node for group in self._ranks for node in _nodes_of(group)]
        return [node for node in nodes for _ in range(self._tp_size)]

    def withdraw(self) -> None:
        """Ask for nothing any more, and hold nothing."""
        _keep(self._ranks, [], {})
        _keep(self._reading, [], {})
        self._only_least = False


def _keep(
    groups: list[PlacementGroup],
    bundles: Sequence[int],
    bundle: dict[str, float],
    selector: dict[str, str] | None = None,
) -> None:
    """Have a group with each of these numbers of bundles."""
    while [group.bundle_count for group in groups] != bundles[: len(groups)]:
        remove_placement_group(groups.pop())
    for count in bundles[len(groups) :]:
        selectors = [selector] * count if selector else None
        groups.append(placement_group([bundle] * count, bundle_label_selector=selectors))


def _nodes_of(group: PlacementGroup) -> list[str]:
    """The node of each bundle; none while it waits."""
    found = placement_group_table(group)
    return list(found["bundles_to_node_id"].values()) if found.get("state") == "CREATED" else []
