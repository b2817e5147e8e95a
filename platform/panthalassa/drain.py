"""How a node leaves a Ray cluster in good order: what a pod runs before Kubernetes takes it away.

It tells Ray that this node is being drained. The driver of a run sees that, saves a checkpoint at the
next step boundary and goes on without the node (`train.elastic`). Here it waits until no rank and no
task is left on the node, or the time is over.

    python -m panthalassa.drain --seconds 240
"""

import argparse
import os
import sys
import time
from typing import Any

from panthalassa.errors import PanthalassaError

POLL = 0.5
SETTLE = 3.0
"""Seconds after which Ray's account of a node, drawn up once a second, surely has all that began there
before the drain, behind which nothing new is started."""


def leave(address: str, instance: str, seconds: float) -> None:
    """Drain the node of the cluster at `address` (host:port) that is the instance (a pod's name).

    Returns when nothing runs there any more, after SETTLE seconds at the earliest, or the node is gone.
    Raises PanthalassaError when Ray does not answer, refuses, or something may still run after so many
    seconds.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    until = time.time() + seconds
    try:
        if (node := _find(address, instance)) is None:
            return
        accepted, why = GcsClient(address=address).drain_node(
            node.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "Kubernetes takes the pod away",
            int(until * 1000),
        )
        if not accepted:
            raise PanthalassaError(f"Ray does not drain {instance}: {why}")
        settled = time.time() + SETTLE
        while node and (_is_used(node) or time.time() < settled):
            if time.time() > until:
                raise PanthalassaError(f"something may still run on {instance} after {seconds:g} s")
            time.sleep(POLL)
            node = _find(address, instance)
    except PanthalassaError:
        raise
    except Exception as error:  # Ray has no class for what keeps it from answering
        raise PanthalassaError(f"Ray at {address} does not answer: {error}") from error


def _find(address: str, instance: str) -> Any:
    """The node as Ray knows it, or None when it is not there any more."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(address)
    nodes = (*status.active_nodes, *status.idle_nodes)
    return next((node for node in nodes if node.instance_id == instance), None)


def _is_used(node: Any) -> bool:
    return any(node.used_resources().get(kind) for kind in ("CPU", "GPU"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="panthalassa.drain", description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="time that there is")
    seconds = parser.parse_args().seconds
    missing = [name for name in ("RAY_ADDRESS", "RAY_CLOUD_INSTANCE_ID") if name not in os.environ]
    if missing:
        sys.exit(f"not set: {', '.join(missing)}, which KubeRay sets in each pod of Ray")
    try:
        leave(os.environ["RAY_ADDRESS"], os.environ["RAY_CLOUD_INSTANCE_ID"], seconds)
    except PanthalassaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
