"""An evaluation in a terminal: every figure with its interval and the number of items behind it."""

from collections.abc import Iterator

from panthalassa.corpus.decontaminate import WORDS
from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.results import Figure, Metric, Results, read_results
from panthalassa.exchange.card import Evaluation
from panthalassa.storage import Storage

Row = tuple[str, ...]

HEADINGS: Row = (
    "task",
    "metric",
    "value",
    "95 % interval",
    "items",
    "most frequent answer or guess",
)
AVERAGE_HEADINGS: Row = ("average", "value", "of")
PARITY_HEADINGS: Row = ("task", "metric", "group", "value", "95 % interval", "items", "beside")
CONTAMINATION_HEADINGS: Row = (
    "task",
    f"{WORDS} words in the corpus",
    "too short",
    "metric",
    "without them",
    "95 % interval",
    "items",
)
ONE = "none: one item"
"""In the place of an interval that resampling can not give."""
BESIDE = ("en", "eng", "english")
"""Groups that others are told beside, the first that is there; else the best one."""


Table = tuple[Row, list[Row]]
"""The headings, and the rows."""


def tables(results: Results) -> list[Table]:
    """All that an evaluation found, without empty tables."""
    found = (
        (HEADINGS, explain(results)),
        (AVERAGE_HEADINGS, averages(results)),
        (PARITY_HEADINGS, parity(results)),
        (CONTAMINATION_HEADINGS, contamination(results)),
    )
    listed = [(headings, list(rows)) for headings, rows in found]
    return [(headings, rows) for headings, rows in listed if rows]


def explain(results: Results) -> Iterator[Row]:
    """A row for each metric of each task, as HEADINGS say; the last column has `Task.baselines`."""
    for task, result in results.tasks.items():
        for name, metric in result.metrics.items():
            value, bounds, n = _told(metric, metric.whole)
            always = "" if metric.baseline is None else _number(metric, metric.baseline)
            yield task, name, value, bounds, n, always


def averages(results: Results) -> Iterator[Row]:
    """A row for each average, as AVERAGE_HEADINGS say."""
    for name, average in results.averages.items():
        yield name, f"{average.value:.1f}", average.of


def contamination(results: Results) -> Iterator[Row]:
    """For each task that was looked for in a corpus a row for each metric, or one alone where no items
    or all were found, as CONTAMINATION_HEADINGS say. Items in the corpus share so many words in a row
    with a training document."""
    for task, result in results.tasks.items():
        if not (found := result.contamination):
            continue
        share = f"{found.found:,} ({100 * found.found / found.items:.1f} %)"
        heads = task, share, f"{found.short:,}"
        if not found.without:
            yield *heads, "", "", "", ""
        for name, figure in found.without.items():
            yield *heads, name, *_told(result.metrics[name], figure)


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


def told_cut(requests: int, length: int) -> str:
    """For people, that so many were read in part."""
    return (
        f"{requests:,} requests do not fit into the {length:,} tokens that are read at most: the "
        "beginning of their contexts is left out"
    )


def for_card(folder: Storage) -> Evaluation:
    """An evaluation as the model card of what it asked tells it. Raises PanthalassaError."""
    results = read_results(folder)
    return Evaluation(folder.uri, results.model.digest, tables(results))


def _told(metric: Metric, figure: Figure) -> Row:
    """The value, its interval and the number of items."""
    value, low, high = (
        _number(metric, number) for number in (figure.value, figure.low, figure.high)
    )
    bounds = f"{low} to {high}" if figure.low < figure.high or figure.n > 1 else ONE
    return value, bounds, f"{figure.n:,}"


def _number(metric: Metric, number: float) -> str:
    aggregate = AGGREGATES[metric.aggregate]
    return f"{aggregate.scale * number:,.{aggregate.digits}f}"
