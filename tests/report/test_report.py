"""The command: pages of whole, young and damaged runs, wherever they are; one line for what is none."""

import csv
import io
import math
import re
from pathlib import Path

import pytest
from click.testing import Result
from reports import FIGURES, configuration, write_run
from s3 import BUCKET
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.energy.meters import bound
from panthalassa.report import csv_files
from panthalassa.report.figures import draw
from panthalassa.report.headlines import Headline, difference, duration, si, signed
from panthalassa.report.page import write_report
from panthalassa.report.read import read_run
from panthalassa.storage import Storage, open_storage

LARGEST = 5_000_000
TIMES = ("1 min 0 s", 60.0), ("2 min 0 s", 120.0)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "ocean"))


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def page_of(run: Storage) -> str:
    told = report(run.uri)
    assert told.exit_code == 0, told.output
    assert told.stdout.strip() == f"{run.uri}/report.html"
    return run.read("report.html").decode()


def drawn(page: str) -> set[str]:
    """The figures that are not absent."""
    return set(re.findall(r'data-from="data-([a-z0-9-]+)"', page))


def test_a_whole_run_has_all_figures_and_needs_nothing_from_elsewhere(run: Storage) -> None:
    write_run(run, 50)
    page = page_of(run)
    assert drawn(page) == FIGURES
    assert len(page) < LARGEST
    assert not re.search(r"""<(script|link|img|iframe)[^>]*(src|href)=""", page)
    assert "50 of 50" in page
    assert "restart" in page


def test_a_run_on_object_storage(moto: str, tmp_path: Path) -> None:
    run = open_storage(f"s3://{BUCKET}/{tmp_path.name}/ocean")
    write_run(run, 20)
    assert drawn(page_of(run)) == FIGURES


def test_another_file_and_another_run_beside(run: Storage, tmp_path: Path) -> None:
    write_run(run, 50, joules=240.0)
    write_run(open_storage(str(tmp_path / "tide")), 40, "tide", joules=187.2)
    told = report(run.uri, "--compare", tmp_path / "tide", "--out", tmp_path / "page.html")
    assert told.exit_code == 0, told.output
    page = (tmp_path / "page.html").read_text()
    assert drawn(page) == FIGURES | {"goodput-1"}
    assert re.search(r"−2[12]\.\d %", page)
    assert not run.exists("report.html")


def test_without_a_power_source_it_says_so(run: Storage) -> None:
    write_run(run, 30, joules=None)
    page = page_of(run)
    assert "Energy is not measured: no rank had a power source" in page
    assert drawn(page) == FIGURES - {"joules", "kwh"}
    text = run.read("config.yaml").decode()
    run.write("config.yaml", text.replace("source: auto", "source: none").encode())
    assert "Energy was not measured: energy.source is none." in page_of(run)


def test_a_run_without_a_step(run: Storage) -> None:
    run.write("config.yaml", configuration("young", 10).dump().encode())
    page = page_of(run)
    assert drawn(page) == set()
    assert "no step has ended yet" in page
    assert "0 of 10" in page
    assert "no run with an account of its time" in page


@pytest.mark.parametrize(
    ("folder", "lost"),
    [
        ("ledger", {"languages"}),
        ("manifests", {"languages"}),
        ("goodput", {"goodput-0", "world"}),
        ("metrics", {"loss", "speed", "mfu", "joules", "checkpoints"}),
        ("energy", {"kwh"}),
        ("step-00000030", set()),
    ],
)
def test_what_is_missing_costs_its_own_figures(run: Storage, folder: str, lost: set[str]) -> None:
    write_run(run, 30)
    run.delete(folder)
    page = page_of(run)
    assert drawn(page) == FIGURES - lost
    assert page.count('class="absent"') == len(lost) or folder.startswith("step")


def test_damaged_files_are_named_in_their_section(run: Storage) -> None:
    write_run(run, 30)
    for file, at in (("ledger/000001.jsonl", b":3"), ("step-00000030/checkpoint.json", b"true")):
        content = run.read(file)
        assert at in content
        run.write(file, content.replace(at, b":4" if at == b":3" else b"false", 1))
    page = page_of(run)
    assert "is not what was written there" in page
    assert "checkpoint.json is corrupt" in page
    ledger = run.read("energy/000001.jsonl")
    run.write("energy/000001.jsonl", ledger.replace(b"steps", b"stems", 1))
    page = page_of(run)
    assert "account of energy can not be read" in page
    assert "line 3 of a run&#39;s account of its energy is not what was written there" in page
    assert drawn(page) == FIGURES - {"kwh", "languages"}


