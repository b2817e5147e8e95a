"""Questions about a passage: exact match and F1 of the answers.

The files are those of SQuAD and MLQA (JSON, `*.json`), or JSONL with objects
{"context", "question", "answers", "language"}. The language of a JSON file is the one in its name, as in
MLQA's `test-context-de-question-en.json`, where it is that of the passage and so of the answer, or the
setting `language`.
"""

import re
from collections.abc import Iterator, Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Answer, Generation, Item, Numbers
from panthalassa.evaluate.tasks.answers import exact_match, f1
from panthalassa.evaluate.tasks.reading import Record, find, read_object, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask

METRICS = {"f1": "mean", "exact_match": "mean"}
IN_NAME = re.compile(r"context-([A-Za-z-]+)-question-([A-Za-z-]+)\.json$")


class Question(Record):
    """A line of a JSONL file."""

    context: str
    question: str
    answers: tuple[str, ...] = Field(min_length=1)
    language: str = ""


class _Answer(Record):
    text: str


class _Question(Record):
    id: str
    question: str
    answers: tuple[_Answer, ...] = Field(min_length=1)


class _Paragraph(Record):
    context: str
    qas: tuple[_Question, ...]


class _Article(Record):
    paragraphs: tuple[_Paragraph, ...]


class Squad(Record):
    """A JSON file of SQuAD 1.1, or of MLQA."""

    data: tuple[_Article, ...]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class QuestionAnswering(FileTask):
    """Exact match and F1 by language."""

    language: str = ""
    """Of files that do not say theirs."""
    name = "question-answering"
    metrics = METRICS

    def read(self) -> Iterator[Item]:
        files = [path for path in find(self.data, "") if path.endswith((".json", ".jsonl"))]
        if not files:
            raise PanthalassaError(f"evaluation data {self.data.uri} has no file *.json or *.jsonl")
        for path in files:
            if path.endswith(".jsonl"):
                for number, row in read_objects(self.data, path, Question):
                    yield question_item(f"{path}:{number}", row, row.language or self.language)
            else:
                named = IN_NAME.search(path)
                language = named[1].lower() if named else self.language
                for name, row in squad_questions(read_object(self.data, path, Squad)):
                    yield question_item(f"{path}:{name}", row, language)

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        return question_numbers(item, answers)


def squad_questions(squad: Squad) -> Iterator[tuple[str, Question]]:
    """The questions with their ids."""
    for article in squad.data:
        for paragraph in article.paragraphs:
            for asked in paragraph.qas:
                right = tuple(answer.text for answer in asked.answers)
                yield (
                    asked.id,
                    Question(context=paragraph.context, question=asked.question, answers=right),
                )


def question_item(name: str, row: Question, language: str) -> Item:
    """The passage, the question, and one line for the answer."""
    prompt = f"{row.context}\n\nQuestion: {row.question}\nAnswer:"
    return Item(name, (Generation(prompt, stop=("\n",)),), row.answers, language)


def question_numbers(item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
    """F1 and exact match of the answer."""
    (answer,) = answers
    assert isinstance(answer, str)
    return {
        "f1": (f1(answer, item.target, item.group),),
        "exact_match": (exact_match(answer, item.target, item.group),),
    }
