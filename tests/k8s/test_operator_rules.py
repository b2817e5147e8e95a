"""No manifest breaks a rule of KubeRay or Kueue beyond the schemas; each rule can be broken."""

from collections import Counter
from typing import Any

import pytest
from kuberay_rules import problems
from manifests import (
    OVERLAYS,
    Object,
    cluster_in,
    group,
    of_kind,
    pods,
    quantity,
    rendered,
)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_and_jobs_keep_to_the_operators_rules(overlay: str) -> None:
    found = rendered(f"overlays/{overlay}") + rendered(f"jobs/{overlay}")
    for resource in of_kind(found, "RayCluster", "RayJob"):
        assert problems(resource) == [], resource["metadata"]["name"]


def _head(cluster: Object) -> Object:
    return cluster["spec"]["headGroupSpec"]


def _environment(cluster: Object) -> list[Object]:
    return _head(cluster)["template"]["spec"]["containers"][0]["env"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c["metadata"].update(name="p" * 54), "no DNS label of at most 53"),
        (lambda c: c["metadata"].update(name="12b"), "no DNS label"),
        (lambda c: group(c, "a100").update(minReplicas=65), "a100: replicas are not between"),
        (lambda c: group(c, "a100").update(groupName="cpu"), "groups of one name"),
        (lambda c: group(c, "a100").update(groupName="head"), "'head': no name for a group"),
        (lambda c: group(c, "a100").update(suspend=True), "a100: suspended"),
        (lambda c: _head(c).update(resources={"CPU": "0"}), "head: resources and rayStartParams"),
        (lambda c: _head(c)["rayStartParams"].update({"num-cpus": 0}), "head: rayStartParams are"),
        (lambda c: _head(c)["rayStartParams"].update(labels="a=b"), "labels belong to the group"),
        (
            lambda c: _head(c)["template"]["spec"].update(restartPolicy="Always"),
            "head: restartPolicy is not Never",
        ),
        (
            lambda c: _environment(c).append({"name": "REDIS_PASSWORD", "value": "x"}),
            "REDIS_PASSWORD and gcsFaultToleranceOptions",
        ),
        (
            lambda c: _environment(c).append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
            "autoscalerOptions.version and RAY_enable_autoscaler_v2",
        ),
        (
            lambda c: c["spec"]["gcsFaultToleranceOptions"].pop("redisPassword"),
            "redisPassword is not taken from a secret",
        ),
        (lambda c: c["spec"].pop("gcsFaultToleranceOptions"), "no gcsFaultToleranceOptions"),
        (lambda c: c["spec"].update(authOptions={}), "authOptions.mode is not token"),
        (lambda c: c["spec"].update(rayVersion="2.51.0"), "knows no tokens"),
        (lambda c: c["spec"]["autoscalerOptions"].update(version="v1"), "version is not v2"),
    ],
)
def test_a_cluster_that_breaks_a_rule_is_seen(change: Any, complaint: str) -> None:
    cluster = cluster_in("spot")
    change(cluster)
    (line,) = problems(cluster)
    assert complaint in line


def _rules(*rules: tuple[str, str, int]) -> Object:
    return {
        "deletionRules": [
            {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": seconds}}
            for policy, status, seconds in rules
        ]
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.update(submissionMode="HttpMode"), "submissionMode 'HttpMode' is none of"),
        (lambda s: s.update(submissionMode="InteractiveMode"), "InteractiveMode with a backoff"),
        (
            lambda s: s.update(submissionMode="SidecarMode", submitterConfig={}),
            "SidecarMode with a submitter",
        ),
        (lambda s: s.update(clusterSelector={"ray.io/cluster": "x"}), "not exactly one of"),
        (lambda s: s.pop("activeDeadlineSeconds"), "no activeDeadlineSeconds"),
        (lambda s: s.update(backoffLimit=-1), "backoffLimit below 0"),
        (lambda s: s.update(suspend=True), "suspend without shutdownAfterJobFinishes"),
        (lambda s: s.update(ttlSecondsAfterFinished=1), "ttlSecondsAfterFinished without"),
        (lambda s: s.pop("deletionStrategy"), "nothing deletes the cluster"),
        (lambda s: s.update(shutdownAfterJobFinishes=True), "exclude each other"),
        (
            lambda s: s["deletionStrategy"].update(onSuccess={"policy": "DeleteCluster"}),
            "not either rules or",
        ),
        (
            lambda s: s.update(deletionStrategy=_rules(("DeleteWorkers", "FAILED", 1))),
            "DeleteWorkers with an autoscaler",
        ),
        (
            lambda s: s.update(deletionStrategy=_rules(*[("DeleteSelf", "FAILED", 1)] * 2)),
            "two rules for DeleteSelf after FAILED",
        ),
        (
            lambda s: s.update(
                deletionStrategy=_rules(("DeleteSelf", "FAILED", 1), ("DeleteCluster", "FAILED", 2))
            ),
            "after FAILED the rules do not delete from the inside out",
        ),
    ],
)
def test_a_job_that_breaks_a_rule_is_seen(change: Any, complaint: str) -> None:
    job = _job("dev")
    change(job["spec"])
    lines = problems(job)
    assert any(complaint in line for line in lines), lines


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda job: job["spec"].pop("shutdownAfterJobFinishes"), "does not end with the job"),
        (lambda job: job["metadata"].pop("annotations"), "an autoscaler in a job that is not elas"),
    ],
)
def test_a_job_that_kueue_would_refuse_is_seen(change: Any, complaint: str) -> None:
    job = _job("spot")
    change(job)
    lines = problems(job)
    assert any("Kueue" in line and complaint in line for line in lines), lines


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay != "dev"])
def test_the_queue_counts_all_that_jobs_ask_for_and_has_enough_of_it(overlay: str) -> None:
    """Kueue holds back a job that asks for something which its queue does not cover."""
    (queue,) = of_kind(rendered(f"overlays/{overlay}"), "ClusterQueue")
    (resources,) = queue["spec"]["resourceGroups"]
    job, left = _job(overlay), Counter[str]()
    for flavor in resources["flavors"]:
        quotas = {entry["name"]: quantity(entry["nominalQuota"]) for entry in flavor["resources"]}
        assert list(quotas) == resources["coveredResources"]
        left.update(quotas)
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    most = {found["groupName"]: found["maxReplicas"] for found in groups}
    for pod in pods([job]):
        for container in pod["spec"]["containers"]:
            for name, amount in container["resources"]["requests"].items():
                left[name] -= quantity(amount) * most.get(pod["metadata"]["name"], 1)
    assert [name for name, amount in left.items() if amount < 0] == []


def _job(overlay: str) -> Object:
    (job,) = (
        found
        for found in rendered(f"jobs/{overlay}")
        if found["kind"] == "RayJob" and found["metadata"]["name"] == "pretrain"
    )
    return job
