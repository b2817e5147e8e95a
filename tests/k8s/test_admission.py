"""The policy that stands in for `restricted` over EFA lets the manifests' pods pass, and no others."""

from typing import Any

import cel
import pytest
from manifests import NAMESPACE, Object, of_kind, pods, rendered


def refusals(pod: Object) -> list[str]:
    """What the policy says to a pod, by an evaluator of its language."""
    (policy,) = of_kind(rendered("overlays/efa"), "ValidatingAdmissionPolicy")
    values: Object = {"object": pod, "variables": {}}
    for variable in policy["spec"]["variables"]:
        values["variables"][variable["name"]] = cel.evaluate(variable["expression"], values)
    return [
        rule["message"]
        for rule in policy["spec"]["validations"]
        if not cel.evaluate(rule["expression"], values)
    ]


def test_the_pods_of_the_manifests_pass() -> None:
    for pod in pods(rendered("overlays/efa")):
        if pod["metadata"]["namespace"] == NAMESPACE:
            assert refusals(pod) == [], pod["metadata"]["name"]


def _ray(pod: Object) -> Object:
    return pod["spec"]["containers"][0]["securityContext"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pod: pod["spec"].pop("securityContext"), "run as a user"),
        (lambda pod: pod["spec"]["securityContext"].update(runAsNonRoot=False), "run as a user"),
        (lambda pod: _ray(pod).update(privileged=True), "gain no privileges"),
        (lambda pod: _ray(pod).pop("allowPrivilegeEscalation"), "gain no privileges"),
        (lambda pod: _ray(pod).update(runAsNonRoot=False), "do not change that"),
        (lambda pod: _ray(pod)["capabilities"].update(add=["SYS_ADMIN"]), "may have IPC_LOCK"),
        (lambda pod: _ray(pod)["capabilities"].update(drop=[]), "drop all capabilities"),
        (lambda pod: pod["metadata"]["labels"].update({"ray.io/group": "cpu"}), "IPC_LOCK"),
        (lambda pod: pod["spec"].update(hostNetwork=True), "see nothing of the machine"),
        (
            lambda pod: pod["spec"]["volumes"].append({"name": "r", "hostPath": {"path": "/"}}),
            "see nothing of the machine",
        ),
        (
            lambda pod: pod["spec"]["containers"][0].update(ports=[{"hostPort": 8080}]),
            "see nothing of the machine",
        ),
        (
            lambda pod: pod["spec"].update(
                ephemeralContainers=[{"securityContext": _ray(pod) | {"privileged": True}}]
            ),
            "gain no privileges",
        ),
    ],
)
def test_other_pods_do_not(change: Any, message: str) -> None:
    (rank,) = (p for p in pods(rendered("overlays/efa")) if p["metadata"]["name"] == "a100")
    change(rank)
    (said,) = refusals(rank)
    assert message in said