def test_a_loss_that_is_not_finite_is_shown_and_counted(run: Storage) -> None:
    bad = {7: math.nan, 8: math.inf, 20: -math.inf}
    write_run(run, 30, edit=lambda step, found: found | {"loss": bad.get(step, found["loss"])})
    page = page_of(run)
    assert "not finite in 3 steps" in page
    lost = open_storage(f"{run.uri}-lost")
    write_run(lost, 30, edit=lambda step, found: found | {"loss": math.nan})
    assert "loss" in drawn(page_of(lost))


def test_a_configuration_of_another_version_is_shown(run: Storage) -> None:
    write_run(run, 30)
    run.write("config.yaml", run.read("config.yaml") + b"ocean:\n  depth: 11\n")
    page = page_of(run)
    assert "ocean.depth" in page
    assert "how many are planned is not known" in page


def test_secrets_of_a_configuration_are_not_shown(run: Storage) -> None:
    write_run(run, 30)
    text = run.read("config.yaml").decode()
    run.write("config.yaml", text.replace("uri: null", "uri: http://me:hunter22@host").encode())
    page = page_of(run)
    assert "hunter22" not in page
    assert "***@host" in page


@pytest.mark.parametrize("content", [None, b"[1, 2]", b"a: {", b"\xff\xfe\x00"])
def test_what_is_no_run_is_refused_in_one_line(run: Storage, content: bytes | None) -> None:
    if content is not None:
        run.write("config.yaml", content)
    told = report(run.uri)
    assert told.exit_code == 1
    assert len(told.stderr.strip().splitlines()) == 1
    assert told.stderr.startswith("panthalassa: ")
    assert run.uri in told.stderr
    assert not run.exists("report.html")


def test_a_file_that_can_not_be_written_is_named(run: Storage, tmp_path: Path) -> None:
    write_run(run, 30)
    told = report(run.uri, "--out", tmp_path / "nowhere" / "page.html")
    assert told.exit_code == 1
    assert f"{tmp_path}/nowhere/page.html can not be written" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


def test_a_run_beside_that_is_none_is_named(run: Storage, tmp_path: Path) -> None:
    write_run(run, 30)
    told = report(run.uri, "--compare", tmp_path / "nothing")
    assert told.exit_code == 1
    assert f"no run at {tmp_path}/nothing" in told.stderr


def test_totals_of_runs_of_other_lengths_are_not_compared() -> None:
    a, b = (Headline("time", text, value=value, compare="total") for text, value in TIMES)
    assert difference(a, b) == "+100.0 %"
    assert difference(a, b, alike=False) == "–"


def test_the_energy_so_far_ends_at_that_of_the_whole_run(run: Storage) -> None:
    """Also what was lost is in it."""
    write_run(run, 30)
    found = read_run(run)
    assert not isinstance(found.energy, str)
    assert found.series("kwh_so_far").value[-1] == pytest.approx(found.energy.kwh)


def test_runs_of_one_name_are_told_apart(run: Storage) -> None:
    write_run(run, 30)
    text = Path(write_report(run, run)).read_text()
    assert "ocean (1)" in text
    assert "ocean (2)" in text


def test_numbers_have_three_digits_and_units() -> None:
    assert [si(x) for x in (0, 0.0123, 1.5, 1024, 1_234_567, 2e13)] == [
        *["0", "0.0123", "1.50", "1,024", "1.23 M", "20.0 T"]
    ]
    assert [duration(x) for x in (4, 64, 3600 * 5, 3599.9, 86400 * 3.5)] == [
        *["4 s", "1 min 4 s", "5 h 0 min", "1 h 0 min", "3 d 12 h"]
    ]
    assert [signed(x, "%") for x in (-22.04, 0.01, 3)] == ["−22.0 %", "0.0 %", "+3.0 %"]


def test_a_file_of_too_many_steps_has_rows_that_stand_for_several(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(run, 300)
    data = read_run(run)
    monkeypatch.setattr(csv_files, "MOST_ROWS", 90)
    rows = list(csv.DictReader(io.StringIO(csv_files.steps_file([data], ("loss",)))))
    assert len(rows) == 30
    assert [int(row["first_step"]) for row in rows] == list(range(1, 301, 10))
    loss = data.series("loss").value
    assert min(float(row["lowest"]) for row in rows) == pytest.approx(loss.min(), rel=1e-4)
    assert max(float(row["highest"]) for row in rows) == pytest.approx(loss.max(), rel=1e-4)
    assert "each row stands for several" in " ".join(page_of(run).split())


def test_the_band_around_a_step_is_the_bound_of_that_step(run: Storage) -> None:
    write_run(run, 400)  # steps of half a second, a counter that is renewed every 20 ms
    (line,) = (drawn for drawn in draw([read_run(run)])["joules"].renderers if drawn.name)  # type: ignore[attr-defined]
    data = line.data_source.data
    assert data["over"][5] / data["mean"][5] - 1 == pytest.approx(bound(0.02, 0.5), rel=0.01)
