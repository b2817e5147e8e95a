"""All of k8s/ is what Kubernetes and KubeRay take, field by field; unknown fields are refused."""

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import OVERLAYS, Object, cluster_in, of_kind, pods, rendered

JOBS = [f"jobs/{overlay}" for overlay in OVERLAYS]
EVERYTHING = [*(f"overlays/{overlay}" for overlay in OVERLAYS), *JOBS]
RELEASE = "1.34"
"""Of Kubernetes, against whose schemas core kinds are held."""
FOREIGN = {"ray.io/v1", "monitoring.coreos.com/v1", "kueue.x-k8s.io/v1beta2"}
"""Kinds that Kubernetes does not know. Schemas of the last two are not here."""


@pytest.mark.parametrize("path", EVERYTHING)
def test_core_kinds_and_the_pods_that_come_of_all_are_what_kubernetes_takes(path: str) -> None:
    objects = rendered(path)
    core = [found for found in objects if found["apiVersion"] not in FOREIGN]
    built = list(pods(objects))
    assert built
    for found in [*core, *built]:
        kubernetes_validate.validate(found, RELEASE, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_refused() -> None:
    pod = next(pods(rendered("overlays/dev")))
    pod["spec"]["priorityclassName"] = "high"
    with pytest.raises(kubernetes_validate.ValidationError, match="priorityclassName"):
        kubernetes_validate.validate(pod, RELEASE, strict=True)


@pytest.mark.parametrize("path", EVERYTHING)
def test_ray_kinds_are_what_kuberay_takes(path: str) -> None:
    found = of_kind(rendered(path), "RayCluster", "RayJob")
    assert found
    for resource in found:
        errors = [error.json_path for error in validator(resource["kind"]).iter_errors(resource)]
        assert errors == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda spec: spec.update(autoscalerOption={}), "$.spec"),
        (lambda spec: spec["authOptions"].update(mode="tokens"), "$.spec.authOptions.mode"),
        (lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"), "$.spec.workerGroupSpecs[0]"),
        (
            lambda spec: spec["headGroupSpec"]["template"]["spec"].update(nodeselector={}),
            "$.spec.headGroupSpec.template.spec",
        ),
    ],
)
def test_what_kuberay_does_not_know_is_refused(change: Any, place: str) -> None:
    cluster = cluster_in("dev")
    change(cluster["spec"])
    assert [error.json_path for error in validator("RayCluster").iter_errors(cluster)] == [place]


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Of the stored version of KubeRay's custom resource, closed against unknown fields."""
    folder = os.environ.get("PANTHALASSA_CRDS")
    if not folder:
        pytest.skip(
            "PANTHALASSA_CRDS names no folder of KubeRay 1.7's custom resource definitions; "
            "KubeRay publishes them in helm-chart/kuberay-operator/crds of its repository"
        )
    text = (Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (found["schema"]["openAPIV3Schema"] for found in versions if found["storage"])
    return jsonschema.Draft202012Validator(_closed(schema))


def _closed(schema: Object) -> Object:
    """The schema without room for what it does not name, as Kubernetes prunes it."""
    closed = copy.copy(schema)
    if "properties" in schema:
        closed["properties"] = {key: _closed(value) for key, value in schema["properties"].items()}
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        closed.setdefault("additionalProperties", open_ended)
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    return closed
