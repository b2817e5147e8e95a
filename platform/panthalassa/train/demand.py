"""What a run asks a cluster's autoscaler for: room for the groups of ranks that it lacks.

For each tensor-parallel group there is one Ray placement group of one bundle, so that it fits a node.
As long as there is no room it waits, and the autoscaler sees it wait and adds nodes. As soon as there
is, it holds it, so that the node is neither taken by others nor ended as idle before the ranks start
there. Ray removes it with the process that asked, however that ends.

Ray's `request_resources` does none of this. A cluster keeps one such request: the last one replaces
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
        self._group = {name: amount * tp_size for name, amount in per_rank(cluster).items()}
        self._groups: list[PlacementGroup] = []
        self._reading: list[PlacementGroup] = []

    def ask(self, nodes: Sequence[Node], size: int) -> bool:
        """Ask for what a run with `size` ranks on some of `nodes` lacks; returns whether that is new.

        While ranks run, only nodes that join from now on count: what these ones have left is for
        reading. Where room for reading is all that is missing, that is what is asked for.
        """
        if not any(node.scaled for node in nodes):
            return False
        before = bool(self._groups)
        lacking = (self._cluster.workers - size) // self._tp_size
        reading = lacking > 0 and crowded(nodes, self._cluster, self._tp_size)
        others = {"ray.io/node-id": f"!in({','.join(node.id for node in nodes)})"}
        _keep(self._groups, lacking - reading, self._group, others if size else {})
        reading = reading and None not in map(_node_of, self._groups)
        _keep(self._reading, int(reading), {"CPU": READ_CPUS}, others)
        return bool(self._groups) and not before

    def held(self) -> list[str]:
        """The node of each rank that room is held for."""
        nodes = [node for group in self._groups if (node := _node_of(group))]
        return [node for node in nodes for _ in range(self._tp_size)]

    def withdraw(self) -> None:
        """Ask for nothing any more, and hold nothing."""
        _keep(self._groups, 0, {}, {})
        _keep(self._reading, 0, {}, {})


def _keep(
    groups: list[PlacementGroup], count: int, bundle: dict[str, float], selector: dict[str, str]
) -> None:
    """Have `count` of them, each of one bundle."""
    while len(groups) > count:
        remove_placement_group(groups.pop())
    while len(groups) < count:
        selectors = [selector] if selector else None
        groups.append(placement_group([bundle], bundle_label_selector=selectors))


def _node_of(group: PlacementGroup) -> str | None:
    """The node that it holds room on; None while it waits."""
    found = placement_group_table(group)
    return found["bundles_to_node_id"][0] if found.get("state") == "CREATED" else None
