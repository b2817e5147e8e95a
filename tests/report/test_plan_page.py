"""The page of a plan in a real browser: drawn, readable on a phone, with its numbers, inert."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from browsers import PIXELS, Page

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.errors import ConfigError
from panthalassa.planner.assume import Assumed
from panthalassa.planner.calibration import factors
from panthalassa.planner.hardware import cluster, gpu
from panthalassa.planner.layout import Workload, feasible
from panthalassa.planner.memory import Footprint
from panthalassa.planner.plan import Plan, planned
from panthalassa.planner.rank import Candidate, counted
from panthalassa.planner.scaling import Scaling
from panthalassa.planner.speed import speed
from panthalassa.report.plan import check_file, render

MODEL = {"vocabulary_size": 32_000, "hidden_size": 1024, "layers": 12, "heads": 16, "kv_heads": 8}
TREE = {
    "run": {"name": "test"},
    "corpus": {"directory": "nowhere"},
    "model": {**MODEL, "head_size": 64, "ffn_size": 4096},
    "parallel": {"precision": "bf16", "compile": True},
    "train": {"steps": 10_000, "global_batch": 256, "micro_batch": 1, "sequence_length": 2048},
}
CONFIG = build(TREE, [], "test", Config)
WORKLOAD = Workload.of(CONFIG)
BLUE, ORANGE, GREY, RED = "63,135,214", "217,115,13", "138,147,157", "200,50,75"
ACTIVATIONS, WAITED = "238,136,102", "238,136,102"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">{{7*7}}</script>"


def plan_on(gpus: int) -> Plan:
    """Real speeds, and memories that are made up: 1 GB more for each layout, the fastest the leanest."""
    place = cluster(gpu("a100-80gb"), gpus)
    found = []
    for layout in feasible(WORKLOAD, gpus, place.gpus_per_node):
        takes = speed(counted(WORKLOAD, layout, place.gpus_per_node, True), place, factors())
        need = Footprint(*(10**9 * size for size in (1, 2, 3, 4, 50, 6, 0)), "clipping", 1, 1, ())
        found.append(Candidate(layout, True, need, takes, 72e9))
    found.sort(key=lambda one: -one.rate)
    ranking = [
        replace(one, footprint=replace(one.footprint, temporaries=6 * 10**9 + number * 10**9))
        for number, one in enumerate(found)
    ]
    return planned(CONFIG, place, ranking, 1e11, Assumed(), None, HOSTILE)


@pytest.fixture(scope="module")
def scaled() -> Scaling:
    return Scaling([plan_on(gpus) for gpus in (4, 8, 16, 32, 64)], "too small", "too many")


@pytest.fixture(scope="module")
def drawn(scaled: Scaling, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plan") / "plan.html"
    file.write_text(render(scaled.plans[2], HOSTILE, scaled))
    return file


def test_each_figure_shows_what_it_tells(page: Page, drawn: Path) -> None:
    page.open(drawn)
    found = {name: set(colours) for name, colours in page.run(PIXELS).items()}
    for name in ("days", "speed", "efficiency"):
        assert {BLUE, ORANGE, GREY} <= found[f"figure-{name}"], name
    assert {BLUE, ORANGE} <= found["figure-energy"]
    assert {ACTIVATIONS, RED} <= found["figure-memory"]
    assert WAITED in found["figure-step"], "tensor parallelism waits"


def test_the_numbers_are_those_of_the_plan(page: Page, drawn: Path, scaled: Scaling) -> None:
    page.open(drawn)
    asked = scaled.plans[2]
    text = page.value("document.body.innerText")
    assert f"{asked.best.rate:,.0f}" in page.value("document.querySelector('.cards').innerText")
    for told in ("too small", "too many", asked.verdict, "kg_co2_per_kwh", "does not fit"):
        assert told in text
    rows = list(csv.DictReader(io.StringIO(page.download("button[data-from='data-gpus']"))))
    assert [int(row["GPUs"]) for row in rows] == [4, 8, 16, 32, 64]
    days = [float(row["days"]) for row in rows]
    assert days == pytest.approx([plan.expected_days for plan in scaled.plans])
    layouts = list(csv.DictReader(io.StringIO(page.download("button[data-from='data-layouts']"))))
    assert len(layouts) == len(asked.ranking)
    assert sum(row["fits"] == "True" for row in layouts) == 7


def test_a_phone_shows_a_plan_without_scrolling_sideways(page: Page, drawn: Path) -> None:
    page.open(drawn, width=390, dark=True, touch=True)
    assert page.value("document.documentElement.scrollWidth") == 390


def test_names_are_only_text(page: Page, drawn: Path) -> None:
    page.open(drawn)
    assert page.value("document.images.length") == 0
    assert page.value("document.querySelector('h1').textContent") == HOSTILE


def test_a_place_that_takes_no_page_is_refused_before_anything_is_planned(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "nowhere" / "plan.html"):
        with pytest.raises(ConfigError, match="name a file in a folder"):
            check_file(file)
    check_file(tmp_path / "plan.html")
