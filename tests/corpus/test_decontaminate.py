"""Documents that share a passage of thirteen words with an evaluation are found, and no others."""

import json
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.config import Corpus
from panthalassa.corpus.decontaminate import (
    WORDS,
    Contamination,
    build,
    read_evaluations,
)
from panthalassa.corpus.funnel import REPORT, Report
from panthalassa.corpus.prepare import prepare
from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage

BETWEEN = st.sampled_from([" ", "\n", ", ", " - ", "... ", "  ", "! “", "\u00a0", "\t"])


def words_of(letters: str, shortest: int = 2) -> st.SearchStrategy[str]:
    return st.text(letters, min_size=shortest, max_size=6)


# Nothing that is planted occurs in what is around it.
PLANTED = st.one_of(
    words_of("abcdefgßéšſ"),
    words_of("абвгґё"),
    words_of("αβγςάΰ"),
    words_of("कखगिीं"),
    words_of("가각힣ㅏ"),
)
AROUND = st.lists(words_of("mnopqr"), max_size=20)


def one(contamination: Contamination, text: str) -> str | None:
    (found,) = contamination.find(pa.chunked_array([pa.array([text], pa.large_string())]))
    return found


def joined(draw: st.DrawFn, words: list[str]) -> str:
    return "".join(word + draw(BETWEEN) for word in words)


def disguised(draw: st.DrawFn, words: list[str]) -> str:
    """The words as another page may have them."""
    change = draw(
        st.sampled_from(
            [
                str,
                str.upper,
                str.title,
                lambda word: unicodedata.normalize("NFD", word),
                lambda word: unicodedata.normalize("NFKD", word.upper()),
            ]
        )
    )
    return joined(draw, [change(word) for word in words])


@settings(max_examples=40)
@given(st.data())
def test_thirteen_words_are_found_wherever_and_however_they_stand(data: st.DataObject) -> None:
    passage = data.draw(st.lists(PLANTED, min_size=WORDS, max_size=WORDS + 5))
    draw = data.draw
    evaluation = joined(draw, [*draw(AROUND), *passage, *draw(AROUND)])
    contamination = build([("other", ["none of it"]), ("test", ["short", evaluation])])
    document = joined(draw, [w[::-1] * 2 for w in draw(AROUND)]) + disguised(draw, passage)
    assert one(contamination, document + joined(draw, ["xyz"])) == "test"
    assert contamination.short == {"other": 1, "test": 1}


@settings(max_examples=40)
@given(st.data())
def test_twelve_words_are_not_found(data: st.DataObject) -> None:
    draw = data.draw
    passage = draw(st.lists(PLANTED, min_size=WORDS - 1, max_size=WORDS - 1))
    before, behind = (draw(st.lists(words_of("mno"), min_size=1, max_size=30)) for _ in "ab")
    contamination = build([("test", [joined(draw, [*before, *passage, *behind])])])
    before, behind = (draw(st.lists(words_of("xyz"), min_size=1, max_size=30)) for _ in "ab")
    assert one(contamination, joined(draw, [*before, *passage, *behind])) is None


