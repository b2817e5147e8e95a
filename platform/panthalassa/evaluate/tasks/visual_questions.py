"""Questions about images: the accuracy of VQA, and exact match.

The files are JSONL with objects {"image", "question", "answers", "language"}; `image` is the path of a
file in the folder of the JSONL, and `answers` are those that people gave, of whom a VQA data set has
ten. Answers are compared as `answers` does it in any language. The accuracy of an answer (Antol et al.
2015, as the data set's evaluation computes it) is the mean, over all ways to leave one person out, of
the share min(1, people who gave it / 3). Where no more than three answered, it is exact match.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from panthalassa.evaluate.task import Answer, Generation, Item, Numbers
from panthalassa.evaluate.tasks.answers import exact_match, words
from panthalassa.evaluate.tasks.reading import Record, find, picture, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask

METRICS = {"vqa_accuracy": "mean", "exact_match": "mean"}
PEOPLE = 3
"""Who must have given an answer so that it is right."""


class Question(Record):
    """A line of the file."""

    image: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    language: str = ""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class VisualQuestions(FileTask):
    """VQA's accuracy and exact match by language."""

    new_tokens: Annotated[int, Field(gt=0)] = 16
    name = "visual-questions"
    metrics = METRICS

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for number, row in read_objects(self.data, path, Question):
                images = (picture(self.data, path, number, row.image),)
                prompt = f"Question: {row.question}\nAnswer:"
                asked = Generation(prompt, ("\n",), self.new_tokens, images=images)
                yield Item(f"{path}:{number}", (asked,), row.answers, row.language)

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        (answer,) = answers
        assert isinstance(answer, str)
        return {
            "vqa_accuracy": (vqa_accuracy(answer, item.target, item.group),),
            "exact_match": (exact_match(answer, item.target, item.group),),
        }


def vqa_accuracy(answer: str, given: Sequence[str], language: str) -> float:
    """How right an answer is beside those that people gave, 0 to 1."""
    if len(given) <= PEOPLE:
        return exact_match(answer, given, language)
    found = words(answer, language)
    same = [words(other, language) == found for other in given]
    counts = [sum(same) - left_out for left_out in same]
    return sum(min(1.0, count / PEOPLE) for count in counts) / len(counts)
