"""The page in a real browser: drawn, readable on a phone, light and dark, with its data, inert."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from browsers import PIXELS, Page
from reports import FIGURES, write_page, write_run
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from panthalassa.report.page import write_report
from panthalassa.storage import open_storage

BLUE, ORANGE, GREEN = "63,135,214", "217,115,13", "68,187,153"
RANGE = "(() => {{ const r = Bokeh.documents[0].roots()[{0}].{1}; return [r.start, r.end] }})()"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("one"), 400)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_run(open_storage(str(folder / "tide")), 300, "tide", joules=187.2, seed=1)
    return write_page(folder, 400, beside=folder / "tide")


def test_every_figure_is_drawn(page: Page, one: Path, tmp_path: Path) -> None:
    page.open(one)
    drawn = page.run(PIXELS)
    assert set(drawn) == {f"figure-{name}" for name in FIGURES}
    for figure, colours in drawn.items():
        assert (GREEN if "goodput" in figure else BLUE) in colours, figure
    assert page.screenshot(tmp_path / "page.png")[:8] == b"\x89PNG\r\n\x1a\n"


def test_two_runs_stand_side_by_side_in_colours_of_their_own(page: Page, two: Path) -> None:
    page.open(two)
    for figure, colours in page.run(PIXELS).items():
        wanted = {GREEN} if "goodput" in figure else {BLUE, ORANGE}
        assert wanted <= set(colours), figure
    rows = page.value("document.querySelector('.compare').innerText")
    assert re.search(
        r"energy an iteration\s+240 J ± 5.\d%\s.*\s+187 J ± 5.\d%\s.*\s+−22\.0 %", rows
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("count", ["one", "two"])
def test_a_phone_shows_it_without_scrolling_sideways(
    page: Page, count: str, dark: bool, request: pytest.FixtureRequest
) -> None:
    page.open(request.getfixturevalue(count), width=390, dark=dark, touch=True)
    assert page.value("document.documentElement.scrollWidth") == 390
    right = "Math.max(...[...document.querySelectorAll('figure')].map((f) => {}))"
    assert page.value(right.format("f.getBoundingClientRect().right")) <= 390
    tools = "Bokeh.documents[0].roots().flatMap((p) => p.toolbar.tools)"
    page.wait(f"!{tools}.some((t) => t.type === 'BoxZoomTool' && t.active)")  # fingers scroll


def test_light_and_dark_follow_the_system_and_the_button(page: Page, one: Path) -> None:
    def paper() -> str:
        return str(page.value("getComputedStyle(document.body).backgroundColor"))

    page.open(one)
    assert paper() == "rgb(255, 255, 255)"
    light = set(page.run(PIXELS)["figure-loss"])
    page.system(dark=True)
    assert paper() == "rgb(20, 24, 29)"
    page.wait("new Promise((done) => setTimeout(() => done(true), 500))")
    dark = set(page.run(PIXELS)["figure-loss"])
    assert "91,101,112" in light - dark, "the axes' labels are dark on white"
    assert "154,165,177" in dark - light, "and light on black"
    page.run("document.getElementById('theme').click()")
    assert paper() == "rgb(255, 255, 255)"
    page.system(dark=False)
    page.run("document.getElementById('theme').click()")
    assert paper() == "rgb(20, 24, 29)"


def test_zooming_into_one_figure_zooms_all_over_steps(page: Page, one: Path) -> None:
    page.open(one)
    figure = page.driver.find_element(By.CSS_SELECTOR, "#figure-loss .plot")
    page.run("document.querySelector('#figure-loss').scrollIntoView({block: 'center'})")
    before = page.value(RANGE.format(0, "x_range"))
    assert before[0] < 1
    assert before[1] > 400
    drag = ActionChains(page.driver).move_to_element_with_offset(figure, -200, -40)
    drag.click_and_hold().move_by_offset(100, 30).move_by_offset(100, 40).release().perform()
    page.wait(f"{RANGE.format(0, 'x_range')}[0] > 50")
    zoomed = page.value(RANGE.format(0, "x_range"))
    assert zoomed[1] - zoomed[0] < 0.3 * (before[1] - before[0])
    assert page.value(RANGE.format(1, "x_range")) == zoomed


def test_the_files_hold_the_data_of_every_step(page: Page, one: Path) -> None:
    page.open(one)
    rows = list(csv.DictReader(io.StringIO(page.download("#figure-loss button.csv"))))
    assert [int(row["step"]) for row in rows] == list(range(1, 401))
    assert float(rows[0]["loss"]) == pytest.approx(8.2, abs=0.4)
    assert sum(bool(row["held_out_loss"]) for row in rows) == 20
    shares = list(csv.DictReader(io.StringIO(page.download("#figure-languages button.csv"))))
    assert sum(int(row["samples"]) for row in shares) == 400 * 8
    parts = list(csv.DictReader(io.StringIO(page.download("#figure-goodput-0 button.csv"))))
    names = [name for name in parts[0] if name not in ("run", "from_second", "to_second")]
    lengths = [float(row["to_second"]) - float(row["from_second"]) for row in parts]
    assert [sum(float(row[name]) for name in names) for row in parts] == pytest.approx(lengths)


HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def test_hostile_names_are_inert(page: Page, tmp_path: Path) -> None:
    run = open_storage(str(tmp_path / "run"))
    write_run(run, 30, languages=["en", HOSTILE, "</script>", "{{7*7}}@name"])
    text = run.read("config.yaml").decode()
    run.write(
        "config.yaml", text.replace("name: ocean", f"name: {json.dumps(HOSTILE)}", 1).encode()
    )
    write_report(run, run)
    page.open(tmp_path / "run" / "report.html")
    assert page.value("document.querySelector('h1 .run').textContent") == f"{HOSTILE} (1)"
    assert page.value("document.images.length") == 0
    assert "owned" not in page.value("document.title.replace(/<.*>/, '')")
    figure = page.driver.find_element(By.CSS_SELECTOR, "#figure-languages .plot")
    page.run("document.querySelector('#figure-languages').scrollIntoView({block: 'center'})")
    ActionChains(page.driver).move_to_element_with_offset(figure, -300, 0).perform()
    assert page.value("document.images.length") == 0
    rows = list(csv.DictReader(io.StringIO(page.download("#figure-languages button.csv"))))
    assert HOSTILE in {row["language"] for row in rows}


def test_what_could_slip_through_is_refused_by_the_policy(
    page: Page, one: Path, tmp_path: Path
) -> None:
    attack = "<script>window.owned = 1</script><img src='https://example.invalid/x'>"
    (tmp_path / "page.html").write_text(one.read_text().replace("<main>", f"<main>{attack}", 1))
    page.open(tmp_path / "page.html")
    assert page.value("window.owned") is None
    refused = page.problems()
    assert len(refused) == 2
    assert all("Content Security Policy" in problem for problem in refused)
