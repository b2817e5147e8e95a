"""Multiple choice by likelihood: JSONL files with objects {"prompt", "choices", "answer", "group",
"image"}.

`answer` is the index of the right choice; `group`, a language for instance, may be absent, and so may
`image`, the path of a file in the folder of the JSONL, which stands in front of the prompt. The most
likely choice behind the prompt is the answer. Longer choices are less likely for that alone, so there is
also the accuracy of likelihoods by byte of UTF-8, which is a measure of length in all scripts.

Settings: `recall` are the numbers k for which the share of questions is told whose right choice is
among the k most likely ones. With `calibrated`, a folder of other images in the folder of the data, the
same is also told of what the image makes of a choice: the logarithm of its probability less the mean of
that with each of those, as some names are common whatever is shown. Images that are themselves right for
a choice would speak against it.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Answer, Item, Likelihood, Likely, Numbers, Picture
from panthalassa.evaluate.tasks.reading import Record, find, picture, read_objects, wrong
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask

METRICS = {"accuracy": "mean", "accuracy_by_byte": "mean"}
CALIBRATED = "_calibrated"
"""Behind the names of metrics of what the image makes of a choice."""
MOST_OTHERS = 32
"""Images in the folder of `calibrated`: every choice of every question is asked with each."""


class Question(Record):
    """A line of the file."""

    prompt: str
    choices: tuple[str, ...] = Field(min_length=2, max_length=1000)
    answer: int = Field(ge=0)
    group: str = ""
    image: str = Field(default="", min_length=1)
    images: Any = None

    @field_validator("images")
    @classmethod
    def _is_one(cls, given: Any) -> None:
        if given is not None:
            raise ValueError("a question has one image: name it as `image`, a path")

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

    recall: tuple[Annotated[int, Field(gt=0)], ...] = ()
    calibrated: str = ""
    name = "choices"

    @property
    def metrics(self) -> Mapping[str, str]:  # type: ignore[override]
        recalls = {f"recall@{k}": "mean" for k in self.recall}
        told = {"accuracy": "mean", **recalls} if self.calibrated else {}
        return {**METRICS, **recalls, **{f"{name}{CALIBRATED}": of for name, of in told.items()}}

    @cached_property
    def _others(self) -> tuple[Picture, ...]:
        """The images in the folder of `calibrated`."""
        if not self.calibrated:
            return ()
        folder = self.calibrated.strip("/")
        found = [path for path in find(self.data, "") if posixpath.dirname(path) == folder]
        if not 1 <= len(found) <= MOST_OTHERS:
            raise PanthalassaError(
                f"evaluation data {self.data.uri} has {len(found)} files in the folder {folder!r} "
                f"(setting calibrated): put 1 to {MOST_OTHERS} images there that no question shows"
            )
        return tuple(Picture(f"{self.data.uri}/{p}", self.data.sha256(p)) for p in found)

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for number, question in read_objects(self.data, path, Question):
                images = (
                    (picture(self.data, path, number, question.image),) if question.image else ()
                )
                if self.calibrated and not images:
                    raise wrong(self.data, path, number, "calibrated asks for an image")
                requests = continuations(question.prompt, question.choices, images)
                for other in self._others:
                    requests += continuations(question.prompt, question.choices, (other,))
                yield Item(f"{path}:{number}", requests, question.answer, question.group)

    def baselines(self, items: Sequence[Item]) -> dict[str, float]:
        requests = 1 + len(self._others)
        found = {}
        for name in self.metrics:
            kind, _, best = name.removesuffix(CALIBRATED).partition("@")
            found[name] = guess(items, int(best or 1), requests)
            if kind != "recall":
                found[name] = max(majority(items), found[name])
        return found

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        nats = log_probabilities(answers)
        found: dict[str, Numbers] = {}
        if self.calibrated:
            shown, *others = np.reshape(nats, (1 + len(self._others), -1))
            gained = (shown - np.mean(others, axis=0)).tolist()
            nats = shown.tolist()
            found = {
                f"{name}{CALIBRATED}": numbers
                for name, numbers in self._ranked(gained, item.target)
            }
        by_byte = [
            each / len(request.continuation.encode())
            for each, request in zip(nats, item.requests, strict=False)
            if isinstance(request, Likelihood)
        ]
        return {
            **found,
            **dict(self._ranked(nats, item.target)),
            "accuracy_by_byte": (float(most(by_byte) == item.target),),
        }

    def _ranked(self, values: Sequence[float], right: int) -> Iterator[tuple[str, Numbers]]:
        """Whether the right choice is the best one, and whether it is among the best k."""
        yield "accuracy", (float(most(values) == right),)
        before = sum(value >= values[right] for value in values) - 1
        yield from ((f"recall@{k}", (float(before < k),)) for k in self.recall)


def majority(items: Sequence[Item]) -> float:
    """The accuracy of always giving the right answer that is the most frequent: what a model that has
    learned something is beyond."""
    right = Counter(
        request.continuation
        for item in items
        if isinstance(request := item.requests[item.target], Likelihood)
    )
    return max(right.values()) / right.total()


def guess(items: Sequence[Item], best: int = 1, requests: int = 1) -> float:
    """How often the right choice is to be expected among `best` guessed ones: with one, more than the
    majority's accuracy where each item has choices of its own. requests: of an item, for each choice."""
    return sum(min(1.0, best * requests / len(item.requests)) for item in items) / len(items)


def continuations(
    prompt: str, choices: Sequence[str], images: tuple[Picture, ...] = ()
) -> tuple[Likelihood, ...]:
    """Each of the choices behind the prompt, with a space between where there is none."""
    space = " " if prompt and not prompt[-1].isspace() else ""
    return tuple(Likelihood(prompt, f"{space}{choice}", images) for choice in choices)


def log_probabilities(answers: Sequence[Answer]) -> list[float]:
    """Of answers to requests for likelihoods."""
    return [answer.nats for answer in answers if isinstance(answer, Likely)]


def most(values: Sequence[float]) -> int:
    """The place of the largest value, the first of several."""
    return max(range(len(values)), key=values.__getitem__)
