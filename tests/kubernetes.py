"""What Ray's autoscaler needs of Kubernetes, on loopback: a RayCluster and its pods over HTTPS, and the
part of KubeRay's operator that makes pods from the one.

A pod is a raylet of this host. The API answers who shows the certificate that it has itself.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from certificates import self_signed

NAMESPACE, NAME = "training", "panthalassa"
RAY_CLUSTER = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{NAME}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
HEAD = "headgroup"


@dataclass
class Pod:
    name: str
    group: str
    node: Any = None
    """The raylet, once it has started."""

    def manifest(self) -> dict[str, Any]:
        state = {"running": {}} if self.node else {"waiting": {"reason": "ContainerCreating"}}
        labels = {
            "ray.io/cluster": NAME,
            "ray.io/group": self.group,
            "ray.io/node-type": "head" if self.group == HEAD else "worker",
        }
        return {
            "metadata": {"name": self.name, "labels": labels},
            "status": {"containerStatuses": [{"state": state}]},
        }


@dataclass
class Kubernetes:
    """The API's objects, and what became of them."""

    ray_cluster: dict[str, Any]
    pods: dict[str, Pod] = field(default_factory=dict)
    patches: list[dict[str, Any]] = field(default_factory=list)
    """Each operation of each JSON patch, in order."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def group(self) -> dict[str, Any]:
        """The only group of workers."""
        found: dict[str, Any] = self.ray_cluster["spec"]["workerGroupSpecs"][0]
        return found

    def get(self, url: str) -> dict[str, Any] | None:
        parts = urlsplit(url)
        with self.lock:
            if parts.path == RAY_CLUSTER:
                return self.ray_cluster
            if parts.path != PODS:
                return None
            found = [pod.manifest() for pod in self.pods.values()]
        for selector in parse_qs(parts.query).get("labelSelector", []):
            key, _, value = selector.partition("=")
            found = [pod for pod in found if pod["metadata"]["labels"].get(key) == value]
        return {"metadata": {"resourceVersion": "1"}, "items": found}

    def patch(self, url: str, operations: list[dict[str, Any]]) -> dict[str, Any] | None:
        """JSON patch (RFC 6902); like the real API's, its `replace` adds what is not there."""
        if urlsplit(url).path != RAY_CLUSTER:
            return None
        with self.lock:
            for operation in operations:
                assert operation["op"] == "replace", operation
                *parents, last = operation["path"].strip("/").split("/")
                target: Any = self.ray_cluster
                for key in parents:
                    target = target[int(key) if isinstance(target, list) else key]
                target[last] = operation["value"]
                self.patches.append(operation)
            return self.ray_cluster


class Operator:
    """Keeps as many pods as the RayCluster says, and deletes those that it names."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        start: Callable[[Pod], Any],
        end: Callable[[Any], None],
        busy: Callable[[Any], bool],
    ) -> None:
        self.deleted: list[str] = []
        self.deleted_while_busy: list[str] = []
        self.stuck = 0
        """Pods that shall stay pending, of those to come."""
        self.places: int | None = 1
        """Room for ranks in the pods to come."""
        self._kubernetes, self._start, self._end, self._busy = kubernetes, start, end, busy
        self._made = 0

    def lose(self, name: str) -> None:
        """A pod vanishes, with all that runs in it."""
        with self._kubernetes.lock:
            pod = self._kubernetes.pods.pop(name)
        self._end(pod.node)

    def reconcile(self) -> None:
        """One turn of its loop; in the main thread, because a raylet starts nowhere else."""
        self._delete()
        self._make()

    def _delete(self) -> None:
        kubernetes = self._kubernetes
        with kubernetes.lock:
            named = kubernetes.group.get("scaleStrategy", {}).get("workersToDelete", [])
            going = [kubernetes.pods.pop(name) for name in named if name in kubernetes.pods]
        for pod in going:
            self.deleted.append(pod.name)
            if pod.node:
                if self._busy(pod.node):
                    self.deleted_while_busy.append(pod.name)
                self._end(pod.node)

    def _make(self) -> None:
        kubernetes = self._kubernetes
        with kubernetes.lock:
            group = kubernetes.group["groupName"]
            workers = [pod for pod in kubernetes.pods.values() if pod.group == group]
            if len(workers) >= kubernetes.group["replicas"]:
                return
            self._made += 1
            pod = Pod(f"{NAME}-{group}-{self._made}", group)
            kubernetes.pods[pod.name] = pod
        if self.stuck:
            self.stuck -= 1
        else:
            pod.node = self._start(pod)


@contextmanager
def served(kubernetes: Kubernetes, folder: Path) -> Iterator[dict[str, str]]:
    """The API, as long as the block lasts; yields the environment of its clients."""
    certificate, key = self_signed(folder, "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(kubernetes.get(self.path))

        def do_PATCH(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(kubernetes.patch(self.path, json.loads(body)))

        def _answer(self, found: dict[str, Any] | None) -> None:
            with kubernetes.lock:
                body = json.dumps(found or {"kind": "Status", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_address[1]),
            "RAY_KUBERAY_CA_CERT_PATH": str(certificate),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(key),
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def until(seen: Callable[[], object], what: str, patience: float = 60) -> None:
    """Return when `seen` holds."""
    deadline = time.monotonic() + patience
    while not seen():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)
