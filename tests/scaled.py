"""A training run on a cluster that Ray's own autoscaler keeps: `python scaled.py CONFIG FOLDER`.

The autoscaler is the process that KubeRay puts beside a head. Around it is what it knows of the world:
a Kubernetes (`kubernetes.py`), and raylets for pods. It all takes place in a network and among
processes of its own, which end with this one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kubernetes import HEAD, NAME, NAMESPACE, Kubernetes, Operator, Pod, served, until
from nodes import CPUS, Command, Nodes, cluster_of, known

from panthalassa.config_file import load
from panthalassa.storage import open_storage
from panthalassa.train.audit import audit_run

GROUP = "ranks"
PENDING = 20
"""Seconds after which a pod that is not there yet is given up; 3600 by default."""
IDLE = 6
PATIENCE = 120

SETTINGS = {
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(PENDING),
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "15",
}
SIZES = [
    *("cluster.workers=2", "cluster.min_workers=1", f"cluster.cpus_per_worker={CPUS}"),
    *("train.steps=4000", "checkpoint.every=20", "evaluation.every=4000"),
]
"""All that the run reads is read at once: a node that reads for a run is none that is idle."""


def ray_cluster() -> dict[str, Any]:
    """No node, and up to three of one place."""

    def template(cpus: int) -> dict[str, Any]:
        container = {"name": "ray", "resources": {"limits": {"cpu": str(cpus)}}}
        return {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}

    workers = {"groupName": GROUP, "replicas": 0, "minReplicas": 0, "maxReplicas": 3}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": "1"},
        "spec": {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 60},
            "headGroupSpec": template(1),
            "workerGroupSpecs": [workers | template(2)],
        },
    }


@contextmanager
def autoscaler(address: str, access: dict[str, str], folder: Path) -> Iterator[None]:
    """What KubeRay runs beside a head."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "kuberay-autoscaler"),
        *("--cluster-name", NAME, "--cluster-namespace", NAMESPACE, "--gcs-address", address),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls `ray`
    with (folder / "autoscaler.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **access, "PATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def going_on(times: int) -> Any:
    return lambda text: text.count("going on after step") >= times


def live(
    path: Path, folder: Path, kubernetes: Kubernetes, operator: Operator, nodes: Nodes
) -> None:
    """The story; asserts what happens at each turn."""

    def pods() -> list[str]:
        return [name for name, pod in kubernetes.pods.items() if pod.node and pod.group == GROUP]

    run = Command(load(path, [*SIZES, f"cluster.address={nodes.address}"]), folder)
    try:
        run.wait_for(lambda text: "room for 2 ranks, not 0" in text, "asking", PATIENCE)
        run.wait_for(going_on(1), "two ranks", PATIENCE)
        assert kubernetes.group["replicas"] == 2
        first, second = pods()
        print("asked for nodes, and began and grew with them", flush=True)

        operator.stuck = 1
        operator.lose(second)
        run.wait_for(going_on(2), "one rank", PATIENCE)
        run.wait_for(lambda text: "room for 2 ranks, not 1" in text, "asking again", PATIENCE)
        until(lambda: operator.deleted, "the end of a pod that does not get ready")
        (stuck,) = operator.deleted
        assert stuck not in pods()
        run.wait_for(going_on(3), "two ranks again", PATIENCE)
        assert kubernetes.group["replicas"] == 2
        (third,) = set(pods()) - {first}
        print("lost a node, was kept from none by a pod that never got ready", flush=True)

        operator.places = (
            None  # on a busy machine the run still reads, and a node that reads is not idle
        )
        with kubernetes.lock:
            kubernetes.ray_cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] = IDLE
            kubernetes.group.update(replicas=3, minReplicas=1)
        until(lambda: len(pods()) == 3, "a node that nobody asked for")
        (idle,) = set(pods()) - {first, third}
        until(lambda: len(operator.deleted) == 2, "the end of the idle node")
        assert operator.deleted == [stuck, idle]
        assert run.process.poll() is None
        print("gave the idle node back, and no busy one", flush=True)

        run.signal(signal.SIGTERM)
        text = run.wait(PATIENCE)
    finally:
        run.close()
    assert "stopped as asked; the same command goes on" in text
    assert text.count("going on after step") == 3, text
    until(lambda: kubernetes.group["replicas"] == 1 and len(pods()) == 1, "the minimum")
    assert operator.deleted_while_busy == []
    named = [
        operation["value"]["workersToDelete"]
        for operation in kubernetes.patches
        if operation["path"].endswith("scaleStrategy")
    ]
    (last,) = {first, third} - set(pods())
    assert [names for names in named if names] == [[stuck], [idle], [last]]
    report = audit_run(open_storage(str(folder / "runs" / "small")))
    assert report.problems == []
    assert [account.attempt.dp_size for account in report.attempts] == [1, 2, 1, 2]
    print("stopped, and the cluster came down to its minimum", flush=True)


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(SETTINGS)
    kubernetes = Kubernetes(ray_cluster(), {"head": Pod("head", HEAD, node=True)})
    with (
        served(kubernetes, folder) as access,
        cluster_of(no_monitor=True, **known("head", HEAD)) as (nodes, _),
        autoscaler(nodes.address, access, folder),
        ThreadPoolExecutor(1) as thread,
    ):
        operator = Operator(
            kubernetes,
            start=lambda pod: nodes.add(operator.places, **known(pod.name, pod.group)),
            end=nodes.kill,
            busy=lambda node: bool(nodes.ranks(node)),
        )
        story = thread.submit(live, path, folder, kubernetes, operator, nodes)
        while not story.done():
            operator.reconcile()
            time.sleep(0.2)
        story.result()


if __name__ == "__main__":
    main()
