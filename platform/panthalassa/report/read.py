"""What a report knows of a run: all that its folder holds, read once, each part or why it is absent.

A folder without `config.yaml` is no run and is refused. Whatever else is missing or damaged costs its
own section of the report, which then says so: a report is asked for most when something is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from panthalassa.config import Config
from panthalassa.config_file import build, flatten
from panthalassa.config_finetune import loss_unit
from panthalassa.corpus.funnel import Report
from panthalassa.errors import CheckpointError, ConfigError, PanthalassaError
from panthalassa.redact import without_secrets
from panthalassa.report.corpus import report_of_run
from panthalassa.report.energy import Energy, energy_of
from panthalassa.report.images import Cards, images_of_run
from panthalassa.report.languages import Language, languages
from panthalassa.report.series import Series
from panthalassa.run_config import kept_tree
from panthalassa.storage import Storage
from panthalassa.tracking import spool
from panthalassa.train.checkpoint import committed, read_commit, step_of
from panthalassa.train.goodput import Goodput, Steps, Timeline, account, timeline
from panthalassa.train.goodput_ledger import read as read_goodput

Part = TypeVar("Part")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    name: str
    step: int
    size: int
    """Bytes of all its files."""
    samples: int
    """Consumed so far."""
    healthy: bool
    problem: str = ""
    """Why its commit can not be read; then nothing else is known."""


@dataclass(frozen=True)
class Time:
    """What the time of a run went to."""

    goodput: Goodput
    timeline: Timeline
    began: float
    """In seconds since 1970."""
    last_step: int
    """The last step that stands; 0 when there is none."""


@dataclass(frozen=True)
class RunData:
    """A run; what could not be read is a text that says why."""

    name: str
    uri: str
    configuration: dict[str, str]
    """By dotted key, in order."""
    steps: int | None
    """As many as are planned."""
    metrics: dict[str, Series] | str
    time: Time | str
    energy: Energy | str
    languages: list[Language] | str
    checkpoints: list[Checkpoint] | str
    corpus: Report | str | None
    """What the preparation of its corpus read, dropped and kept; None when that is not on record."""
    images: Cards | str | None
    """Images and what the model says of them; None when it was not asked."""

    def series(self, metric: str) -> Series:
        """A metric; empty when it was not measured."""
        if metric == "kwh_so_far":
            return Series.of([]) if isinstance(self.energy, str) else self.energy.so_far
        found = None if isinstance(self.metrics, str) else self.metrics.get(metric)
        return found or Series.of([])

    @property
    def loss_unit(self) -> str:
        return loss_unit(self.configuration.get("finetune.objective"))

    @property
    def last_step(self) -> int:
        """Steps done, by whatever part of the run knows most."""
        known = [] if isinstance(self.checkpoints, str) else [c.step for c in self.checkpoints]
        known += self.series("loss").step[-1:].tolist()
        known += [] if isinstance(self.time, str) else [self.time.last_step]
        return max(known, default=0)


def read_run(run: Storage) -> RunData:
    """All that a run's folder tells. Raises PanthalassaError when there is no run, or no access."""
    configuration, steps = _configuration(run)
    metrics = _or_reason(lambda: _metrics(run))
    return RunData(
        name=configuration.get("run.name") or run.uri.rstrip("/").rpartition("/")[2],
        uri=run.uri,
        configuration=configuration,
        steps=steps,
        metrics=metrics,
        time=_or_reason(lambda: _time(run)),
        energy=energy_of(run, configuration.get("energy.source")),
        languages=_or_reason(lambda: languages(run)),
        checkpoints=_or_reason(lambda: _checkpoints(run)),
        corpus=_or_reason(lambda: report_of_run(run, configuration.get("corpus.directory"))),
        images=_or_reason(lambda: images_of_run(run)),
    )


def _or_reason(read: Callable[[], Part]) -> Part | str:
    try:
        return read()
    except PanthalassaError as error:
        return without_secrets(str(error))


def _configuration(run: Storage) -> tuple[dict[str, str], int | None]:
    """By dotted key, and the steps that are planned: None when another version wrote it."""
    tree = kept_tree(run)
    flat = {str(key): without_secrets(str(value)) for key, value in flatten(tree).items()}
    try:
        return flat, build(tree, [], run.uri, Config).train.steps
    except ConfigError:
        return flat, None


def _metrics(run: Storage) -> dict[str, Series]:
    found = {name: Series.of(points) for name, points in spool.series(run).items()}
    if not found:
        raise PanthalassaError(f"there are no metrics at {run.uri}: no step has ended yet")
    return found


def _time(run: Storage) -> Time:
    lines = read_goodput(run)
    steps = [line.last for line in lines if isinstance(line, Steps)]
    return Time(account(lines), timeline(lines), lines[0].at, steps[-1] if steps else 0)


def _checkpoints(run: Storage) -> list[Checkpoint]:
    try:
        names = committed(run)
        sizes = {name: sum(size for _, size in run.below(name).files()) for name in names}
    except OSError as error:
        raise PanthalassaError(f"the checkpoints of {run.uri} can not be read: {error}") from error
    found = []
    for name in names:
        try:
            commit = read_commit(run, name)
        except CheckpointError as error:
            found.append(Checkpoint(name, step_of(name), sizes[name], 0, False, str(error)))
            continue
        found.append(Checkpoint(name, commit.step, sizes[name], commit.samples, commit.healthy))
    return found
