"""Prometheus finds the ports, the alerts ask for metrics that exist, and they fire when they should."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import Object, cluster_in, of_kind, pods, rendered

from panthalassa.tracking.prometheus import GAUGES

OTHERS = {"DCGM_FI_DEV_GPU_UTIL", "kube_pod_status_phase"}
"""Metrics of NVIDIA's exporter and of kube-state-metrics that the alerts use."""


def _rules() -> Object:
    (found,) = of_kind(rendered("monitoring"), "PrometheusRule")
    return found["spec"]


def test_alerts_ask_for_metrics_that_exist() -> None:
    (group,) = _rules()["groups"]
    for rule in group["rules"]:
        asked = set(re.findall(r"\b(?:ray_\w+|DCGM_\w+|kube_\w+)", rule["expr"]))
        assert asked, rule["alert"]
        assert asked <= OTHERS | {f"ray_{name}" for name in GAUGES}
        assert {"summary", "action"} == set(rule["annotations"])


def test_a_pod_that_waits_is_told_of_before_the_autoscaler_gives_it_up() -> None:
    (group,) = _rules()["groups"]
    (rule,) = (rule for rule in group["rules"] if rule["alert"] == "PlacementPending")
    (entry,) = cluster_in("spot")["spec"]["autoscalerOptions"]["env"]
    assert entry["name"] == "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    assert 60 * int(rule["for"].removesuffix("m")) < int(entry["value"])


def test_monitors_name_ports_of_the_pods() -> None:
    objects = rendered("overlays/spot")
    found = list(pods(objects))
    for monitor in of_kind(objects, "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [pod for pod in found if wanted <= pod["metadata"]["labels"].items()]
        assert chosen, monitor["metadata"]["name"]
        for pod in chosen:
            ports = {p["name"]: p for p in pod["spec"]["containers"][0].get("ports", [])}
            ports.setdefault("metrics", {"containerPort": 8080})  # the operator adds it
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                assert endpoint["port"] in ports


RUN = '{run="r"}'
GPU = 'DCGM_FI_DEV_GPU_UTIL{namespace="panthalassa", pod="a100-1", gpu="0"}'
PENDING = 'kube_pod_status_phase{namespace="panthalassa", phase="Pending", pod="a100-1"}'
STEP, SAVED = f"ray_panthalassa_step{RUN}", f"ray_panthalassa_checkpoint_timestamp_seconds{RUN}"
GOODPUT = f"ray_panthalassa_goodput_ratio{RUN}"


@pytest.mark.parametrize(
    ("alert", "series", "bad", "good"),
    [
        ("GpuIdle", GPU, "0x60", "90x60"),
        ("CheckpointOld", SAVED, "0x60", "0+60x60"),
        ("RunRestartsOften", STEP, "9 5 9 5 9 5 9 5 9+0x52", "0+5x60"),
        ("PlacementPending", PENDING, "1x60", "0x50 1x8"),
        ("GoodputLow", GOODPUT, "0.5x60", "0.95x60"),
    ],
)
def test_alerts_fire_when_they_should_and_only_then(
    alert: str, series: str, bad: str, good: str, tmp_path: Path
) -> None:
    """In Prometheus' own engine, after an hour of a value each minute."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there (Debian's package prometheus)")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(_rules()))
    for values, count in ((bad, 1), (good, 0)):
        query = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
        case = {
            "interval": "1m",
            "input_series": [{"series": series, "values": values}],
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": "59m",
                    "exp_samples": [{"labels": "{}", "value": count}],
                }
            ],
        }
        tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(tests))
        done = subprocess.run(
            [promtool, "test", "rules", str(tmp_path / "test.yaml")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