@pytest.mark.parametrize(
    ("letters", "passage"),
    [("天地玄黃宇宙洪荒日月盈", 26), ("กขคงจฉชซ", 52), ("ကခဂဃငစဆ", 39), ("あいうえおかき", 26)],
)
@settings(max_examples=40)
@given(st.data())
def test_letters_are_counted_in_scripts_without_spaces(
    letters: str, passage: int, data: st.DataObject
) -> None:
    text = data.draw(st.text(letters[1:], min_size=passage, max_size=passage + 20))
    contamination = build([("test", [f"is {text} so"])])
    assert one(contamination, f"{letters[0]}{text}，{letters[0]}") == "test"
    shorter = text[: passage - 1]
    assert one(contamination, f"{letters[0]}{shorter}{letters[0]}") is None
    half = text[: passage // 2]
    six = "one two three four five six"
    mixed = build([("mixed", [f"{six} {half} seven eight"])])
    assert one(mixed, f"{letters[0]} {six.upper()} {half} seven") == "mixed"


def test_marks_do_not_count_as_letters() -> None:
    text = "กี่" * 51  # a letter and two marks
    assert one(build([("test", [text + "ก"])]), text + "ก") == "test"
    assert one(build([("test", [text + "ก"])]), text) is None


def test_texts_do_not_run_into_one_another() -> None:
    words = [f"word{number}" for number in range(WORDS)]
    contamination = build([("test", [" ".join(words)])])
    halves = pa.chunked_array([[" ".join(words[:6])], [" ".join(words[6:]), "", " ".join(words)]])
    assert contamination.find(halves) == [None, None, None, "test"]
    split = build([("test", [" ".join(words[:6]), " ".join(words[6:])])])
    assert one(split, " ".join(words)) is None
    assert split.short == {"test": 2}


def test_a_passage_of_two_files_is_the_firsts_and_order_does_not_change_the_rest() -> None:
    texts = {f"file{n}": " ".join(f"w{n}x{i}" for i in range(40)) for n in range(5)}
    both = build([(name, [text]) for name, text in texts.items()] + [("again", texts.values())])
    assert both.find(pa.chunked_array([list(texts.values())])) == list(texts)
    assert len(both.passages) == 5 * (40 - WORDS + 1)


def test_what_tasks_share_is_eight_bytes_a_passage_and_the_file() -> None:
    words = " ".join(f"w{i}" for i in range(20_000))
    contamination = build([("test", [words])])
    size = len(pickle.dumps(contamination, protocol=5))
    assert size < 20_000 * (8 + 2) + 1_000
    again = build([("test", [words])])
    assert again.digest == contamination.digest != build([("else", [words])]).digest


def evaluate(*places: Path | str) -> Corpus:
    return Corpus(directory="x", evaluation_files=[str(place) for place in places])


def test_files_and_folders_of_all_kinds_are_read(tmp_path: Path) -> None:
    text = {kind: " ".join(f"{kind}{i}" for i in range(20)) for kind in ("txt", "jsonl", "parquet")}
    folder = tmp_path / "quiz" / "en"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text["txt"])
    (folder / "b.jsonl").write_text(json.dumps({"text": text["jsonl"], "answer": 1}))
    pa.parquet.write_table(pa.table({"text": [text["parquet"]]}), tmp_path / "c.parquet")
    found = read_evaluations(evaluate(tmp_path / "quiz", tmp_path / "c.parquet"))
    assert found is not None
    c = f"{tmp_path.name}/c.parquet"
    assert found.names == ("quiz/en/a.txt", "quiz/en/b.jsonl", c)
    documents = pa.chunked_array([[f"see {text[kind]}" for kind in ("parquet", "txt", "jsonl")]])
    assert found.find(documents) == [c, "quiz/en/a.txt", "quiz/en/b.jsonl"]
    assert read_evaluations(evaluate()) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, r"corpus\.evaluation_files: source .*gone\.txt does not exist"),
        ("bad.jsonl", '{"text": "a"}\n{', r"bad\.jsonl, line 2: not JSON.*evaluation_files"),
        ("short.txt", "but a few words", r"no text of 13 words or more.*Correct the key"),
    ],
)
def test_an_evaluation_that_would_find_nothing_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_evaluations(evaluate(tmp_path / name))


def test_a_preparation_drops_and_counts_them_by_file(
    ray_cluster: str, tmp_path: Path, make_config: Callable[..., Corpus]
) -> None:
    passage = {kind: " ".join(f"{kind}{i}" for i in range(WORDS)) for kind in "abc"}
    texts = [f"{passage['a']} end", "clean", f"see {passage['b']}", f"{passage['a']} again", "also"]
    (tmp_path / "web" / "en").mkdir(parents=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "web" / "en" / "all.jsonl").write_text(lines)
    (tmp_path / "tests").mkdir()
    for kind, text in passage.items():
        (tmp_path / "tests" / f"{kind}.txt").write_text(text)
    settings = {"evaluation_files": [str(tmp_path / "tests")], "near_duplicates": None}
    (tmp_path / "tests" / "c.txt").write_text("too short\n\n")
    told: list[str] = []
    prepare(make_config(tmp_path / "corpus", tmp_path / "web", **settings), told.append)
    assert told[0].startswith("1 texts of the evaluation tests/c.txt have fewer than 13 words")
    storage = open_storage(str(tmp_path / "corpus"))
    report = Report.model_validate_json(storage.read(REPORT))
    assert report.total("held_out", "train")[0] == 2
    counted = {entry.rule: entry for entry in report.entries if entry.step == "contaminated"}
    assert {rule: e.count for rule, e in counted.items()} == {"tests/a.txt": 2, "tests/b.txt": 1}
    assert counted["tests/b.txt"].bytes == len(texts[2])
    places = [example.place for example in counted["tests/a.txt"].examples]
    assert places == ["web/en/all.jsonl, line 1", "web/en/all.jsonl, line 4"]
    settings["evaluation_files"] = [str(tmp_path / "web")]
    (tmp_path / "web" / "en" / "all.jsonl").write_text(lines.splitlines()[0] + "\n")
    with pytest.raises(CorpusError, match=r"all documents share passages with corpus\.evaluation"):
        prepare(make_config(tmp_path / "other", tmp_path / "web", **settings), told.append)
