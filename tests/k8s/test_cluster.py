"""The Ray cluster is the one that runs need: its groups, memory, time to leave, image and jobs."""

import re
import shlex
from typing import Any

import pytest
import yaml
from manifests import (
    NAMESPACE,
    OVERLAYS,
    ROOT,
    Object,
    cluster_in,
    containers,
    group,
    of_kind,
    pods,
    quantity,
    rendered,
)
from ray.autoscaler._private.kuberay import autoscaling_config

from panthalassa.config_file import load
from panthalassa.jobs.driver import read_config
from panthalassa.jobs.submit import COMMANDS
from panthalassa.train.placement import per_rank

CHECKPOINT = 60
"""Seconds within which a rank is expected to end its step and save."""
PLACEHOLDER = "@sha256:" + 64 * "0"


def test_ray_cluster_yaml_is_what_the_overlay_spot_renders() -> None:
    """After a change: `make ray-cluster.yaml`."""
    assert yaml.safe_load((ROOT / "ray-cluster.yaml").read_text()) == cluster_in("spot")


def test_the_autoscaler_of_ray_reads_the_groups_as_they_are_meant() -> None:
    """By the function with which it reads a RayCluster from Kubernetes."""
    read: Any = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster_in("spot"))
    types = read["available_node_types"]
    assert set(types) == {"headgroup", "cpu", "a100", "a100-spot"}
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert "GPU" not in types["headgroup"]["resources"] | types["cpu"]["resources"]
    for name in ("a100", "a100-spot"):
        assert types[name]["resources"]["GPU"] == 8
        assert types[name]["resources"]["CPU"] >= 8 * per_rank(_flagship().cluster)["CPU"]
    assert [types[name]["min_workers"] for name in ("cpu", "a100", "a100-spot")] == [0, 0, 0]
    assert types["a100"]["priority"] > types["a100-spot"]["priority"], "what stays comes first"
    machines = types["a100"]["max_workers"] + types["a100-spot"]["max_workers"]
    assert machines * 8 == _flagship().cluster.workers


