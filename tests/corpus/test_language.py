"""Every text gets a language or `und`, in one set of codes, and none stops the identification."""

import csv
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.language_figure import draw
from benchmarks.languages import BEST, TARGET, accuracies, confusion, lines_of, mean_of_best
from hypothesis import given
from hypothesis import strategies as st
from udhr import folder, read_declarations

from panthalassa.corpus.language import (
    UNDETERMINED,
    FastText,
    canonical,
    identify,
    open_identifier,
)
from panthalassa.errors import CorpusError

DOCS = Path(__file__).parents[2] / "docs"
KNOWN = {
    "en": "The sea is deep and the tide is slow under a pale moon tonight.",
    "el": "η θάλασσα είναι βαθιά και το κύμα αργό κάτω από το φεγγάρι",
    "th": "ทะเลลึกและคลื่นช้าใต้แสงจันทร์",
    "he": "הים עמוק והגלים איטיים תחת אור הירח החיוור",
    "nb": "Havet er dypt, og jeg har ikke sett noen bølger siden i går kveld.",
    "ii": "ꊿꂷꃅꄿꐨꐥ ꌅꅍꀂꏽꐯꒈꃅꐥꌐ",
}


@pytest.mark.parametrize(("code", "text"), KNOWN.items(), ids=KNOWN.keys())
def test_a_sentence_gets_its_bcp_47_code(code: str, text: str) -> None:
    assert identify(text).code == code


@given(st.text(st.characters(exclude_categories=[])))
def test_no_text_stops_the_identification(text: str) -> None:
    language = identify(text)
    assert 0 <= language.confidence <= 1
    assert identify(text) == language


def test_every_character_is_survived() -> None:
    for start in range(0, 0x110000, 64):
        identify("a sea " + "".join(map(chr, range(start, start + 64))) + " of text")


def test_controls_and_lone_surrogates_change_nothing() -> None:
    text = KNOWN["en"]
    assert identify(f"\0{text[:20]}\ud800{text[20:]}\ufffe\x9f\U0001ffff") == identify(text)


@pytest.mark.parametrize(
    "text", ["", " ", "12345 67890", "{}();" * 50, "zxq vkj qqx " * 9, "\ud800"]
)
def test_what_is_no_language_is_undetermined(text: str) -> None:
    assert identify(text).code == UNDETERMINED


def test_below_the_threshold_a_text_is_undetermined_and_keeps_its_confidence() -> None:
    found = identify(KNOWN["en"])
    assert open_identifier(threshold=1.01)(KNOWN["en"]) == type(found)("und", found.confidence)


def test_a_long_text_is_known_by_its_samples() -> None:
    english = "".join(f"On day {number} we sailed over a calm sea. " for number in range(99_999))
    assert identify(english).code == "en"


def test_labels_of_models_become_the_same_codes() -> None:
    labels = {
        "eng_Latn": "en",
        "cmn_Hani": "zh",
        "iw": "he",
        "zh-Hant": "zh-Hant",
        "gsw_Latn": "gsw",
    }
    assert {label: canonical(label) for label in labels} == labels


def test_cld2_can_be_sent_to_another_process() -> None:
    identifier = open_identifier()
    assert pickle.loads(pickle.dumps(identifier))(KNOWN["th"]).code == "th"  # noqa: S301


def test_a_model_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(CorpusError, match="pip install fasttext"):
        open_identifier("absent-package.bin")


def test_a_model_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace())
    with pytest.raises(CorpusError, match=r"lid\.bin is no file on this machine"):
        open_identifier(str(tmp_path / "lid.bin"))


def test_a_model_is_loaded_once_and_its_labels_are_translated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads, lines = [], []

    def predict(line: str, *_: object) -> list[tuple[float, str]]:
        lines.append(line)
        return [(0.8, "__label__swh_Latn")]

    def load_model(path: str) -> SimpleNamespace:
        loads.append(path)
        return SimpleNamespace(f=SimpleNamespace(predict=predict))

    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace(load_model=load_model))
    path = tmp_path / "lid.bin"
    path.write_bytes(b"model")
    identifier = open_identifier(str(path))
    assert isinstance(identifier, FastText)
    assert identifier("bahari\n ni\0 kubwa").code == "sw"
    assert identifier("").code == UNDETERMINED
    assert loads == [str(path)]
    assert lines[0] == "bahari ni kubwa\n"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fasttext", reason="the package fasttext is not installed")
    (tmp_path / "bad.bin").write_bytes(b"no model")
    with pytest.raises(CorpusError, match="is no fastText model"):
        open_identifier(str(tmp_path / "bad.bin"))


def test_nine_of_ten_paragraphs_of_120_languages_are_identified() -> None:
    counts = confusion(read_declarations(folder()), identify)
    shares = accuracies(counts)
    assert sum(share >= TARGET for share in shares.values()) >= BEST
    assert mean_of_best(shares) >= TARGET
    with (DOCS / "languages.csv").open() as stream:
        assert list(csv.DictReader(stream)) == lines_of(counts), "make bench-languages writes it"


def test_the_figure_of_the_languages_is_that_of_their_table() -> None:
    with (DOCS / "languages.csv").open() as stream:
        figure = draw(list(csv.DictReader(stream)), BEST, TARGET)
    assert (DOCS / "languages.svg").read_text() == figure
