"""Who may do what in the namespace: pods, tokens, secrets, people, and the flows between pods."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import (
    NAMESPACE,
    OVERLAYS,
    Object,
    containers,
    environment,
    of_kind,
    pods,
    quantity,
    rendered,
)
from ray.autoscaler._private.kuberay import node_provider

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "projected", "secret"} | {
    "persistentVolumeClaim"
}


def beyond_restricted(pod: Object) -> Iterator[str]:
    """What the Pod Security Standard `restricted` has against a pod, sentence by sentence
    (kubernetes.io/docs/concepts/security/pod-security-standards)."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    outer = spec.get("securityContext", {})
    yield from (f"{name}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for volume in spec.get("volumes", []):
        yield from (f"{name}: volume of {kind}" for kind in set(volume) - {"name"} - VOLUMES)
    for container in containers(pod):
        inner = container.get("securityContext") or {}
        both, where = outer | inner, f"{name}/{container['name']}"
        if inner.get("privileged") or inner.get("allowPrivilegeEscalation") is not False:
            yield f"{where} may gain privileges"
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            yield f"{where} may be root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{where} has no seccomp profile"
        capabilities = inner.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"]:
            yield f"{where} keeps capabilities"
        for added in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{where} has {added}"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where} takes a port of the machine"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_keep_to_restricted_but_for_ranks_over_efa(overlay: str) -> None:
    objects = rendered(f"overlays/{overlay}")
    found = [
        line
        for pod in pods(objects)
        if pod["metadata"]["namespace"] == NAMESPACE
        for line in beyond_restricted(pod)
    ]
    efa = ["a100/ray-worker has IPC_LOCK", "a100/wait-gcs-ready has IPC_LOCK"]
    assert sorted(found) == (efa if overlay == "efa" else [])
    enforced = {
        found["metadata"]["name"]: found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for found in of_kind(objects, "Namespace")
    }
    assert enforced.pop("panthalassa-gpus", "privileged") == "privileged"
    assert enforced == {NAMESPACE: "privileged" if overlay == "efa" else "restricted"}
    # Where the label is weaker, a policy of its own stands in.
    assert len(of_kind(objects, "ValidatingAdmissionPolicy")) == (overlay == "efa")


def test_a_pod_that_is_not_restricted_is_seen() -> None:
    pod = next(pods(of_kind(rendered("overlays/dev"), "RayCluster")))
    pod["spec"]["volumes"].append({"name": "root", "hostPath": {"path": "/"}})
    pod["spec"]["hostPID"] = True
    pod["spec"]["securityContext"] = {}
    pod["spec"]["containers"][0]["securityContext"] = {"capabilities": {"add": ["SYS_PTRACE"]}}
    lines = {line.partition("/ray-head ")[2] or line for line in beyond_restricted(pod)}
    assert {
        "head: hostPID",
        "head: volume of hostPath",
        "may gain privileges",
        "may be root",
        "has no seccomp profile",
        "keeps capabilities",
        "has SYS_PTRACE",
    } <= lines


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_autoscaler_gets_a_token_for_kubernetes(overlay: str) -> None:
    holders = []
    for pod in pods(rendered(f"overlays/{overlay}")):
        assert pod["spec"]["automountServiceAccountToken"] is False, pod["metadata"]["name"]
        tokens = {
            volume["name"]
            for volume in pod["spec"].get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                if mount["name"] in tokens:
                    holders.append(container["name"])
                    folder = Path(mount["mountPath"])
                    assert folder / "token" == Path(node_provider.IN_CLUSTER_TOKEN_PATH)
                    assert folder / "ca.crt" == Path(node_provider.IN_CLUSTER_CA_CERT_PATH)
    assert holders == ["autoscaler"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_references_that_must_be_there(overlay: str) -> None:
    objects = rendered(f"overlays/{overlay}")
    assert of_kind(objects, "Secret") == []
    for pod in pods(objects):
        for container in containers(pod):
            for name, entry in environment(container).items():
                assert not name.startswith("AWS_"), "the bucket is reached by workload identity"
                if any(word in name for word in ("PASSWORD", "TOKEN", "KEY", "AUTH", "STORE_URI")):
                    if name in ("MLFLOW_AUTH_CONFIG_PATH", "RAY_AUTH_MODE"):
                        continue
                    reference = entry["valueFrom"]["secretKeyRef"]
                    assert not reference.get("optional")
    accounts = of_kind(objects, "ServiceAccount")
    assert all("eks.amazonaws.com/role-arn" in a["metadata"]["annotations"] for a in accounts)
    assert not any(account["automountServiceAccountToken"] for account in accounts)


def test_people_who_train_make_nothing_but_jobs_and_read_no_secret_but_their_token() -> None:
    (role,) = of_kind(rendered("overlays/production"), "Role")
    for rule in role["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["get"]
            assert rule["resourceNames"] == [NAMESPACE]
        if {"create", "delete", "update", "patch"} & set(rule["verbs"]):
            assert rule["resources"] in (["rayjobs"], ["pods/portforward"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_quota_holds_all_that_the_groups_may_become(overlay: str) -> None:
    """In dev also those of a job with a cluster of its own; elsewhere jobs share what there is."""
    objects = rendered(f"overlays/{overlay}")
    job = rendered("jobs/dev")[:1] if overlay == "dev" else []
    (quota,) = of_kind(objects, "ResourceQuota")
    (cluster,) = of_kind(objects, "RayCluster")
    counts = {g["groupName"]: g["maxReplicas"] for g in cluster["spec"]["workerGroupSpecs"]}
    for name in ("cpu", "memory", "nvidia.com/gpu"):
        total = sum(
            quantity(container["resources"]["limits"].get(name, 0))
            * counts.get(pod["metadata"]["name"], 1)
            for pod in pods(objects + job)
            if pod["metadata"]["namespace"] == NAMESPACE
            for container in pod["spec"]["containers"]
        )
        most = quota["spec"]["hard"].get(
            f"limits.{name}", quota["spec"]["hard"].get(f"requests.{name}")
        )
        assert total <= (quantity(most) if most else 0), name


def test_no_head_may_be_evicted() -> None:
    (budget,) = of_kind(rendered("overlays/production"), "PodDisruptionBudget")
    assert budget["spec"]["selector"] == {"matchLabels": {"ray.io/node-type": "head"}}
    assert budget["spec"]["minAvailable"] >= 1000, "a number: pods of an operator have no scale"


# The flows. A pod is its labels and its namespace's name; None stands for the internet.

PROMETHEUS = ({"app": "prometheus"}, "monitoring")
OPERATOR = ({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
STRANGER = ({"app": "notebook"}, NAMESPACE)
NAMES = ({"k8s-app": "kube-dns"}, "kube-system")
NEEDED = [
    ("head", "a100", 23456),
    ("a100", "head", 6379),
    ("a100", "cpu", 34567),
    ("a100", "a100-spot", 45678),
    ("head", "redis", 6379),
    ("head", "mlflow", 5000),
    ("mlflow", "postgres", 5432),
    ("operator", "head", 8265),
    ("prometheus", "head", 8080),
    ("prometheus", "head", 44217),
    ("prometheus", "a100", 8080),
    ("a100", "names", 53),
    ("postgres", "names", 53),
    ("a100", "internet", 443),
    ("head", "internet", 443),
    ("mlflow", "internet", 443),
    ("head", "internet", 6443),
]
FORBIDDEN = [
    ("a100", "redis", 6379),
    ("a100", "mlflow", 5000),
    ("a100", "postgres", 5432),
    ("head", "postgres", 5432),
    ("redis", "head", 6379),
    ("redis", "internet", 443),
    ("postgres", "internet", 443),
    ("a100", "internet", 80),
    ("a100", "internet", 6443),
    ("stranger", "head", 8265),
    ("stranger", "redis", 6379),
    ("stranger", "mlflow", 5000),
    ("stranger", "internet", 443),
    ("operator", "head", 10001),
    ("operator", "a100", 8265),
    ("prometheus", "head", 8265),
    ("prometheus", "redis", 6379),
    ("a100", "metadata", 443),
]


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [(*flow, True) for flow in NEEDED] + [(*flow, False) for flow in FORBIDDEN],
)
def test_pods_reach_what_they_need_and_nothing_else(
    source: str, target: str, port: int, expected: bool
) -> None:
    objects = rendered("overlays/spot")
    ends = {
        pod["metadata"]["name"]: (pod["metadata"]["labels"], pod["metadata"]["namespace"])
        for pod in pods(objects)
    }
    ends |= {"operator": OPERATOR, "prometheus": PROMETHEUS, "stranger": STRANGER, "names": NAMES}
    ends |= {"internet": ({}, "1.2.3.4"), "metadata": ({}, "169.254.169.254")}
    policies = of_kind(objects, "NetworkPolicy")
    leaves = _passes(policies, "Egress", "to", ends[source], ends[target], port)
    arrives = _passes(policies, "Ingress", "from", ends[target], ends[source], port)
    assert (leaves and arrives) is expected


End = tuple[dict[str, str], str]


def _passes(policies: list[Object], kind: str, key: str, own: End, other: End, port: int) -> bool:
    """Whether some policy of `own` lets it through, or none holds it (elsewhere than in ours)."""
    mine = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == own[1] and kind in policy["spec"]["policyTypes"]
        if _selects(policy["spec"]["podSelector"], own[0])
    ]
    if not mine:
        return own[1] != NAMESPACE
    return any(
        (key not in rule or any(_is(peer, other) for peer in rule[key]))
        and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        for spec in mine
        for rule in spec.get(kind.lower(), [])
    )


def _is(peer: Object, end: End) -> bool:
    labels, place = end
    if "ipBlock" in peer:
        return place == "1.2.3.4"  # the only address here that is in none of the excepted ranges
    if "namespaceSelector" in peer:
        inside = _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": place})
    else:
        inside = place == NAMESPACE
    return inside and _selects(peer.get("podSelector", {}), labels)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    for expression in selector.get("matchExpressions", []):
        there = expression["key"] in labels
        if expression["operator"] == "In":
            there = labels.get(expression["key"]) in expression["values"]
        wanted = wanted and there
    return wanted


def test_redis_without_a_password_does_not_start(tmp_path: Path) -> None:
    done = _start_redis(tmp_path, "")
    assert done.returncode != 0
    assert "REDIS_PASSWORD: is empty: put the password into the secret redis" in done.stderr


def test_redis_gets_its_password_by_standard_input_and_signals_by_itself(tmp_path: Path) -> None:
    done = _start_redis(tmp_path, "s3cret")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "arguments: - --dir /data --appendonly yes",
        f"parent: {os.getpid()}",
        'requirepass "s3cret"',
    ]


def _start_redis(folder: Path, password: str) -> "subprocess.CompletedProcess[str]":
    """Run the container's command with a server that tells how it was called."""
    (pod,) = (p for p in pods(rendered("overlays/dev")) if p["metadata"]["name"] == "redis")
    container = pod["spec"]["containers"][0]
    server = folder / "redis-server"
    server.write_text('#!/bin/sh\necho "arguments: $*"\necho "parent: $PPID"\ncat\n')
    server.chmod(0o755)
    return subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "REDIS_PASSWORD": password},
        capture_output=True,
        text=True,
        timeout=10,
    )
