"""The page of a sweep in a real browser: drawn, readable on a phone, with its trials, inert."""

import csv
import io
from pathlib import Path

import pytest
from browsers import PIXELS, Page
from ladders import ladder, search

from panthalassa.storage import open_storage
from panthalassa.sweep.ladder import Question, answer, study
from panthalassa.sweep.page import write_page

BLUE, ORANGE, GREY, RED = "63,135,214", "217,115,13", "138,147,157", "200,50,75"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">{{7*7}}</script>"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    write_page(open_storage(str(folder)), search(open_storage(str(folder)), HOSTILE))
    return folder / "sweep.html"


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = open_storage(str(tmp_path_factory.mktemp("climbed")))
    trials = ladder(folder)
    found = study(folder, trials)
    write_page(folder, trials, found, list(answer(Question(), found)))
    return Path(folder.uri) / "scaling.html"


def test_trials_are_drawn_by_their_objective_and_failures_are_crossed(
    page: Page, searched: Path
) -> None:
    page.open(searched)
    drawn = {name: set(colours) for name, colours in page.run(PIXELS).items()}
    assert RED in drawn["figure-parallel"]
    warmth = [int(r) - int(b) for r, _, b in (c.split(",") for c in drawn["figure-parallel"])]
    assert min(warmth) < -60, "the best are blue"
    assert max(warmth) > 60, "the worst are orange"
    assert {BLUE, ORANGE} <= drawn["figure-front"]
    rows = page.value("document.querySelectorAll('table.trials tbody tr').length")
    assert rows == 14
    cards = page.value("document.querySelector('.cards').innerText")
    assert "5 stopped, 2 failed, 1 running" in cards


def test_a_ladder_shows_its_law_and_what_it_says_of_a_cluster(page: Page, climbed: Path) -> None:
    page.open(climbed)
    drawn = {name: set(colours) for name, colours in page.run(PIXELS).items()}
    assert {BLUE, ORANGE, GREY} <= drawn["figure-law"]
    said = page.value("document.querySelector('table.law').innerText")
    for part in ("alpha", "beta", "for both", "an extrapolation", "Besiroglu 2024", "below the"):
        assert part in said
    assert "With model.hidden_size change model.heads" in page.value("document.body.innerText")


@pytest.mark.parametrize("which", ["searched", "climbed"])
def test_a_phone_shows_a_sweep_without_scrolling_sideways(
    page: Page, which: str, request: pytest.FixtureRequest
) -> None:
    page.open(request.getfixturevalue(which), width=390, dark=True, touch=True)
    assert page.value("document.documentElement.scrollWidth") == 390


def test_what_a_trial_says_is_only_text_and_all_of_it_is_in_the_file(
    page: Page, searched: Path
) -> None:
    page.open(searched)
    assert page.value("document.images.length") == 0
    assert "owned" not in page.value("document.title")
    rows = list(csv.DictReader(io.StringIO(page.download("button.csv"))))
    assert HOSTILE in {row["train.schedule.kind"] for row in rows}
    assert [row["problem"] for row in rows if row["state"] == "failed"] == [
        "diverged: its held-out loss is nan after step 20"
    ] * 2
