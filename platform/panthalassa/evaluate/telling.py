"""An evaluation in a terminal: every figure with its interval and the number of items behind it."""

from collections.abc import Iterator

from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.results import Figure, Metric, Results, read_results
from panthalassa.exchange.card import Evaluation
from panthalassa.storage import Storage

Row = tuple[str, ...]

HEADINGS: Row = ("task", "metric", "value", "95 % interval", "items")
PARITY_HEADINGS: Row = ("task", "metric", "group", "value", "95 % interval", "items", "beside")
BESIDE = ("en", "eng", "english")
"""Groups that others are told beside, the first that is there; else the best one."""


def explain(results: Results) -> Iterator[Row]:
    """A row for each metric of each task, as HEADINGS say."""
    for task, result in results.tasks.items():
        for name, metric in result.metrics.items():
            value, bounds, n = _told(metric, metric.whole)
            yield task, name, value, bounds, n


def parity(results: Results) -> Iterator[Row]:
    """A row for each group of each metric, as PARITY_HEADINGS say, the best first; the last column has
    the group's ratio to English where there is English, and else to the best."""
    for task, result in results.tasks.items():
        for name, metric in result.metrics.items():
            sign = 1 if AGGREGATES[metric.aggregate].lower_is_better else -1
            groups = sorted(metric.groups, key=lambda group: sign * metric.groups[group].value)
            if len(groups) < 2:
                continue
            first = next((group for group in BESIDE if group in groups), groups[0])
            other = metric.groups[first].value
            for group in groups:
                value, bounds, n = _told(metric, metric.groups[group])
                times = f"{metric.groups[group].value / other:.2f} x {first}" if other else ""
                yield task, name, group, value, bounds, n, times


def for_card(folder: Storage) -> Evaluation:
    """An evaluation as the model card of what it asked tells it. Raises PanthalassaError."""
    results = read_results(folder)
    tables = [(HEADINGS, list(explain(results))), (PARITY_HEADINGS, list(parity(results)))]
    return Evaluation(
        folder.uri, results.model.digest, [(heads, rows) for heads, rows in tables if rows]
    )


def _told(metric: Metric, figure: Figure) -> Row:
    """The value, its interval and the number of items."""
    aggregate = AGGREGATES[metric.aggregate]
    value, low, high = (
        f"{aggregate.scale * number:,.{aggregate.digits}f}"
        for number in (figure.value, figure.low, figure.high)
    )
    return value, f"{low} to {high}", f"{figure.n:,}"
