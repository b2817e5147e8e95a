"""How many trials a cluster holds at a time: whole ones, so that none waits for what another one keeps.

A trial is the process that follows it, as many ranks as its run may have, each tensor-parallel group on
one node, and room for a task that reads. Trials are laid out one after the other, as `train.placement`
will.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from panthalassa.config import Cluster
from panthalassa.errors import ConfigError
from panthalassa.stream.reader import READ_CPUS
from panthalassa.sweep.space import Plan, points
from panthalassa.train import placement
from panthalassa.train.placement import Node

DRIVER_CPUS = 0.25
"""That Ray reserves for the process of a trial."""


def at_once(plan: Plan, nodes: Sequence[Node]) -> int:
    """Trials at a time. Raises ConfigError when more are asked for than the cluster ever holds."""
    nodes = [node for node in nodes if not node.leaving and not node.silent]
    needs, total = _needs(plan), [node.total for node in nodes]
    cluster, tp_size = min(needs, key=lambda need: fits(total, *need))
    ever = fits(total, cluster, tp_size)
    wanted, key = plan.sweep.concurrent, "sweep.concurrent"
    if plan.sweep.search == "pbt":  # which compares those that train at the same time
        wanted, key = plan.count, "sweep.trials, all at the same time for search=pbt"
    if (wanted or 1) > ever and not any(node.scaled for node in nodes):
        raise ConfigError(
            f"{wanted or 1} trials at a time ({key}), and this cluster holds {ever} at most: one needs "
            f"{cluster.workers} x ({placement.need(cluster)}) for ranks, and "
            f"{DRIVER_CPUS + READ_CPUS:g} CPU. Lower it, cluster.workers or cluster.cpus_per_worker, or "
            "set cluster.address to a larger cluster."
        )
    if "j_per_token" in plan.sweep.objective and not all(own_power(need) for need, _ in needs):
        if (wanted or 1) > 1:
            raise ConfigError(
                f"{wanted} trials at a time ({key}), and objective=j_per_token on CPUs, whose energy is "
                "known of a whole node only: set sweep.concurrent=1, or give ranks GPUs of their own."
            )
        return 1
    free = [node.free for node in nodes]
    return wanted or max(1, min(fits(free, *need) for need in needs))


def own_power(cluster: Cluster) -> bool:
    """Whether a trial's energy is known apart from that of others at the same time: GPUs have one user,
    a node's CPUs have all."""
    return cluster.gpus_per_worker > 0


def fits(resources: Iterable[Mapping[str, float]], cluster: Cluster, tp_size: int) -> int:
    """How many trials have room on nodes with these resources."""
    left = {str(number): dict(found) for number, found in enumerate(resources)}
    rank = placement.per_rank(cluster)
    for trials in count():
        if not _take(left, DRIVER_CPUS):
            return trials
        ranks = placement.plan(placement.places(left, rank), tp_size, cluster.workers)
        if len(ranks) < cluster.workers:
            return trials
        for node in ranks:
            for name, amount in rank.items():
                left[node][name] -= amount
        _take(left, READ_CPUS)
    raise AssertionError


def _take(left: dict[str, dict[str, float]], cpus: float) -> bool:
    """Take CPUs of the node that has the most; whether there are so many."""
    node = max(left, key=lambda node: left[node].get("CPU", 0.0), default="")
    if not node:
        return False
    left[node]["CPU"] = left[node].get("CPU", 0.0) - cpus
    return left[node]["CPU"] >= 0


def _needs(plan: Plan) -> list[tuple[Cluster, int]]:
    """The ranks, and the size of their tensor-parallel groups, of trials that ask for different ones."""
    found: dict[tuple[float, ...], tuple[Cluster, int]] = {}
    for point in points(plan):
        config = plan.build(point)
        cluster, tp_size = config.cluster, config.parallel.tp_size
        amounts = placement.per_rank(cluster).values()
        found[cluster.workers, tp_size, *amounts] = cluster, tp_size
    return list(found.values())
