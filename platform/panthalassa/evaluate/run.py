"""An evaluation from its configuration to its results.

Tasks are read before anything is started; then Ray's workers answer, and every item's numbers are
written with their sums and intervals. Answers are kept in the folder of the results: the same command
goes on where another was ended or killed.
"""

from collections.abc import Callable

from pydantic import JsonValue

from panthalassa.cluster import connected
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.config import Evaluation
from panthalassa.evaluate.engine import Engine
from panthalassa.evaluate.questions import read_questions
from panthalassa.evaluate.results import Model, Results, write_results
from panthalassa.storage import open_storage

ANSWERS = "answers"
"""The folder of what is kept, below that of the results."""


def evaluate(config: Evaluation, tell: Callable[[str], None], debug: bool = False) -> Results:
    """Ask the model all tasks, and write what comes of it. `tell` gets lines for people.

    Raises PanthalassaError when a user has to mend something first.
    """
    output = open_storage(config.output)
    questions = read_questions(config.tasks)
    with (
        connected(config.cluster, debug),
        Engine(config, output.below(ANSWERS), tell) as engine,
    ):
        tell(f"{engine.model.name} reads {engine.model.length:,} tokens at most")
        found = questions.scores(engine.answers, tell)
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


def told(config: Evaluation, engine: Engine) -> dict[str, JsonValue]:
    """What decided the answers besides the model."""
    return {
        "dtype": config.dtype,
        "chat": config.chat,
        "length": engine.model.length,
        "tasks": [entry.model_dump(mode="json") for entry in config.tasks],
    }
