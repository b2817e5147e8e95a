import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from answered import knows, scored
from evaluations import MODEL

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.results import Scores, read_results, scores, write_results
from panthalassa.evaluate.task import Answer, Likelihood, Likely, Request
from panthalassa.evaluate.tasks import open_task
from panthalassa.evaluate.tasks.tags import entities, read_tags
from panthalassa.evaluate.tasks.xglue import (
    ACCURACY,
    GENERATION,
    LANGUAGES,
    METRICS,
    missing,
    xglue_averages,
)
from panthalassa.evaluate.telling import averages as told_averages
from panthalassa.storage import Storage, open_storage

NUMBERS = {
    "mean": lambda right: (float(right),),
    "ratio": lambda right: (float(right), 1.0),
    "f1-of-counts": lambda right: (float(right), 1.0, 1.0),
}
"""Of an item that is right or wrong, by aggregate."""
FILES = {
    "NER/de.test": "-DOCSTART- O\n\nAngela B-PER\nMerkel I-PER\nin O\nBerlin B-LOC\n\nJa O\n",
    "NER/en.test": "Paris B-LOC\n",
    "POS/en.test": "The DET\nsea NOUN\nrises VERB\n\n",
    "NC/xglue.nc.en.test": "A goal\tThey won.\tsports\nSoup\tHot.\tfoodanddrink\n",
    "XNLI/en.test": "It rains.\tIt is wet.\tentailment\nIt rains.\tIt is dry.\tcontradictory\n",
    "PAWSX/en/test_2k.tsv": "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t1\n2\ta\tc\t0\n",
    "QADSM/xglue.qadsm.en.test": "shoes\tShoes here\tCheap\tGood\n",
    "WPR/xglue.wpr.en.test": "q1\tt\ts\t0\nq1\tt\ts\t4\nq2\tt\ts\t3\nq3\tt\ts\t1\nq3\tt\ts\t1\n",
    "QAM/xglue.qam.en.test": "Who?\tHe did.\t1\nWhere?\tHe did.\t0\n",
    "QG/xglue.qg.en.src.test": "The sea is deep.\n",
    "QG/xglue.qg.en.tgt.test": "How deep is the sea?\n",
    "NTG/xglue.ntg.en.src.test": "It rained for days.\n",
    "NTG/xglue.ntg.en.tgt.test": "Rain for many days\n",
    "MLQA/MLQA_V1/test/test-context-de-question-de.json": json.dumps(
        {
            "version": "1.0",
            "data": [
                {
                    "title": "t",
                    "paragraphs": [
                        {
                            "context": "Die Elbe.",
                            "qas": [
                                {
                                    "id": "1",
                                    "question": "Was?",
                                    "answers": [{"text": "Die Elbe", "answer_start": 0}],
                                }
                            ],
                        }
                    ],
                }
            ],
        }
    ),
}


@pytest.fixture
def data(tmp_path: Path) -> Storage:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return open_storage(str(tmp_path))


def value(found: Scores, metric: str) -> float:
    return AGGREGATES[found.metrics[metric]](found.numbers[metric])


@pytest.mark.parametrize(
    ("part", "says", "metric", "expected"),
    [
        ("ner", "B-PER I-PER O B-LOC", "f1", 2 * 2 / (4 + 3)),  # Paris is a person to it; Ja, too
        ("pos", "DET NOUN", "accuracy", 2 / 3),
        ("nc", "food and drink", "accuracy", 1 / 2),
        ("xnli", "True", "accuracy", 1 / 2),
        ("pawsx", "yes", "accuracy", 1 / 2),
        ("qadsm", "yes", "accuracy", 1),
        ("qam", "no", "accuracy", 1 / 2),
        ("mlqa", "elbe", "exact_match", 1),
        ("qg", "how deep is the sea?", "bleu", 100),
        ("ntg", "Snow", "bleu", 0),
    ],
)
def test_each_task_has_the_papers_metric(
    data: Storage, part: str, says: str, metric: str, expected: float
) -> None:
    found = scored(open_task(f"xglue-{part}", data), knows(says))
    assert value(found, metric) == pytest.approx(expected)
    assert set(found.groups) <= set(LANGUAGES[part].split())


def test_pages_are_ranked_within_their_query(data: Storage) -> None:
    asked: list[str] = []

    def model(request: Request) -> Answer:
        assert isinstance(request, Likelihood)
        asked.append(request.continuation)
        page = (len(asked) - 1) // 5
        wanted = {0: " perfect", 1: " bad", 2: " good", 3: " good"}[page]
        return Likely(0.0 if request.continuation == wanted else -5.0, False, 1)

    found = scored(open_task("xglue-wpr", data), model)
    assert asked[:5] == [" bad", " fair", " good", " excellent", " perfect"]
    assert len(found.ids) == 2  # q2 has one page and no order
    assert found.numbers["ndcg"].ravel().tolist() == pytest.approx([0.6309297, 1.0])  # 1 / log2(3)


