"""What KubeRay 1.7 and Kueue refuse though the schema allows it, as sentences about an object.

After the operator's validation (ray-operator/controllers/ray/utils/validation.go) and Kueue's webhooks
for RayJobs (pkg/controller/jobs/rayjob and raycluster). Empty lists are what the tests want to see.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Object = dict[str, Any]

NAMES = {"RayCluster": 53, "RayJob": 47}
"""Longest names: services get suffixes, and a job's cluster six characters more."""
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
ORDER = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
QUEUE, ELASTIC = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def problems(found: Object) -> list[str]:
    """Of a RayCluster or RayJob."""
    name, longest = found["metadata"]["name"], NAMES[found["kind"]]
    lines = []
    if len(name) > longest or not LABEL.fullmatch(name):
        lines.append(f"name {name!r} is no DNS label of at most {longest} characters")
    if found["kind"] == "RayCluster":
        return [*lines, *_of_cluster(found["spec"])]
    return [*lines, *_of_job(found["spec"]), *_of_queue(found)]


def _of_cluster(spec: Object) -> Iterator[str]:
    head = spec["headGroupSpec"]
    yield from _of_group("head", head)
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    if len(set(names)) < len(names):
        yield f"groups of one name: {names}"
    for group in spec["workerGroupSpecs"]:
        name = group["groupName"]
        yield from _of_group(name, group)
        if not LABEL.fullmatch(name) or name in ("head", "headgroup"):
            yield f"group {name!r}: no name for a group"
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"group {name}: replicas are not between minReplicas and maxReplicas"
    yield from _of_state(spec, head)
    yield from _of_autoscaler(spec)
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token, so nothing asks for one"
    if tuple(map(int, str(spec["rayVersion"]).split(".")[:2])) < (2, 52):
        yield "rayVersion knows no tokens"


def _of_group(name: str, group: Object) -> Iterator[str]:
    start = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
        yield f"{name}: resources and rayStartParams both say what the node has"
    if "labels" in start:
        yield f"{name}: labels belong to the group, not to rayStartParams"
    if not all(isinstance(value, str) for value in start.values()):
        yield f"{name}: rayStartParams are texts"
    if not group["template"]["spec"]["containers"]:
        yield f"{name}: no container"


def _of_state(spec: Object, head: Object) -> Iterator[str]:
    names = _variables(head)
    if "gcsFaultToleranceOptions" not in spec:
        yield "no gcsFaultToleranceOptions: a lost head takes the cluster along"
        return
    options = spec["gcsFaultToleranceOptions"]
    if "secretKeyRef" not in options.get("redisPassword", {}).get("valueFrom", {}):
        yield "gcsFaultToleranceOptions.redisPassword is not taken from a secret"
    for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"):
        if name in names:
            yield f"{name} and gcsFaultToleranceOptions exclude each other"
    if {"redis-password", "redis-username"} & set(head.get("rayStartParams", {})):
        yield "rayStartParams and gcsFaultToleranceOptions both say who Redis lets in"


def _of_autoscaler(spec: Object) -> Iterator[str]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    if not spec.get("enableInTreeAutoscaling"):
        if "RAY_enable_autoscaler_v2" in _variables(groups[0]):
            yield "RAY_enable_autoscaler_v2 without enableInTreeAutoscaling"
        return
    if spec["autoscalerOptions"].get("version") != "v2":
        yield "autoscalerOptions.version is not v2"
    if "RAY_enable_autoscaler_v2" in _variables(groups[0]):
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 exclude each other"
    for group in groups:
        name = group.get("groupName", "head")
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy is not Never, which autoscaler v2 asks for"
        if group.get("suspend"):
            yield f"{name}: suspended, with an autoscaler"


def _variables(group: Object) -> set[str]:
    return {entry["name"] for entry in group["template"]["spec"]["containers"][0].get("env", [])}


def _of_job(spec: Object) -> Iterator[str]:
    mode, cluster = spec.get("submissionMode", "K8sJobMode"), spec.get("rayClusterSpec")
    if mode not in MODES:
        yield f"submissionMode {mode!r} is none of {sorted(MODES)}"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode with a backoffLimit"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
        yield "SidecarMode with a submitter"
    if (cluster is None) == (not spec.get("clusterSelector")):
        yield "not exactly one of rayClusterSpec and clusterSelector"
    if spec.get("activeDeadlineSeconds", 0) <= 0:
        yield "no activeDeadlineSeconds greater than 0"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit below 0"
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if (strategy := spec.get("deletionStrategy")) is not None:
        yield from _of_deletion(strategy, shutdown, cluster)
    elif not shutdown:
        yield "nothing deletes the cluster"
    if cluster is not None:
        yield from _of_cluster(cluster)


def _of_deletion(strategy: Object, shutdown: bool, cluster: Object | None) -> Iterator[str]:
    rules = strategy.get("deletionRules", [])
    if shutdown and rules:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if bool(rules) == bool({"onSuccess", "onFailure"} & set(strategy)):
        yield "deletionStrategy is not either rules or onSuccess and onFailure"
    after: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        if len({"jobStatus", "jobDeploymentStatus"} & set(condition)) != 1:
            yield "a deletion rule needs one of jobStatus and jobDeploymentStatus"
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus", "")
        if rule["policy"] in after.setdefault(status, {}):
            yield f"two rules for {rule['policy']} after {status}"
        after[status][rule["policy"]] = condition.get("ttlSeconds", 0)
        if rule["policy"] == "DeleteWorkers" and (cluster or {}).get("enableInTreeAutoscaling"):
            yield "DeleteWorkers with an autoscaler"
        if cluster is None and rule["policy"] in ("DeleteWorkers", "DeleteCluster"):
            yield f"{rule['policy']} of a cluster that is not the job's"
    for status, times in after.items():
        ordered = [times[policy] for policy in ORDER if policy in times]
        if any(first > second for first, second in pairwise(ordered)):
            yield f"after {status} the rules do not delete from the inside out"


def _of_queue(job: Object) -> Iterator[str]:
    if QUEUE not in job["metadata"].get("labels", {}):
        return
    spec = job["spec"]
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue: the cluster does not end with the job"
    if spec.get("clusterSelector"):
        yield "Kueue: the cluster is not the job's"
    groups = spec.get("rayClusterSpec", {}).get("workerGroupSpecs", [])
    if len(groups) > 7:
        yield "Kueue: more than 7 groups"
    elastic = job["metadata"].get("annotations", {}).get(ELASTIC)
    if spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling") and elastic != "true":
        yield "Kueue: an autoscaler in a job that is not elastic"
