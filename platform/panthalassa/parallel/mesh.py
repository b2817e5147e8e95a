"""The device mesh: tensor-parallel groups inside nodes, data-parallel across them.

A tensor-parallel group talks in every layer, so it needs the fast links of one node. Where a node has
ranks left over (5 of 8 GPUs with groups of 2), they stand by: they hold no model, are in no process
group, and keep their place until the ranks are started anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from panthalassa.errors import ConfigError


def arrange(nodes: Sequence[str], tp_size: int) -> list[int]:
    """The ranks that train, one tensor-parallel group of `tp_size` after the other.

    nodes: the node of each rank. Every group lies inside one node, and as few ranks as possible are
    left out. Raises ConfigError when no node holds a group.
    """
    by_node: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        by_node.setdefault(node, []).append(rank)
    training = [
        rank for ranks in by_node.values() for rank in ranks[: len(ranks) // tp_size * tp_size]
    ]
    if not training:
        most = max(map(len, by_node.values()))
        raise ConfigError(
            f"parallel.tp_size={tp_size} needs that many ranks on one node, and no node has more than "
            f"{most} of them. Lower it, or raise cluster.workers."
        )
    return training


@dataclass(frozen=True)
class Standing:
    """What became of this rank."""

    trains: bool
    spare: int
    """Ranks that stand by."""


def regroup(node: str, host: str, tp_size: int) -> Standing:
    """Make the ranks that train the default process group; every rank calls it.

    node: where this rank runs; host: its address. Ranks are numbered anew, so that neighbours are a
    tensor-parallel group. Raises ConfigError, on all ranks, when no node holds a group.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    nodes = [""] * world
    dist.all_gather_object(nodes, node)
    training = arrange(nodes, tp_size)
    spare = world - len(training)
    if training == list(range(world)):
        return Standing(True, spare)
    size, store = len(training), None
    if rank == training[0]:
        store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
    address = [(host, store.port) if store else None]
    dist.broadcast_object_list(address, src=training[0])
    backend = str(dist.get_backend_config())
    dist.destroy_process_group()
    if rank not in training:
        return Standing(False, spare)
    assert address[0] is not None
    store = store or TCPStore(*address[0], size)
    dist.init_process_group(backend, store=store, rank=training.index(rank), world_size=size)
    return Standing(True, spare)


def build_mesh(device_type: str, tp_size: int, replicas: int = 1) -> DeviceMesh:
    """A mesh over every rank of the default process group.

    Its dimensions are [dp, tp]; with more than one replica of the model, `dp` is made of
    [replicate, shard], so that a weight is gathered from `shard` groups and not from all. There are
    as many replicas as divide the data-parallel ranks, at most `replicas`.
    """
    dp_size = dist.get_world_size() // tp_size
    copies = next(n for n in range(min(replicas, dp_size), 0, -1) if dp_size % n == 0)
    if copies == 1:
        return init_device_mesh(device_type, (dp_size, tp_size), mesh_dim_names=("dp", "tp"))
    mesh = init_device_mesh(
        device_type,
        (copies, dp_size // copies, tp_size),
        mesh_dim_names=("replicate", "shard", "tp"),
    )
    mesh["replicate", "shard"]._flatten("dp")
    return mesh
