import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answered import knows, scored
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.results import Scores
from panthalassa.evaluate.task import Answer, Likelihood, Likely, Request, Task
from panthalassa.evaluate.tasks import known, open_task
from panthalassa.evaluate.tasks.answers import exact_match, f1
from panthalassa.evaluate.tasks.choices import majority
from panthalassa.evaluate.tasks.ranking import ndcg
from panthalassa.evaluate.text_metrics import rouge
from panthalassa.storage import open_storage


def json_lines(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def opened(name: str, folder: Path, **settings: Any) -> Task:
    return open_task(name, open_storage(str(folder)), **settings)


def value(found: Scores, metric: str) -> float:
    return AGGREGATES[found.metrics[metric]](found.numbers[metric])


CHOICE = {
    "prompt": "Guten Tag. Language:",
    "choices": ["English", "German"],
    "answer": 1,
    "group": "de",
}


def test_the_most_likely_choice_is_the_answer(tmp_path: Path) -> None:
    other = {**CHOICE, "prompt": "Good day. Language:", "answer": 0, "group": "en"}
    json_lines(tmp_path / "a.jsonl", CHOICE, other)
    found = scored(opened("choices", tmp_path), knows("German"))
    assert found.ids == ["a.jsonl:1", "a.jsonl:2"]
    assert found.groups == ["de", "en"]
    assert found.numbers["accuracy"].tolist() == [[1], [0]]
    (request, _) = next(opened("choices", tmp_path).items()).requests
    assert request == Likelihood("Guten Tag. Language:", " English")


def test_the_majority_is_that_of_answers_and_not_of_their_places(tmp_path: Path) -> None:
    turned = {**CHOICE, "choices": ["German", "English"], "answer": 0}
    json_lines(tmp_path / "a.jsonl", CHOICE, turned, {**CHOICE, "answer": 0})
    task = opened("choices", tmp_path)
    assert majority(list(task.items())) == 2 / 3


def test_with_choices_of_their_own_a_guess_is_more_than_the_most_frequent_answer(
    tmp_path: Path,
) -> None:
    own = [
        {"prompt": "x", "choices": [f"{n} {place}" for place in range(4)], "answer": n % 4}
        for n in range(8)
    ]
    json_lines(tmp_path / "a.jsonl", *own)
    task = opened("choices", tmp_path)
    assert majority(list(task.items())) == 1 / 8
    assert task.baselines(list(task.items())) == {"accuracy": 1 / 4, "accuracy_by_byte": 1 / 4}


def test_likelihood_by_byte_does_not_favour_short_choices(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", {"prompt": "x", "choices": ["no", "certainly"], "answer": 1})

    def model(request: Request) -> Answer:
        assert isinstance(request, Likelihood)
        return Likely({" no": -2.0, " certainly": -4.0}[request.continuation], False, 1)

    found = scored(opened("choices", tmp_path), model)
    assert value(found, "accuracy") == 0
    assert value(found, "accuracy_by_byte") == 1


def test_a_limit_counts_in_each_group(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", *[CHOICE] * 5, *[{**CHOICE, "group": "en"}] * 3)
    groups = [item.group for item in opened("choices", tmp_path, limit=2).items()]
    assert groups == ["de", "de", "en", "en"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": 2}, "answer 2 of 2 choices"),
        ({"choices": ["one"]}, "choices: "),
        ({"choices": ["", "x"]}, "a choice is empty"),
        ({"choices": [" \n", "x"]}, "a choice is empty"),
        ({"prompt": 7}, "prompt: Input should be a valid string, found 7"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_number(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    json_lines(tmp_path / "a.jsonl", CHOICE, {**CHOICE, **change})
    with pytest.raises(PanthalassaError, match=rf"a\.jsonl, line 2: .*{told}"):
        list(opened("choices", tmp_path).items())


def test_what_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PanthalassaError, match="can not be read"):
        list(opened("choices", tmp_path / "none").items())
    with pytest.raises(PanthalassaError, match=r"has no file \*\.jsonl"):
        list(opened("choices", tmp_path).items())
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    with pytest.raises(PanthalassaError, match="hold no item"):
        list(opened("choices", tmp_path).items())
    (tmp_path / "a.jsonl").write_bytes(b"\n\xff{}")
    with pytest.raises(PanthalassaError, match="line 2: not UTF-8"):
        list(opened("choices", tmp_path).items())


def test_unknown_tasks_and_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="there is no task gleu: there are bits-per-byte, captioning"
    ):
        opened("gleu", tmp_path)
    with pytest.raises(ConfigError, match="task human-eval: samples"):
        opened("human-eval", tmp_path, samples=0)
    with pytest.raises(ConfigError, match="task choices: surplus"):
        opened("choices", tmp_path, surplus=1)
    assert {"choices", "xglue-ner", "xglue-ntg"} <= set(known())
    for name in known():
        task = opened(name, tmp_path)
        assert task.name == name
        assert set(task.metrics.values()) <= set(AGGREGATES)


def test_bits_per_byte_are_those_of_all_bytes_by_language(tmp_path: Path) -> None:
    json_lines(
        tmp_path / "a.jsonl", {"text": "abcd", "language": "en"}, {"text": "ж", "language": "ru"}
    )
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "x.txt").write_text("größe")
    found = scored(opened("bits-per-byte", tmp_path), knows(""))
    assert dict(zip(found.groups, found.numbers["bits_per_byte"].tolist(), strict=True)) == {
        "en": [4, 4],
        "ru": [1, 2],
        "de": [5, 7],
    }
    assert value(found, "bits_per_byte") == pytest.approx(10 / 13 / math.log(2))
    assert value(found, "perplexity") == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("language", "answer", "right", "exact", "overlap"),
    [
        ("en", " The Eiffel Tower.", "eiffel tower", 1, 1),
        ("en", "a big tower", "the tower", 0, 2 / 3),
        ("de", "Der große Turm", "große turm", 1, 1),
        ("es", "la Torre", "torre", 1, 1),
        ("fr", "la Tour", "tour", 0, 2 / 3),  # MLQA has no list for French
        ("zh", "北京市。", "北京", 0, 0.8),
        ("th", "กรุงเทพ", "กรุงเทพ!", 1, 1),
        ("ar", "القاهرة", "قاهرة", 1, 1),
        ("en", "", "x", 0, 0),
    ],
)
def test_answers_are_compared_as_mlqa_does(
    language: str, answer: str, right: str, exact: float, overlap: float
) -> None:
    assert exact_match(answer, [right], language) == exact
    assert f1(answer, [right], language) == pytest.approx(overlap)
    assert f1(answer, ["nothing", right], language) == pytest.approx(overlap)  # the nearest counts


SQUAD = {
    "version": "1.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Die Elbe fließt nach Hamburg.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Wohin?",
                            "answers": [{"text": "nach Hamburg", "answer_start": 16}],
                        }
                    ],
                }
            ],
        }
    ],
}


