"""The page of a corpus: its numbers add up, and a browser shows them, readable and inert."""

import csv
import io
from pathlib import Path

import pytest
from browsers import Page
from funnels import EVALUATIONS, HOSTILE, RULES, make_report, write_corpus
from reports import write_run

from panthalassa.corpus.funnel import DROPS, REPORT, Report, Tally
from panthalassa.corpus.manifest import read_manifest
from panthalassa.errors import CorpusError
from panthalassa.report.corpus import share, shown, size, write_page
from panthalassa.report.page import write_report
from panthalassa.storage import open_storage
from panthalassa.train.audit import keep_manifest

REPORTED = make_report()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a corpus of 120 languages with its page."""
    folder = tmp_path_factory.mktemp("corpora") / "ocean"
    write_corpus(folder, REPORTED)
    assert write_page(open_storage(str(folder))) == f"{folder}/corpus.html"
    return folder


def test_bars_and_numbers_add_up() -> None:
    found = shown(REPORTED)
    whole = REPORTED.total("read")[1]
    last_drop, held_out, train = found.funnel[-3:]
    assert REPORTED.total("train", "held_out")[1] / whole * 100 == pytest.approx(
        last_drop.bars[0].percent
    )
    assert sum(bar.percent for bar in held_out.bars) == pytest.approx(last_drop.bars[0].percent)
    assert held_out.bars[0].percent == pytest.approx(train.bars[1].percent)
    dropped = sum(row.documents for row in found.funnel[2:-2])
    assert dropped + train.documents + held_out.documents == found.funnel[0].documents
    for language in found.languages:
        assert sum(bar.percent for bar in language.bars) == pytest.approx(100)
    assert {language.name for language in found.languages} == set(REPORTED.domains())
    assert {rule.name for rule in found.rules} == {*RULES, *EVALUATIONS}
    rows = {language.name: language for language in found.languages}
    documents = sum(REPORTED.total(step, domain="th")[0] for step in DROPS)
    assert rows["th"].dropped == share(documents, REPORTED.total("read", domain="th")[0])
    tokens = {
        name: sum(REPORTED.tokens[f"{split}/{name}"] for split in ("train", "held_out"))
        - 2 * REPORTED.total("train", "held_out", domain=name)[0]
        for name in ("th", "en")
    }
    characters = {
        name: sum(REPORTED.characters[f"{split}/{name}"] for split in ("train", "held_out"))
        for name in ("th", "en")
    }
    a_character = {name: tokens[name] / characters[name] for name in tokens}
    kept = REPORTED.total("train", "held_out", domain="th")[1]
    assert rows["th"].per_byte == f"{tokens['th'] / kept:.3f}"
    assert rows["th"].per_character == f"{a_character['th']:.3f}"
    assert rows["th"].parity == f"{a_character['th'] / a_character['en']:.2f}"


def test_text_that_got_longer_and_domains_without_training_are_shown() -> None:
    tally = Tally()
    tally.add("read", "aa", 2, 100)
    tally.add("trimmed", "aa", 1, -20)  # placeholders are longer than what they stand for
    tally.add("held_out", "aa", 2, 120)
    report = Report(files=1, file_bytes=9, entries=list(tally.entries()), tokens={"held_out/aa": 7})
    (language,) = shown(report).languages
    assert [bar.percent for bar in language.bars] == [100]
    assert (language.per_byte, language.per_character, language.parity) == ("–", "–", "–")
    assert shown(report).rules == []


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (123_456, "123 kB"),
     (45_600_000, "45.6 MB"), (3_200_000_000_000, "3.20 TB"), (-1500, "-1.50 kB")],
)  # fmt: skip
def test_sizes_have_three_digits(count: int, told: str) -> None:
    assert size(count) == told


def test_every_language_and_rule_is_shown_and_what_a_document_says_is_only_text(
    page: Page, corpus: Path
) -> None:
    page.open(corpus / "corpus.html")
    assert page.value("document.querySelectorAll('.by-language tbody tr').length") == 120
    assert page.value("document.querySelectorAll('.rules tbody tr').length") == len(
        RULES + EVALUATIONS
    )
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert HOSTILE in page.value("document.querySelector('main').innerText")
    assert page.value("document.title") == "ocean · Panthalassa"
    assert page.value("document.images.length") == 0
    fingerprint = read_manifest(open_storage(str(corpus))).fingerprint
    assert fingerprint in page.value("document.querySelector('.where').innerText")
    bar = "document.querySelector('.by-language .bar').children[0]"
    assert page.value(f"getComputedStyle({bar}).backgroundColor") == "rgb(68, 187, 153)"
    rows = list(csv.DictReader(io.StringIO(page.download("button[data-from=data-languages]"))))
    for step in ("read", "rule", "near_duplicate", "train"):
        total = sum(int(row[f"{step}_documents"]) for row in rows)
        assert total == REPORTED.total(step)[0]


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(page: Page, corpus: Path, dark: bool) -> None:
    page.open(corpus / "corpus.html", width=390, dark=dark, touch=True)
    assert page.value("document.documentElement.scrollWidth") == 390
    colour = page.value("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    page.run("document.getElementById('theme').click()")
    assert page.value("getComputedStyle(document.body).backgroundColor") != colour


def test_a_damaged_or_missing_record_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, make_report(3))
    storage = open_storage(str(tmp_path))
    storage.write(REPORT, make_report(4).encode())
    with pytest.raises(CorpusError, match=r"report\.json is of another corpus, or damaged"):
        write_page(storage)
    storage.delete(REPORT)
    with pytest.raises(CorpusError, match=r"report\.json can not be read"):
        write_page(storage)


def test_a_runs_report_has_its_corpus_when_that_is_on_record(
    page: Page, corpus: Path, tmp_path: Path
) -> None:
    run = open_storage(str(tmp_path / "run"))
    write_run(run, 20)
    sections = "[...document.querySelectorAll('h2')].map((h) => h.innerText)"
    write_report(run)
    page.open(tmp_path / "run" / "report.html")
    assert "Corpus" not in page.value(sections)
    run.write("config.yaml", run.read("config.yaml").replace(b"data/sea", str(corpus).encode()))
    keep_manifest(run, read_manifest(open_storage(str(corpus))))
    write_report(run)
    page.open(tmp_path / "run" / "report.html")
    assert "Corpus" in page.value(sections)
    assert page.value("document.querySelectorAll('.corpus .by-language tbody tr').length") == 120
    other = tmp_path / "other"
    write_corpus(other, make_report(3))
    run.write(
        "config.yaml", run.read("config.yaml").replace(str(corpus).encode(), str(other).encode())
    )
    write_report(run)
    page.open(tmp_path / "run" / "report.html")
    assert "report.json is of another corpus" in page.value(
        "document.querySelector('.corpus .absent').innerText"
    )
