"""The tasks of a list, read; and what comes of the answers of whoever is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pydantic import JsonValue

from panthalassa.config_evaluation import PREFIX, Asked
from panthalassa.errors import ConfigError
from panthalassa.evaluate.harness_data import offline
from panthalassa.evaluate.results import Scores, scores
from panthalassa.evaluate.task import Answer, Item, Request, Task, identified
from panthalassa.evaluate.tasks import open_task
from panthalassa.storage import open_storage

Answers = Callable[[Sequence[Request]], list[Answer]]


@dataclass(frozen=True)
class Questions:
    """Of our tasks the items; those of the harness read theirs when they are asked."""

    own: Mapping[str, tuple[Task, Sequence[Item]]]
    of_harness: Sequence[Asked]

    def scores(self, answers: Answers, tell: Callable[[str], None]) -> dict[str, Scores]:
        """Each item's numbers by task. Raises PanthalassaError."""
        found = {name: _scores(task, items, answers) for name, (task, items) in self.own.items()}
        if self.of_harness:
            from panthalassa.evaluate.harness import HarnessModel, run

            found |= run(self.of_harness, HarnessModel(answers), tell)
        return found


def read_questions(tasks: Sequence[Asked]) -> Questions:
    """Raises PanthalassaError for a task that there is not, and files that are not as it expects."""
    of_harness = [entry for entry in tasks if entry.of_harness]
    if of_harness:
        _check_harness()
    own = {}
    for entry in tasks:
        if not entry.of_harness:
            task = open_task(entry.name, open_storage(entry.data), entry.limit, **entry.settings)
            own[entry.name] = task, list(map(identified, task.items()))
    return Questions(own, of_harness)


def described(dtype: str, chat: bool, length: int, tasks: Sequence[Asked]) -> dict[str, JsonValue]:
    """What decides the answers besides the model, as results keep it."""
    asked: list[JsonValue] = [entry.model_dump(mode="json") for entry in tasks]
    return {"dtype": dtype, "chat": chat, "length": length, "tasks": asked}


def _scores(task: Task, items: Sequence[Item], answers: Answers) -> Scores:
    found = iter(answers([request for item in items for request in item.requests]))
    return scores(
        task.metrics,
        (
            (item.id, item.group, task.score(item, list(islice(found, len(item.requests)))))
            for item in items
        ),
        task.baselines(items),
    )


def _check_harness() -> None:
    """Raises ConfigError when it is not installed."""
    offline()
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tasks that begin with {PREFIX} need the LM Evaluation Harness: "
            "pip install 'panthalassa[evaluate]'"
        ) from error
