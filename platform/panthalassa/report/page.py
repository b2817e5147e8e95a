"""The page of a run: figures, files, numbers, and the library that draws them, in one HTML file."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from panthalassa.errors import ConfigError
from panthalassa.report.corpus import shown
from panthalassa.report.figures import RUN_COLOURS, draw
from panthalassa.report.goodput_figure import GROUPS
from panthalassa.report.headlines import compared, duration
from panthalassa.report.read import RunData, read_run
from panthalassa.report.sections import sections
from panthalassa.report.template import fill
from panthalassa.storage import Storage

FILE = "report.html"


def write_report(run: Storage, beside: Storage | None = None, out: Path | None = None) -> str:
    """Write the report of a run, with another `beside` it, and tell where: its folder, or `out`.

    Raises PanthalassaError when one of them is no run, or the file can not be written.
    """
    runs = _told_apart([read_run(folder) for folder in (run, beside) if folder])
    page = render(runs).encode()
    try:
        if out is None:
            run.write(FILE, page)
            return f"{run.uri}/{FILE}"
        out.write_bytes(page)
    except OSError as error:
        where = out or f"{run.uri}/{FILE}"
        raise ConfigError(
            f"{where} can not be written: {error}. Choose another --out FILE."
        ) from error
    return str(out)


def _told_apart(runs: list[RunData]) -> list[RunData]:
    """Runs of one name with a number behind it."""
    if len({run.name for run in runs}) == len(runs):
        return runs
    return [replace(run, name=f"{run.name} ({n})") for n, run in enumerate(runs, 1)]


def render(runs: Sequence[RunData]) -> str:
    """The page of one run or two, as HTML."""
    plots = draw(runs)
    return fill(
        "report/page.html",
        plots,
        runs=list(zip(runs, RUN_COLOURS, strict=False)),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        headlines=compared(runs),
        sections=list(sections(runs, list(plots))),
        shares=[_shares(run) for run in runs],
        corpora=[
            run.corpus if isinstance(run.corpus, str | None) else shown(run.corpus) for run in runs
        ],
        configuration=list(_configuration(runs)),
    )


def _shares(run: RunData) -> list[tuple[str, str, str, str]]:
    """What the time went to: colour, name, time and share of each group of parts."""
    if isinstance(run.time, str):
        return []
    found = run.time.goodput
    seconds = [(group, sum(found.parts[part] for part in group.parts)) for group in GROUPS]
    return [
        (group.colour, group.name, _short(taken), f"{taken / found.seconds:.1%}")
        for group, taken in seconds
        if taken > 0
    ]


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _configuration(runs: Sequence[RunData]) -> Iterator[tuple[str, list[str], bool]]:
    """Each key with its value in each run, and whether they differ."""
    for key in dict.fromkeys(key for run in runs for key in run.configuration):
        values = [run.configuration.get(key, "–") for run in runs]
        yield key, values, len(set(values)) > 1
