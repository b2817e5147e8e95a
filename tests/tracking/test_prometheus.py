"""The gauges are at Ray's metrics port, and the dashboard shows each of them and no other."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from panthalassa.tracking.prometheus import GAUGES, Gauges

DASHBOARD = Path(__file__).parents[2] / "k8s" / "monitoring" / "grafana-dashboard.json"


def test_the_dashboard_shows_exactly_the_gauges() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = [name for text in expressions for name in re.findall(r"ray_\w+", text)]
    assert sorted(shown) == sorted(f"ray_{name}" for name in GAUGES)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    by = {
        name for text in expressions for name in re.findall(r'by \((\w+)\)|\{(\w+)=~"\$run"', text)
    }
    assert by == {("run", ""), ("", "run")}, "the gauges' only tag"


def test_ray_exports_the_gauges(ray_cluster: str) -> None:
    """Under the names that the dashboard asks for, on the node's metrics port."""
    import ray

    values = {name.removeprefix("panthalassa_"): n / 8 for n, name in enumerate(GAUGES, 1)}
    absent = "joules_per_iteration"
    Gauges("scraped").set(**{**values, absent: None})
    port = ray.nodes()[0]["MetricsExportPort"]  # type: ignore[no-untyped-call]
    expected = {f"ray_panthalassa_{name}": v for name, v in values.items() if name != absent}
    until, found = time.monotonic() + 60, dict[str, float]()
    while found != expected and time.monotonic() < until:
        time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        lines = re.findall(r"(?m)^(ray_panthalassa_\w+)\{(.*)\} (\S+)$", text)
        found = {name: float(value) for name, tags, value in lines if 'run="scraped"' in tags}
    assert found == pytest.approx(expected)
