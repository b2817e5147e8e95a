"""The questions of `make retrieval-demo`: what is asked was not learned, each has one right answer, and
whoever does not read it is right as often as by chance."""

from collections import Counter
from pathlib import Path

import pytest
from answered import scored
from demos import beginning
from retrieval_demo import (
    ARTICLES,
    CHOICES,
    LETTERS,
    PAIRED,
    READ,
    WRITTEN,
    Texts,
    examples,
    pairs,
    questions,
    read_articles,
    write_examples,
)
from udhr import folder

from panthalassa.evaluate.task import Answer, Likelihood, Likely, Request
from panthalassa.evaluate.tasks import open_task
from panthalassa.storage import open_storage

INVENTED: Texts = {
    name: [f"{name} {number:02d}" + number * " and so on" for number in range(ARTICLES)]
    for name in (PAIRED | READ | WRITTEN).values()
}


@pytest.fixture(params=["invented", "real"])
def texts(request: pytest.FixtureRequest) -> Texts:
    return INVENTED if request.param == "invented" else read_articles(folder())


def test_languages_that_are_asked_about_were_never_paired() -> None:
    paired, between, turned = pairs()
    known = set(PAIRED.values())
    assert {frozenset(pair) for pair in between}.isdisjoint(frozenset(pair) for pair in paired)
    assert set(turned).isdisjoint(paired)
    for found in (paired, between, turned):
        assert len(set(found)) == len(found)
        assert all(source != target for source, target in found)
    for side in zip(*between, strict=True):
        assert set(side) == known
    read, written = map(set, zip(*paired, strict=True))
    assert read == known | set(READ.values())
    assert written == known | set(WRITTEN.values())
    for source, target in turned:
        assert (source in read) + (target in written) == 1


def test_each_question_has_one_right_answer_among_ten_of_its_language(texts: Texts) -> None:
    paired, between, turned = pairs()
    learned = {example["prompt"] for example in examples(texts, paired)}
    assert len(learned) == len(paired) * ARTICLES
    asked = [*between, *turned]
    found = list(questions(texts, asked))
    assert len({question["prompt"] for question in found}) == len(asked) * ARTICLES
    answers = {
        f"In {target}: {shown}": (target, texts[target][article])
        for source, target in asked
        for article, shown in enumerate(texts[source])
    }
    for question in found:
        assert question["prompt"] not in learned
        target, right = answers[question["prompt"]]
        choices = question["choices"]
        assert len(set(choices)) == CHOICES
        assert set(choices) <= set(texts[target])
        assert choices[question["answer"]] == right


def test_examples_say_the_same_article_in_the_language_that_is_asked_for(texts: Texts) -> None:
    for example in examples(texts, [("English", "Russian")]):
        number = texts["Russian"].index(example["answer"])
        assert example["prompt"] == f"In Russian: {texts['English'][number]}"


def test_who_does_not_read_the_question_is_right_as_often_as_by_chance(
    texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_demo.read_articles", lambda _: texts)
    write_examples(tmp_path, tmp_path)

    def blind(request: Request) -> Answer:
        assert isinstance(request, Likelihood)
        return Likely(-float(len(request.continuation)), False, 1)

    for part in ("pairs", "sides"):
        task = open_task("choices", open_storage(str(tmp_path / part)))
        found = scored(task, blind)
        for metric in ("accuracy", "accuracy_by_byte"):
            for places in found.groups_of().values():
                assert found.numbers[metric][places].mean() == pytest.approx(1 / CHOICES)
            assert found.baselines[metric] == pytest.approx(1 / CHOICES)
        right = Counter(item.target for item in task.items())
        assert right == dict.fromkeys(range(CHOICES), len(found.ids) // CHOICES)


def test_articles_are_thirty_and_each_language_has_its_own_words_for_them() -> None:
    texts = read_articles(folder())
    assert set(texts) == set(INVENTED)
    for articles in texts.values():
        assert len(set(articles)) == ARTICLES
        assert max(map(len, articles)) <= LETTERS
    assert texts["English"][2].startswith("Everyone has the right to life")
    assert texts["Spanish"][2].startswith("Todo individuo tiene derecho a la vida")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("to be", "to be"), ("to be or not", "to be"), ("人人生而自由在尊严", "人人生而自由")],
)
def test_a_beginning_ends_with_a_whole_word(text: str, shown: str) -> None:
    assert beginning(text, 6) == shown
