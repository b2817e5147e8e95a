"""Two evaluations compared, item by item: a difference is only told with its interval and the number of
items behind it.

Only items that both evaluations have count; what one of them lacks is told. The interval is that of the
paired bootstrap (items are drawn, and both models' figures are computed of the same drawn items). Where
an item is right or wrong, McNemar's exact test (1947) gives the probability of a difference like this
or a larger one between equal models; elsewhere the bootstrap does, and never one below that of as many
equal signs. Of several metrics some differ by
chance: the probabilities are corrected by Holm (1979).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import JsonValue
from scipy import stats

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.intervals import (
    CONFIDENCE,
    REPLICATES,
    middle,
    replicates,
    right_or_wrong,
)
from panthalassa.evaluate.metrics import AGGREGATES, Floats
from panthalassa.evaluate.results import Scores, read_results, read_scores
from panthalassa.storage import Storage


@dataclass(frozen=True)
class Difference:
    """What model B has more than model A in one metric, unscaled."""

    task: str
    metric: str
    aggregate: str
    a: float
    b: float
    low: float
    high: float
    """The 95 % interval of b - a."""
    p: float
    """The probability of such a difference between equal models, corrected for the number of metrics."""
    items: int
    """That both have."""
    only_a: int
    only_b: int

    @property
    def shown(self) -> bool:
        """Whether the interval holds no zero, and chance is an unlikely reason."""
        return not self.low <= 0 <= self.high and self.p < 1 - CONFIDENCE

    def __str__(self) -> str:
        """Such as "+4.2 points (95 % 1.1 to 7.3, 512 items)"."""
        unit = AGGREGATES[self.aggregate]
        value, low, high = (
            f"{unit.scale * number:{sign},.{unit.digits}f}"
            for number, sign in ((self.b - self.a, "+"), (self.low, "-"), (self.high, "-"))
        )
        told = f"{value} {unit.unit}".rstrip()
        missing = "" if self.shown else "; no difference is shown"
        if self.items == 1:
            return f"{told} (one item has no interval{missing})"
        return (
            f"{told} ({CONFIDENCE:.0%} {low} to {high}, {self.items:,} items{missing})"
        ).replace("%", " %")


def compare(a: Storage, b: Storage) -> list[Difference]:
    """How evaluation B differs from A in every metric that both have.

    Raises PanthalassaError when one can not be read, or they share no item of any task.
    """
    first, second = read_results(a), read_results(b)
    found = [
        difference
        for task in first.tasks
        if task in second.tasks
        for difference in compare_scores(
            task, read_scores(a, first, task), read_scores(b, second, task)
        )
    ]
    if not found:
        raise PanthalassaError(
            f"{a.uri} and {b.uri} have no item of a task and metric in common: there are the tasks "
            f"{', '.join(first.tasks)} and {', '.join(second.tasks)}. Evaluate both on the same data."
        )
    corrected = holm([difference.p for difference in found])
    return [replace(difference, p=p) for difference, p in zip(found, corrected, strict=True)]


def compare_scores(task: str, a: Scores, b: Scores) -> Iterator[Difference]:
    """The differences of one task, each with the probability of its own; none in perplexity where the
    same texts have other tokens, so that it says nothing."""
    places = {name: place for place, name in enumerate(b.ids)}
    pairs = [(place, places[name]) for place, name in enumerate(a.ids) if name in places]
    if not pairs:
        return
    of_a, of_b = np.array(pairs).T
    for metric, aggregate in a.metrics.items():
        if b.metrics.get(metric) != aggregate:
            continue
        rows = a.numbers[metric][of_a], b.numbers[metric][of_b]
        if aggregate == "perplexity" and (rows[0][:, 1] != rows[1][:, 1]).any():
            continue
        with np.errstate(invalid="ignore"):
            drawn = np.subtract(*replicates(aggregate, rows)[::-1])
        if not np.isfinite(drawn).all():
            continue
        low, high = middle(drawn)
        yield Difference(
            task,
            metric,
            aggregate,
            AGGREGATES[aggregate](rows[0]),
            AGGREGATES[aggregate](rows[1]),
            low,
            high,
            _probability(aggregate, rows, drawn),
            len(pairs),
            len(a.ids) - len(pairs),
            len(b.ids) - len(pairs),
        )


def mcnemar(right_a: Floats, right_b: Floats) -> float:
    """Of 0 or 1 by item: the exact two-sided probability that of the items which only one model has
    right, so unequal a share is one model's."""
    only_a = int(((right_a == 1) & (right_b == 0)).sum())
    only_b = int(((right_a == 0) & (right_b == 1)).sum())
    if not only_a + only_b:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Corrected so that the chance of a single false one among all is what each says."""
    corrected, largest = [0.0] * len(probabilities), 0.0
    for rank, place in enumerate(np.argsort(probabilities, kind="stable").tolist()):
        largest = max(largest, probabilities[place] * (len(probabilities) - rank))
        corrected[place] = min(1.0, largest)
    return corrected


def settings_that_differ(a: Storage, b: Storage) -> Iterator[str]:
    """A line for each setting, of both evaluations or of a task, that is not the same in the two."""
    first, second = (_settings(read_results(folder).settings) for folder in (a, b))
    for key in first:
        if key in second and first[key] != second[key]:
            yield f"{key} differs: {first[key]} in the first evaluation, {second[key]} in the second"


def _settings(kept: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """By name, those of tasks too. Where data were read from and how many is said by the items."""
    tasks = kept.get("tasks")
    of_tasks = {
        f"{entry.get('name')}: settings": entry.get("settings")
        for entry in (tasks if isinstance(tasks, list) else [])
        if isinstance(entry, dict)
    }
    return {key: value for key, value in kept.items() if key != "tasks"} | of_tasks


def left_out(differences: Sequence[Difference]) -> Iterator[str]:
    """A line for each task of which one evaluation has items that the other lacks."""
    for difference in {difference.task: difference for difference in differences}.values():
        if difference.only_a or difference.only_b:
            yield (
                f"{difference.task}: {difference.only_a:,} items are only in the first evaluation and "
                f"{difference.only_b:,} only in the second; they do not count"
            )


def _probability(aggregate: str, rows: tuple[Floats, Floats], drawn: Floats) -> float:
    right = [right_or_wrong(aggregate, numbers) for numbers in rows]
    if right[0] is not None and right[1] is not None:
        return mcnemar(right[0], right[1])
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    of_signs = 2.0 ** (1 - len(rows[0]))  # that all n differences have one sign by chance
    return min(1.0, max(of_signs, 2 * (tail + 1) / (REPLICATES + 1)))
