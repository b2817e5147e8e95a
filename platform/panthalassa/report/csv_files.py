"""The data behind the figures as CSV, as complete as the size of the page allows."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from pyarrow.csv import write_csv

from panthalassa.report.figures import shares_of
from panthalassa.report.goodput_figure import stretches
from panthalassa.report.marks import interruptions, world_sizes
from panthalassa.report.packed import Row, table
from panthalassa.report.read import RunData
from panthalassa.report.series import Floats, bucket

MOST_ROWS = 100_000
"""Rows of a file; with more steps in all runs together, its rows are means of several."""
DIGITS = 5
"""Significant digits of a value by step."""

BY_STEP = {
    "loss": ("loss", "held_out_loss"),
    "speed": ("tokens_per_second",),
    "mfu": ("mfu",),
    "joules": ("joules",),
    "kwh": ("kwh_so_far",),
    "checkpoints": ("checkpoint_seconds", "stall_seconds"),
}
"""The metrics of each figure over steps."""


def is_complete(runs: Sequence[RunData], metrics: Sequence[str]) -> bool:
    """Whether the file of these metrics has a row for each step."""
    return sum(max(len(run.series(m).step) for m in metrics) for run in runs) <= MOST_ROWS


def steps_file(runs: Sequence[RunData], metrics: Sequence[str]) -> str:
    """A row for each step; or, with too many of them, for several, with their mean and extremes."""
    if is_complete(runs, metrics):
        return _text(pa.concat_tables([_steps(run, metrics) for run in runs]))
    header = ["run", "metric", "first_step", "last_step", "mean", "lowest", "highest"]
    return table(header, _buckets(runs, metrics))


def _text(columns: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    write_csv(columns, sink)
    return str(sink.getvalue().to_pybytes().decode())


def _steps(run: RunData, metrics: Sequence[str]) -> pa.Table:
    every = [run.series(metric) for metric in metrics]
    steps = np.unique(np.concatenate([series.step for series in every]))
    columns = {"run": pa.array([run.name] * len(steps), pa.string()), "step": pa.array(steps)}
    for metric, series in zip(metrics, every, strict=True):
        values, absent = np.zeros(len(steps)), np.ones(len(steps), bool)
        place = np.searchsorted(steps, series.step)
        values[place], absent[place] = _rounded(series.value), False
        columns[metric] = pa.array(values, mask=absent)
    return pa.table(columns)


def _rounded(values: Floats) -> Floats:
    """The values to DIGITS significant digits."""
    size = np.abs(values)
    real = np.isfinite(size) & (size > 0)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.where(real, size, 1.0))))
    return np.where(real, np.round(values * scale) / scale, values)


def _buckets(runs: Sequence[RunData], metrics: Sequence[str]) -> Iterable[Row]:
    for run in runs:
        for metric in metrics:
            found = bucket(run.series(metric), MOST_ROWS // (3 * len(runs) * len(metrics)))
            steps = zip(found.first.tolist(), found.last.tolist(), strict=True)
            values = zip(
                *(_rounded(part).tolist() for part in (found.mean, found.low, found.high)),
                strict=True,
            )
            for (first, last), told in zip(steps, values, strict=True):
                yield [run.name, metric, first, last, *told]
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