def test_questions_of_squads_files_and_of_lines(tmp_path: Path) -> None:
    (tmp_path / "test-context-de-question-en.json").write_text(json.dumps(SQUAD))
    row = {"context": "c", "question": "q", "answers": ["Hamburg", "die Stadt"], "language": "de"}
    json_lines(tmp_path / "z.jsonl", row)
    found = scored(opened("question-answering", tmp_path), knows("Hamburg\n"))
    assert found.ids == ["test-context-de-question-en.json:q1", "z.jsonl:1"]
    assert found.groups == ["de", "de"]
    assert found.numbers["exact_match"].ravel().tolist() == [0, 1]
    assert found.numbers["f1"].ravel().tolist() == pytest.approx([2 / 3, 1])
    item = next(opened("question-answering", tmp_path).items())
    assert item.requests[0].prompt == "Die Elbe fließt nach Hamburg.\n\nQuestion: Wohin?\nAnswer:"
    broken = {"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "?"}]}]}]}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(
        PanthalassaError, match=r"broken\.json: data\.0\.paragraphs\.0\.qas\.0\.answers"
    ):
        list(opened("question-answering", tmp_path).items())


def test_summaries_are_compared_in_all_scripts(tmp_path: Path) -> None:
    json_lines(
        tmp_path / "a.jsonl",
        {"document": "…", "summary": "Москва — столица России", "language": "ru"},
        {"document": "…", "summary": "the cat sat on the mat", "language": "en"},
    )
    found = scored(opened("summarisation", tmp_path), knows("the cat sat on the red mat"))
    assert found.numbers["rouge1"].ravel().tolist() == pytest.approx([0, 12 / 13])
    assert found.numbers["rouge2"].ravel().tolist() == pytest.approx([0, 8 / 11])
    right = scored(opened("summarisation", tmp_path), knows("Москва — столица России"))
    assert right.numbers["rougeL"][0, 0] == 1
    assert rouge("北京是首都", "首都是北京")["rouge1"] == 1
    assert rouge("", "x")["rouge1"] == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_the_gain_of_an_order_is_scikit_learns(pages: list[tuple[int, int]]) -> None:
    scores, relevance = zip(*pages, strict=True)
    expected = ndcg_score(np.array([relevance]), np.array([scores]))
    assert ndcg(scores, relevance) == pytest.approx(expected)
