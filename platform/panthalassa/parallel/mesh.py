"""The device mesh: all ranks as data-parallel rows of tensor-parallel groups.

Neighbouring ranks form a tensor-parallel group, because they share a node and its fast links.
"""

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def build_mesh(device_type: str, tp_size: int) -> DeviceMesh:
    """A mesh [dp, tp] over every rank of the default process group."""
    return init_device_mesh(
        device_type, (dist.get_world_size() // tp_size, tp_size), mesh_dim_names=("dp", "tp")
    )
