"""Models that tests make up: functions from a request to its answer, and what a task makes of them."""

from collections.abc import Callable

from panthalassa.evaluate.results import Scores, scores
from panthalassa.evaluate.task import Answer, Generation, Likelihood, Likely, Request, Rolling, Task


def scored(task: Task, model: Callable[[Request], Answer]) -> Scores:
    """A task's items with a model's numbers."""
    return scores(
        task.metrics,
        (
            (item.id, item.group, task.score(item, [model(request) for request in item.requests]))
            for item in task.items()
        ),
        task.baselines(list(task.items())),
    )


def knows(*texts: str) -> Callable[[Request], Answer]:
    """A model to which only these continuations are likely, and which generates the first."""

    def answer(request: Request) -> Answer:
        match request:
            case Likelihood(_, continuation):
                right = continuation.strip() in texts
                return Likely(-1.0 if right else -9.0, right, 1)
            case Rolling(text):
                return Likely(-float(len(text)), False, len(text))
            case Generation():
                return texts[0]

    return answer
