"""The data behind the figures as CSV, as complete as the size of the page allows."""

import base64
import csv
import gzip
import io
from collections.abc import Iterable, Sequence

from panthalassa.report.figures import shares_of
from panthalassa.report.goodput_figure import stretches
from panthalassa.report.marks import interruptions, world_sizes
from panthalassa.report.read import RunData
from panthalassa.report.series import bucket

MOST_ROWS = 100_000
"""Rows of a file; with more steps in all runs together, its rows are means of several."""

Row = Sequence[object]

BY_STEP = {
    "loss": ("loss", "held_out_loss"),
    "speed": ("tokens_per_second",),
    "mfu": ("mfu",),
    "joules": ("joules",),
    "kwh": ("kwh_so_far",),
    "checkpoints": ("checkpoint_seconds", "stall_seconds"),
}
"""The metrics of each figure over steps."""


def table(header: Row, rows: Iterable[Row]) -> str:
    """The text of a CSV file (RFC 4180)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def packed(text: str) -> str:
    """Compressed (gzip) and as base64, for the page to unpack."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def is_complete(runs: Sequence[RunData], metrics: Sequence[str]) -> bool:
    """Whether the file of these metrics has a row for each step."""
    return sum(max(len(run.series(m).step) for m in metrics) for run in runs) <= MOST_ROWS


def steps_file(runs: Sequence[RunData], metrics: Sequence[str]) -> str:
    """A row for each step; or, with too many of them, for several, with their mean and extremes."""
    if is_complete(runs, metrics):
        return table(["run", "step", *metrics], _steps(runs, metrics))
    header = ["run", "metric", "first_step", "last_step", "mean", "lowest", "highest"]
    return table(header, _buckets(runs, metrics))


def _steps(runs: Sequence[RunData], metrics: Sequence[str]) -> Iterable[Row]:
    for run in runs:
        rows: dict[int, list[str]] = {}
        for number, metric in enumerate(metrics):
            series = run.series(metric)
            for step, value in zip(series.step.tolist(), series.value.tolist(), strict=True):
                rows.setdefault(step, [""] * len(metrics))[number] = f"{value:.6g}"
        yield from ([run.name, step, *rows[step]] for step in sorted(rows))


def _buckets(runs: Sequence[RunData], metrics: Sequence[str]) -> Iterable[Row]:
    for run in runs:
        for metric in metrics:
            found = bucket(run.series(metric), MOST_ROWS // (3 * len(runs) * len(metrics)))
            columns = (found.first, found.last, found.mean, found.low, found.high)
            for first, last, *values in zip(*(c.tolist() for c in columns), strict=True):
                yield [run.name, metric, first, last, *(f"{value:.6g}" for value in values)]
            yield from ([run.name, metric, s, s, "nan", "", ""] for s in found.not_finite.tolist())


def goodput_file(run: RunData) -> str:
    """Seconds of each part of the time, by stretch."""
    if isinstance(run.time, str):
        return ""
    edges, found = stretches(run.time.timeline)
    seconds = zip(*(values.tolist() for values in found.values()), strict=True)
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), seconds, strict=True)
    header = ["run", "from_second", "to_second", *found]
    return table(header, ([run.name, start, end, *parts] for start, end, parts in rows))


def world_file(runs: Sequence[RunData]) -> str:
    """The ranks from which second on; and the interruptions, by the step after them."""
    rows: list[Row] = []
    for run in runs:
        if not isinstance(run.time, str):
            sizes = zip(*world_sizes(run.time.timeline), strict=True)
            rows += [[run.name, "ranks", second, "", ranks] for second, ranks in sizes]
            rows += [
                [run.name, what, "", step, ""] for what, step in interruptions(run.time.timeline)
            ]
    return table(["run", "what", "second", "step", "ranks"], rows)


def languages_file(runs: Sequence[RunData]) -> str:
    rows: list[Row] = []
    for run in runs:
        if not isinstance(run.languages, str):
            share = shares_of(run.languages)
            rows += [
                [
                    run.name,
                    found.name,
                    found.samples,
                    found.positions,
                    found.epochs,
                    share[found.name],
                ]
                for found in run.languages
            ]
    return table(["run", "language", "samples", "positions", "epochs", "share"], rows)