def test_spot_ranks_give_way_to_others_and_the_head_to_nobody() -> None:
    objects = rendered("overlays/spot")
    values = {c["metadata"]["name"]: c["value"] for c in of_kind(objects, "PriorityClass")}
    found = {
        pod["metadata"]["name"]: values[pod["spec"]["priorityClassName"]]
        for pod in pods(of_kind(objects, "RayCluster"))
    }
    assert found["head"] > found["a100"] > found["cpu"] > found["a100-spot"]
    selectors = [
        pod["spec"].get("nodeSelector", {}).get("karpenter.sh/capacity-type")
        for pod in pods(of_kind(objects, "RayCluster"))
    ]
    assert selectors == ["on-demand", None, "on-demand", "spot"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_asked_for_is_the_limit(overlay: str) -> None:
    for pod in pods(rendered(f"overlays/{overlay}")):
        for container in containers(pod):
            resources = container["resources"]
            assert resources["requests"] == resources["limits"], pod["metadata"]["name"]
            assert {"cpu", "memory"} <= set(resources["limits"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_fit_into_shared_memory_and_that_into_the_pods(overlay: str) -> None:
    cluster = cluster_in(overlay)
    for owner in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        spec = owner["template"]["spec"]
        memory = quantity(spec["containers"][0]["resources"]["limits"]["memory"])
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        (shared,) = (
            volumes[mount["name"]]["emptyDir"]
            for mount in spec["containers"][0]["volumeMounts"]
            if mount["mountPath"] == "/dev/shm"
        )
        assert shared["medium"] == "Memory"
        store = int(owner["rayStartParams"]["object-store-memory"])
        assert store < quantity(shared["sizeLimit"]) <= memory / 2
        assert all("sizeLimit" in v["emptyDir"] for v in volumes.values() if "emptyDir" in v)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_of_workers_drains_its_node_and_has_the_time_for_a_checkpoint(overlay: str) -> None:
    for found in cluster_in(overlay)["spec"]["workerGroupSpecs"]:
        spec = found["template"]["spec"]
        hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[:4] == ["python", "-m", "panthalassa.drain", "--seconds"]
        seconds = int(hook[4])
        assert seconds + 15 <= spec["terminationGracePeriodSeconds"]
        if found["groupName"] != "cpu":
            assert seconds > CHECKPOINT
        if found["groupName"] == "a100-spot":
            assert spec["terminationGracePeriodSeconds"] < 120, "what a cloud gives"
            kept = found["template"]["metadata"].get("annotations", {})
            assert "karpenter.sh/do-not-disrupt" not in kept, "it would not be evicted in time"


def test_a_group_of_machines_holds_what_a_run_writes_there() -> None:
    spec = group(cluster_in("production"), "a100")["template"]["spec"]
    room = quantity(spec["containers"][0]["resources"]["limits"]["ephemeral-storage"])
    logs = sum(
        quantity(volume["emptyDir"]["sizeLimit"])
        for volume in spec["volumes"]
        if "medium" not in volume["emptyDir"]
    )
    assert _flagship().stream.cache_gigabytes * 1e9 + logs < room


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_bring_the_overlays_cluster_and_nothing_else(overlay: str) -> None:
    jobs = rendered(f"jobs/{overlay}")
    assert [(job["kind"], job["metadata"]["name"]) for job in jobs] == [
        ("RayJob", "prepare"),
        ("RayJob", "pretrain"),
        ("RayJob", "sweep"),
    ]
    for job in jobs:
        assert job["metadata"]["namespace"] == NAMESPACE
        assert job["metadata"]["labels"]["panthalassa/job"] == job["metadata"]["name"]
        assert job["spec"]["rayClusterSpec"] == cluster_in(overlay)["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_jobs_start_exists_and_is_configured(overlay: str) -> None:
    for job in rendered(f"jobs/{overlay}"):
        python, script, flag, config, *overrides = shlex.split(job["spec"]["entrypoint"])
        assert (python, flag) == ("python", "--config")
        assert script == f"jobs/{job['metadata']['name']}.py"
        assert (ROOT / script).is_file()
        command = COMMANDS[job["metadata"]["name"]]
        loaded = read_config(ROOT / config, overrides, command)
        places = [loaded.corpus.directory, loaded.run.directory]
        assert all(
            place.startswith(("/", "s3://")) for place in places[: 1 + (command != "prepare")]
        )


def test_a_run_has_room_in_the_dev_cluster() -> None:
    """The job of `dev` asks for as many ranks as one node of the group holds beside a reading task."""
    (job,) = (j for j in rendered("jobs/dev") if j["metadata"]["name"] == "pretrain")
    _, _, _, config, *overrides = shlex.split(job["spec"]["entrypoint"])
    cluster = load(ROOT / config, overrides).cluster
    node = group(cluster_in("dev"), "cpu")
    cpus = quantity(node["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert node["minReplicas"] == 1
    assert cluster.workers * cluster.cpus_per_worker + 0.5 <= cpus


def test_versions_are_those_of_the_lock() -> None:
    pins = dict(re.findall(r"(?m)^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    assert cluster_in("production")["spec"]["rayVersion"] == pins["ray"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_named_by_digest_outside_dev(overlay: str) -> None:
    images = {c["image"] for pod in pods(rendered(f"overlays/{overlay}")) for c in containers(pod)}
    if overlay == "dev":
        assert all(re.fullmatch(r"[a-z]+:[a-z0-9.]+", image) for image in images)
    else:
        assert all(re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", image) for image in images)


def test_no_image_is_a_placeholder() -> None:
    images = {c["image"] for pod in pods(rendered("overlays/spot")) for c in containers(pod)}
    unknown = sorted(image for image in images if image.endswith(PLACEHOLDER))
    if len(unknown) == len(images):
        pytest.skip("no image was built yet: k8s/images has zeros for all digests")
    assert unknown == []


@pytest.mark.parametrize("path", sorted((ROOT / "k8s").rglob("kustomization.yaml"), key=str))
def test_patches_are_lists_of_operations(path: Any) -> None:
    """A strategic merge would replace all groups of workers by the one that it names."""
    content: Object = yaml.safe_load(path.read_text())
    assert not {"patchesStrategicMerge", "patchesJson6902"} & set(content)
    for patch in content.get("patches", []):
        operations = yaml.safe_load(patch["patch"])
        assert all({"op", "path"} <= set(operation) for operation in operations)


def _flagship() -> Any:
    return load(ROOT / "jobs/configs/panthalassa-12b.yaml")
