"""An evaluation from its configuration to its results.

Tasks are read before anything is started; then Ray's workers answer, and every item's numbers are
written with their sums and intervals. Answers are kept in the folder of the results: the same command
goes on where another was ended or killed.
"""

from collections.abc import Callable, Sequence
from itertools import islice

from pydantic import JsonValue

from panthalassa.cluster import connected
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate.config import PREFIX, Asked, Evaluation
from panthalassa.evaluate.engine import Engine
from panthalassa.evaluate.harness_data import offline
from panthalassa.evaluate.results import Model, Results, Scores, scores, write_results
from panthalassa.evaluate.task import Item, Task
from panthalassa.evaluate.tasks import open_task
from panthalassa.storage import open_storage

ANSWERS = "answers"
"""The folder of what is kept, below that of the results."""


def evaluate(config: Evaluation, tell: Callable[[str], None], debug: bool = False) -> Results:
    """Ask the model all tasks, and write what comes of it. `tell` gets lines for people.

    Raises PanthalassaError when a user has to mend something first.
    """
    output = open_storage(config.output)
    own = {entry.name: _open(entry) for entry in config.tasks if not entry.of_harness}
    items = {name: list(task.items()) for name, task in own.items()}
    harness = [entry for entry in config.tasks if entry.of_harness]
    if harness:
        _check_harness()
    with (
        connected(config.cluster, debug),
        Engine(config, output.below(ANSWERS), tell) as engine,
    ):
        tell(f"{engine.model.name} reads {engine.model.length:,} tokens at most")
        found = {name: score(task, items[name], engine) for name, task in own.items()}
        if harness:
            from panthalassa.evaluate.harness import HarnessModel, run

            found |= run(harness, HarnessModel(engine.answers, engine.model.digest), tell)
    try:
        return write_results(
            output,
            Model(name=engine.model.name, digest=engine.model.digest),
            told(config, engine),
            found,
        )
    except OSError as error:
        raise PanthalassaError(
            f"the results can not be written to output={config.output}: {error}. Make room or mend the "
            "storage; the same command then asks nothing again."
        ) from error


def score(task: Task, items: Sequence[Item], engine: Engine) -> Scores:
    """Each item's numbers, from the model's answers."""
    answers = iter(engine.answers([request for item in items for request in item.requests]))
    return scores(
        task.metrics,
        (
            (item.id, item.group, task.score(item, list(islice(answers, len(item.requests)))))
            for item in items
        ),
    )


def told(config: Evaluation, engine: Engine) -> dict[str, JsonValue]:
    """What decided the answers besides the model."""
    return {
        "dtype": config.dtype,
        "chat": config.chat,
        "length": engine.model.length,
        "tasks": [entry.model_dump(mode="json") for entry in config.tasks],
    }


def _open(entry: Asked) -> Task:
    return open_task(entry.name, open_storage(entry.data), entry.limit, **entry.settings)


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
