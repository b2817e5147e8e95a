"""The tasks by name. Each reads files, local or of a bucket, in a format that its module tells."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from panthalassa.errors import ConfigError
from panthalassa.evaluate.task import Task
from panthalassa.evaluate.tasks import xglue
from panthalassa.evaluate.tasks.bits_per_byte import BitsPerByte
from panthalassa.evaluate.tasks.captioning import Captioning
from panthalassa.evaluate.tasks.choices import Choices
from panthalassa.evaluate.tasks.code import HumanEval, Mbpp
from panthalassa.evaluate.tasks.question_answering import QuestionAnswering
from panthalassa.evaluate.tasks.summarisation import Summarisation
from panthalassa.evaluate.tasks.visual_questions import VisualQuestions
from panthalassa.storage import Storage

TASKS: Mapping[str, Callable[..., Task]] = {
    "bits-per-byte": BitsPerByte,
    "captioning": Captioning,
    "choices": Choices,
    "human-eval": HumanEval,
    "mbpp": Mbpp,
    "question-answering": QuestionAnswering,
    "summarisation": Summarisation,
    "visual-questions": VisualQuestions,
    **xglue.TASKS,
}


def known() -> list[str]:
    """The names that `open_task` takes."""
    return sorted(TASKS)


def open_task(name: str, data: Storage, limit: int | None = None, **settings: Any) -> Task:
    """A task over the files at `data`; of each group only the first `limit` items.

    Raises ConfigError for a task that there is not, or a setting that it has not. The files are read,
    and checked, by `Task.items`.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name}: there are {', '.join(known())}")
    try:
        return TASKS[name](data=data, limit=limit, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"task {name}: {key}: {first['msg']}, found {first['input']!r}") from None
