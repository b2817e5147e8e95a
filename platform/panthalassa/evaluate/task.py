"""What an evaluation asks of a model, and what it makes of the answers.

A task gives items. An item asks one thing or several of a model, and the answers become numbers by
metric, which are kept for each item: whole evaluations, intervals and comparisons of two models are
functions of these numbers alone. Who answers, where, and after how many interruptions is not known here.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Likelihood:
    """How likely is `continuation` behind `context`? An empty context is the beginning of a text."""

    context: str
    continuation: str


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


Request = Likelihood | Rolling | Generation


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
    asked = [[type(request).__name__, *astuple(request)] for request in item.requests]
    written = json.dumps([asked, item.target], default=repr)
    return replace(item, id=f"{item.id}#{hashlib.sha256(written.encode()).hexdigest()[:12]}")


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
