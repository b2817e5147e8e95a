"""Multiple choice by likelihood: JSONL files with objects {"prompt", "choices", "answer", "group"}.

`answer` is the index of the right choice; `group`, a language for instance, may be absent. The most
likely choice behind the prompt is the answer. Longer choices are less likely for that alone, so there is
also the accuracy of likelihoods by byte of UTF-8, which is a measure of length in all scripts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from panthalassa.evaluate.task import Answer, Item, Likelihood, Likely, Numbers
from panthalassa.evaluate.tasks.reading import Record, find, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask

METRICS = {"accuracy": "mean", "accuracy_by_byte": "mean"}


class Question(Record):
    """A line of the file."""

    prompt: str
    choices: tuple[str, ...] = Field(min_length=2, max_length=1000)
    answer: int = Field(ge=0)
    group: str = ""

    @model_validator(mode="after")
    def _check(self) -> "Question":
        if not all(choice.strip() for choice in self.choices):
            raise ValueError("a choice is empty")
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} of {len(self.choices)} choices, counted from 0")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Choices(FileTask):
    """The share of questions whose right choice is the most likely one."""

    name = "choices"
    metrics = METRICS

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for number, question in read_objects(self.data, path, Question):
                requests = continuations(question.prompt, question.choices)
                yield Item(f"{path}:{number}", requests, question.answer, question.group)

    def baselines(self, items: Sequence[Item]) -> dict[str, float]:
        return dict.fromkeys(self.metrics, max(majority(items), guess(items)))

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        nats = log_probabilities(answers)
        by_byte = [
            each / len(request.continuation.encode())
            for each, request in zip(nats, item.requests, strict=True)
            if isinstance(request, Likelihood)
        ]
        return {
            "accuracy": (float(most(nats) == item.target),),
            "accuracy_by_byte": (float(most(by_byte) == item.target),),
        }


def majority(items: Sequence[Item]) -> float:
    """The accuracy of always giving the right answer that is the most frequent: what a model that has
    learned something is beyond."""
    right = Counter(
        request.continuation
        for item in items
        if isinstance(request := item.requests[item.target], Likelihood)
    )
    return max(right.values()) / right.total()


def guess(items: Sequence[Item]) -> float:
    """The accuracy to be expected of guessing: more than the majority's where each item has choices of
    its own."""
    return sum(1 / len(item.requests) for item in items) / len(items)


def continuations(prompt: str, choices: Sequence[str]) -> tuple[Likelihood, ...]:
    """Each of the choices behind the prompt, with a space between where there is none."""
    space = " " if prompt and not prompt[-1].isspace() else ""
    return tuple(Likelihood(prompt, f"{space}{choice}") for choice in choices)


def log_probabilities(answers: Sequence[Answer]) -> list[float]:
    """Of answers to requests for likelihoods."""
    return [answer.nats for answer in answers if isinstance(answer, Likely)]


def most(values: Sequence[float]) -> int:
    """The place of the largest value, the first of several."""
    return max(range(len(values)), key=values.__getitem__)
