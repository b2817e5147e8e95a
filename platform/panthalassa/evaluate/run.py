"""An evaluation from its configuration to its results.

Tasks are read before anything is started; then Ray's workers answer, and every item's numbers are
written with their sums and intervals. Answers are kept in the folder of the results: the same command
goes on where another was ended or killed. With a corpus, its training documents are looked through for
the items then.
"""

from collections.abc import Callable, Mapping

from pydantic import JsonValue

from panthalassa.cluster import connected
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.config import Evaluation
from panthalassa.evaluate.contamination import TrainingTexts, contaminated, training_texts
from panthalassa.evaluate.engine import Engine
from panthalassa.evaluate.questions import Questions, described, read_questions
from panthalassa.evaluate.results import (
    RESULTS,
    Contamination,
    Model,
    Results,
    Scores,
    read_results,
    write_results,
)
from panthalassa.evaluate.tasks.xglue import missing, xglue_averages
from panthalassa.evaluate.telling import told_cut
from panthalassa.storage import Storage, open_storage

ANSWERS = "answers"
"""The folder of what is kept, below that of the results."""


def evaluate(config: Evaluation, tell: Callable[[str], None], debug: bool = False) -> Results:
    """Ask the model all tasks, and write what comes of it. `tell` gets lines for people.

    Raises PanthalassaError when a user has to mend something first.
    """
    output = open_storage(config.output)
    questions = read_questions(config.tasks)
    documents = training_texts(open_storage(config.corpus)) if config.corpus else None
    with (
        connected(config.cluster, debug),
        Engine(config, output.below(ANSWERS), tell) as engine,
    ):
        model = Model(name=engine.model.name, digest=engine.model.digest)
        settings = described(config.dtype, config.chat, engine.model.length, config.tasks)
        _check(output, model, settings)
        tell(f"{engine.model.name} reads {engine.model.length:,} tokens at most")
        found = questions.scores(engine.answers, tell)
    if engine.cut:
        tell(told_cut(len(engine.cut), engine.model.length))
    for average, lacking in missing(found).items():
        if lacking:
            tell(f"{average} has no value without {'; '.join(lacking)}")
    contaminations = _contaminations(documents, questions, found, tell) if documents else {}
    try:
        results = write_results(
            output,
            model,
            settings,
            found,
            contaminations,
            xglue_averages(found),
            len(engine.cut),
        )
    except OSError as error:
        raise PanthalassaError(
            f"the results can not be written to output={config.output}: {error}. Make room or mend the "
            "storage; the same command then asks nothing again."
        ) from error
    for name, kept in results.tasks.items():
        for metric in sorted(found[name].metrics.keys() - kept.metrics.keys()):
            tell(f"{name}: {metric} is infinite, and left out")
    return results


def _check(output: Storage, model: Model, settings: dict[str, JsonValue]) -> None:
    """Raises PanthalassaError when the results of another evaluation are there."""
    if not output.exists(RESULTS):
        return
    there = read_results(output)
    if there.model.digest != model.digest:
        what = f"of another model, {there.model.name}"
    elif differing := sorted(key for key in settings if there.settings.get(key) != settings[key]):
        what = f"with other {' and '.join(differing)}"
    else:
        return
    raise PanthalassaError(
        f"{output.uri} has an evaluation {what}: choose another output, or remove that one"
    )


def _contaminations(
    documents: TrainingTexts,
    questions: Questions,
    found: Mapping[str, Scores],
    tell: Callable[[str], None],
) -> dict[str, Contamination]:
    """Of our own tasks. Raises CorpusError."""
    tell(f"the training documents of {documents.corpus.uri} are looked through for the items")
    for name in found.keys() - questions.own.keys():
        tell(f"{name}: items of the harness are not looked for")
    own = {name: items for name, (_, items) in questions.own.items()}
    return {
        name: each.record(documents.manifest.fingerprint, found[name])
        for name, each in contaminated(documents, own).items()
    }
