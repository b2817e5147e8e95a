"""Evaluations that tests make up."""

from collections.abc import Sequence

from panthalassa.evaluate.results import Model, Results, Scores, scores, write_results
from panthalassa.storage import Storage

MODEL = Model(name="tiny", digest="0" * 64)


def right_or_wrong(right: Sequence[bool], groups: Sequence[str] = (), ids: str = "item") -> Scores:
    """A task with one accuracy."""
    rows = (
        (f"{ids}-{n}", groups[n] if groups else "", {"accuracy": (float(hit),)})
        for n, hit in enumerate(right)
    )
    return scores({"accuracy": "mean"}, rows)


def written(storage: Storage, **tasks: Scores) -> Results:
    return write_results(storage, MODEL, {}, tasks)
