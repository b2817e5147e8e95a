"""What an evaluation asks of a model, and what it makes of the answers.

A task gives items. An item asks one thing or several of a model, and the answers become numbers by
metric, which are kept for each item: whole evaluations, intervals and comparisons of two models are
functions of these numbers alone. Who answers, where, and after how many interruptions is not known here.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Picture:
    """An image file: two of the same bytes are equal."""

    place: str = field(compare=False)
    """A local path or an `s3://` URI."""
    sha256: str


@dataclass(frozen=True)
class Likelihood:
    """How likely is `continuation` behind `context`? An empty context is the beginning of a text."""

    context: str
    continuation: str
    images: tuple[Picture, ...] = ()
    """In front of the context."""


@dataclass(frozen=True)
class Rolling:
    """How likely is a whole text, of any length?"""

    text: str


@dataclass(frozen=True)
class Generation:
    """What comes behind a prompt?"""

    prompt: str
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    new_tokens: int = 64
    """At most."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    sample: int = 0
    """Its number among samples of the same prompt, which differ."""
    images: tuple[Picture, ...] = ()
    """In front of the prompt."""


Request = Likelihood | Rolling | Generation


def images_of(request: Request) -> tuple[Picture, ...]:
    """Those in front of what a request asks about."""
    return () if isinstance(request, Rolling) else request.images


def written(request: Request) -> list[Any]:
    """A request as JSON has it: the same for equal requests alone, wherever their images are."""
    texts = [getattr(request, each.name) for each in fields(request) if each.name != "images"]
    images = [picture.sha256 for picture in images_of(request)]
    return [type(request).__name__, *texts, *([images] if images else [])]


@dataclass(frozen=True)
class Likely:
    """The answer to Likelihood and Rolling."""

    nats: float
    """The natural logarithm of the probability."""
    greedy: bool
    """Whether each token was the most likely one."""
    tokens: int
    """That were scored."""


Answer = Likely | str

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Item:
    """One example of a task."""

    id: str
    """The same in every evaluation of the task: two models are compared item by item."""
    requests: tuple[Request, ...]
    target: Any = None
    """What `Task.score` compares with."""
    group: str = ""
    """A language, or another part of the task that is also told by itself."""


def identified(item: Item) -> Item:
    """The item with a hash of what it asks and expects in its id: those of one id are equal."""
    asked = json.dumps([[*map(written, item.requests)], item.target], default=repr)
    return replace(item, id=f"{item.id}#{hashlib.sha256(asked.encode()).hexdigest()[:12]}")


class Task(ABC):
    """A set of items with its metrics."""

    name: str
    metrics: Mapping[str, str]
    """For each metric the name of what sums it up over items, of `metrics.AGGREGATES`."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All of them, in a fixed order. Raises PanthalassaError for files that are not as expected."""

    def baselines(self, items: Sequence[Item]) -> dict[str, float]:
        """For metrics of which that is known, what one has who always gives the most frequent answer, or
        guesses, whichever is more."""
        return {}

    @abstractmethod
    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        """For each metric the numbers of an item, from the answers to its requests in their order."""
