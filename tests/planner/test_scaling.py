"""The same run on other numbers of GPUs: each as if it had been asked for, and why not on others."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.planner.assume import Assumed
from panthalassa.planner.hardware import cluster, gpu
from panthalassa.planner.layout import Layout, Workload, feasible
from panthalassa.planner.memory import footprints
from panthalassa.planner.plan import Plan, make_plan
from panthalassa.planner.scaling import Scaling, scale

MODEL = {"vocabulary_size": 64, "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2}
TREE = {
    "run": {"name": "test"},
    "corpus": {"directory": "nowhere"},
    "model": {**MODEL, "head_size": 16, "ffn_size": 64},
    "parallel": {"precision": "bf16", "compile": True},
    "train": {"steps": 10**9, "global_batch": 2, "micro_batch": 1, "sequence_length": 64},
}
CONFIG = build(TREE, [], "test", Config)
"""Samples for two data-parallel ranks: four GPUs need tensor-parallel groups of two."""
WORKLOAD = Workload.of(CONFIG)
PLACE = cluster(gpu("a100-80gb"), 4)
pytestmark = pytest.mark.usefixtures("home_of_traces")


def ask(memory: float = PLACE.gpu.memory) -> Plan:
    """A plan for four GPUs of so many bytes."""
    return make_plan(CONFIG, replace(PLACE, gpu=replace(PLACE.gpu, memory=memory)))


@pytest.fixture(scope="module")
def found(home_of_traces: None) -> Scaling:
    layouts = [layout for gpus in (1, 2, 4) for layout in feasible(WORKLOAD, gpus, gpus)]
    needed = [layout for layout in layouts if layout.gpus == 1 or layout.shards > 1]
    footprints(WORKLOAD, needed, gpus=4)  # all traces in one go
    return scale(ask())


def test_a_run_is_planned_on_powers_of_two_as_far_as_its_batch_allows(found: Scaling) -> None:
    assert [plan.cluster.gpus for plan in found.plans] == [1, 2, 4]
    assert found.above.startswith("on 8, 8 data-parallel ranks share global_batch=2: ")
    for plan in found.plans:
        assert plan.workload == WORKLOAD
        assert plan.cluster.gpus_per_node == plan.cluster.gpus
        assert plan.ranking[0].fits
        assert plan.best.rate <= found.best_rate
    assert found.plans[2] == ask()


def test_what_a_rank_needs_elsewhere_is_what_a_trace_of_its_own_would_tell(found: Scaling) -> None:
    layouts = [found.plans[1].best.layout, Layout(2, 1, 1, 1, "full", keep_gathered=False)]
    assert footprints(WORKLOAD, layouts, gpus=4) == footprints(WORKLOAD, layouts)


def test_the_fewest_gpus_are_those_on_which_it_fits(found: Scaling) -> None:
    one, two = (min(each.footprint.peak for each in plan.ranking) for plan in found.plans[:2])
    assert one > two
    reserve = Assumed().reserve
    memory = ((one + two) / 2 + 1e9 * reserve.reserved_gb) / (1 - reserve.fragments)
    tight = scale(ask(memory))
    assert [plan.cluster.gpus for plan in tight.plans] == [2, 4]
    assert tight.below.startswith("on 1, the leanest layout needs ")


def test_the_command_writes_the_page_where_it_can(found: Scaling, tmp_path: Path) -> None:
    config, page = tmp_path / "small.yaml", tmp_path / "plan.html"
    config.write_text(yaml.safe_dump(TREE))
    arguments = ["plan", str(config), "--gpus", "4", "--html"]
    assert CliRunner().invoke(app, [*arguments, str(page)]).exit_code == 0
    assert f"{found.plans[0].best.rate:,.0f}" in page.read_text()
    refused = CliRunner().invoke(app, [*arguments, str(tmp_path / "nowhere" / "plan.html")])
    assert refused.exit_code == 1
    assert "name a file in a folder that is yours" in refused.output