def test_entities_are_those_of_the_shared_task() -> None:
    assert entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]) == {
        ("PER", 0, 2),
        ("LOC", 3, 4),
        ("LOC", 4, 5),
    }
    assert entities(["I-PER", "I-LOC", "I-LOC"]) == {("PER", 0, 1), ("LOC", 1, 3)}
    assert entities(["O", "nonsense", "B-", "X-PER"]) == set()


def test_a_tag_is_behind_the_last_space_whatever_the_word_is(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(
        "1\u00a0000 CD I-NP NUM\r\n\u00a0 PUNCT\n \n\n-DOCSTART- -X- O\n\nJa X"
    )
    found = list(read_tags(open_storage(str(tmp_path)), "x"))
    assert found == [(3, ["1\u00a0000", "\u00a0"], ["NUM", "PUNCT"]), (7, ["Ja"], ["X"])]


def test_the_average_is_over_languages_and_then_over_tasks(tmp_path: Path) -> None:
    found = {
        f"xglue-{part}": scores_of(
            METRICS.get(part, ACCURACY), dict.fromkeys(languages.split(), place / 20)
        )
        for place, (part, languages) in enumerate(LANGUAGES.items())
        if part not in GENERATION
    }
    averages = xglue_averages(found)
    assert missing(found) == {"xglue-understanding": []}
    assert averages["xglue-understanding"].value == pytest.approx(100 * sum(range(9)) / 9 / 20)
    assert averages["xglue-understanding"].of == "9 tasks"
    assert "xglue-generation" not in averages
    results = write_results(open_storage(str(tmp_path)), MODEL, {}, found, averages=averages)
    told = {row[0]: row[1:] for row in told_averages(results)}
    assert told["xglue-qam"] == ("40.0", "accuracy in 3 of 3 languages")
    assert read_results(open_storage(str(tmp_path))).averages == averages


def test_no_average_is_over_some_of_its_tasks_or_languages(data: Storage) -> None:
    found = {
        name: scored(open_task(name, data), knows("yes")) for name in ("xglue-ntg", "xglue-pawsx")
    }
    averages, lacking = xglue_averages(found), missing(found)
    assert set(averages) == set(found)
    assert averages["xglue-pawsx"].value == 50
    assert averages["xglue-pawsx"].of == "accuracy in 1 of 4 languages"
    assert lacking["xglue-generation"] == ["xglue-qg", "xglue-ntg (de, es, fr, ru)"]
    assert lacking["xglue-understanding"][:2] == ["xglue-ner", "xglue-pos"]
    assert missing({"choices": found["xglue-ntg"]}) == {}


def test_languages_count_alike_in_an_average_however_many_items_they_have(data: Storage) -> None:
    ner = scored(open_task("xglue-ner", data), knows("B-PER I-PER O B-LOC"))
    assert xglue_averages({"xglue-ner": ner})["xglue-ner"].value == pytest.approx(100 * 0.8 / 2)


def scores_of(metrics: Mapping[str, str], shares: Mapping[str, float]) -> Scores:
    """Of twenty items in each group so many whose every metric is 1."""
    rows = (
        (f"{group}-{n}", group, {name: NUMBERS[metrics[name]](n < 20 * share) for name in metrics})
        for group, share in shares.items()
        for n in range(20)
    )
    return scores(metrics, rows)


@pytest.mark.parametrize(
    ("part", "path", "content", "told"),
    [
        ("nc", "NC/xglue.nc.en.test", "a\tb\tsports\nc\tsports\n", "line 2: expected 2 fields"),
        ("qam", "QAM/xglue.qam.en.test", "a\tb\tmaybe\n", "line 1: .*label .0, 1.*'maybe'"),
        ("ner", "NER/en.test", "Paris\n", "line 1: expected a word and a tag"),
        ("qg", "QG/xglue.qg.en.tgt.test", "a\nb\n", "not the same number of lines"),
        ("qg", "QG/xglue.qg.en.src.test", "a\nb\n", "not the same number of lines"),
    ],
)
def test_a_wrong_file_is_named(
    data: Storage, part: str, path: str, content: str, told: str
) -> None:
    data.write(path, content.encode())
    with pytest.raises(PanthalassaError, match=told):
        list(open_task(f"xglue-{part}", data).items())


def test_a_folder_without_the_tasks_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        PanthalassaError, match=r"no file of xglue-pawsx, such as PAWSX/en/test_2k\.tsv"
    ):
        list(open_task("xglue-pawsx", open_storage(str(tmp_path))).items())
