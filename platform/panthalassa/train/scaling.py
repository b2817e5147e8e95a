"""Where Ray Train puts the ranks of an attempt, also when that is not known yet.

Ray Train's controller is a process of its own, which takes seconds to start and import. So that a run
need not wait for that when a node dies, the controller of its next attempt is started ahead. It gets
its scaling configuration pickled, and to unpickle it is to wait for the launch.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psutil
import ray
import ray.train.torch  # the controller needs it, too, and shall not import it after its wait
from ray.train import ScalingConfig

from panthalassa.config import Cluster
from panthalassa.train.board import Controller
from panthalassa.train.placement import per_rank

UNKNOWN = 1 << 20
"""Ranks of an attempt before its launch: more than there are, so that nobody starts them by mistake."""


class OnceLaunched(ScalingConfig):
    """One rank on each node of an attempt's launch, which the process that unpickles it waits for."""

    def __init__(self, board: Any, attempt: int, cluster: Cluster) -> None:
        self._arguments = board, attempt, cluster
        super().__init__(num_workers=UNKNOWN, use_gpu=bool(cluster.gpus_per_worker))

    def __reduce__(self) -> tuple[Callable[..., ScalingConfig], tuple[Any, ...]]:
        return _when_launched, self._arguments


def _when_launched(board: Any, attempt: int, cluster: Cluster) -> ScalingConfig:
    controller = psutil.Process()
    told = controller.pid, controller.create_time()
    nodes = ray.get(board.launch.remote(attempt, told)).nodes
    return ScalingConfig(
        num_workers=len(nodes),
        use_gpu=bool(cluster.gpus_per_worker),
        resources_per_worker=per_rank(cluster),
        label_selector=[{"ray.io/node-id": node} for node in nodes],  # type: ignore[call-arg]
    )


def still_there(controllers: Iterable[Controller]) -> list[psutil.Process]:
    """The processes of controllers of this machine that have not ended yet."""
    found = []
    for pid, created in set(controllers):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                found.append(process)
    return found
