"""What `kubectl kustomize` makes of k8s/, and the pods that the operator will make of that.

Rendering needs no cluster. What KubeRay adds to pods (a container for the autoscaler, one that waits for
the head, labels) is added here as its version 1.7 does, so that what runs is checked and not only
what is written.
"""

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OVERLAYS = ["dev", "production", "spot", "efa"]
NAMESPACE = "panthalassa"
Object = dict[str, Any]


def rendered(path: str) -> list[Object]:
    """The objects of a folder below k8s/; they are the caller's to change."""
    return copy.deepcopy(_render(path))


@cache
def _render(path: str) -> list[Object]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not there, which renders k8s/")
    answer = _output(kubectl, "version", "--client", "--output", "json")
    version = json.loads(answer)["kustomizeVersion"]
    if int(version.lstrip("v").partition(".")[0]) < 5:
        pytest.skip(f"kubectl renders with kustomize {version}; k8s/ needs 5 or newer")
    text = _output(kubectl, "kustomize", str(ROOT / "k8s" / path))
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def cluster_in(overlay: str) -> Object:
    (cluster,) = of_kind(rendered(f"overlays/{overlay}"), "RayCluster")
    return cluster


def group(cluster: Object, name: str) -> Object:
    (found,) = (g for g in cluster["spec"]["workerGroupSpecs"] if g["groupName"] == name)
    return found


def pods(objects: list[Object]) -> Iterator[Object]:
    """Each pod that comes of these objects, once a group, as an object of kind Pod."""
    for found in objects:
        if found["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            yield _pod(found, found["metadata"]["name"], found["spec"]["template"])
        if found["kind"] == "RayCluster":
            yield from ray_pods(found, found["spec"])
        if found["kind"] == "RayJob":
            yield from ray_pods(found, found["spec"]["rayClusterSpec"])


def ray_pods(owner: Object, spec: Object) -> Iterator[Object]:
    """The head's and each group's pod, with what the operator adds to it."""
    options, head = spec["autoscalerOptions"], spec["headGroupSpec"]["template"]
    pod = _pod(owner, "head", head, _labels(owner, "head", "headgroup"))
    (ray,) = pod["spec"]["containers"]
    autoscaler = {"name": "autoscaler", "image": ray["image"], "resources": options["resources"]}
    for key in ("securityContext", "volumeMounts"):
        autoscaler[key] = copy.deepcopy(options.get(key))
    autoscaler["volumeMounts"].append({"name": "ray-logs", "mountPath": "/tmp/ray"})
    pod["spec"]["containers"].append(autoscaler)
    pod["spec"]["restartPolicy"] = "Never"
    yield pod
    for worker in spec["workerGroupSpecs"]:
        name = worker["groupName"]
        pod = _pod(owner, name, worker["template"], _labels(owner, "worker", name))
        (ray,) = pod["spec"]["containers"]
        small = {"cpu": "200m", "memory": "256Mi"}
        waits = {key: ray[key] for key in ("image", "env", "volumeMounts", "securityContext")}
        waits |= {"name": "wait-gcs-ready", "resources": {"requests": small, "limits": small}}
        pod["spec"] |= {"initContainers": [waits], "restartPolicy": "Never"}
        yield pod


def _pod(owner: Object, name: str, template: Object, labels: Object | None = None) -> Object:
    metadata = copy.deepcopy(template.get("metadata", {}))
    metadata["labels"] = metadata.get("labels", {}) | (labels or {})
    metadata |= {"name": name, "namespace": owner["metadata"]["namespace"]}
    spec = copy.deepcopy(template["spec"])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _labels(owner: Object, kind: str, name: str) -> Object:
    return {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": owner["metadata"]["name"],
        "ray.io/node-type": kind,
        "ray.io/group": name,
    }


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def environment(container: Object) -> dict[str, Object]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def quantity(text: str | int) -> float:
    """A number of Kubernetes: 250m, 4Gi, 96."""
    text = str(text)
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
