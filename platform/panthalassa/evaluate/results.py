"""What an evaluation found, as a folder: `results.json` and the numbers of every item.

`items/{task}.parquet` has a row for each item: id, group, and for each metric its numbers, a list of
doubles. `results.json` is written last, names each of these files with its SHA-256, and has every
figure with its interval; a folder without it is no evaluation. All of it follows from the numbers, and
two evaluations are compared by them (`compare.py`).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.intervals import REPLICATES, SEED, interval
from panthalassa.evaluate.metrics import AGGREGATES, Floats
from panthalassa.evaluate.task import Numbers
from panthalassa.storage import Storage

RESULTS = "results.json"
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MOST_BYTES = 4 << 30
"""Of an items file that is read: an evaluation has not more."""
SHA256 = "^[0-9a-f]{64}$"


@dataclass(frozen=True)
class Scores:
    """The numbers of a task's items."""

    metrics: Mapping[str, str]
    """For each metric the name of its aggregate."""
    ids: Sequence[str]
    groups: Sequence[str]
    """"" is no group."""
    numbers: Mapping[str, Floats]
    """For each metric [items, k]."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """As Task.baselines."""

    def groups_of(self) -> dict[str, NDArray[np.intp]]:
        """For each group the places of its items."""
        named = np.array(self.groups, dtype=object)
        return {name: np.flatnonzero(named == name) for name in sorted(set(self.groups) - {""})}


class Record(BaseModel):
    """A part of `results.json`: no key is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Record):
    """A metric over `n` items, with its 95 % interval."""

    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    n: int = Field(gt=0)


def _known(aggregate: str) -> str:
    if aggregate not in AGGREGATES:
        raise ValueError(f"there is no aggregate {aggregate!r}")
    return aggregate


class Metric(Record):
    """A metric over all items, and over those of each group."""

    aggregate: Annotated[str, AfterValidator(_known)]
    whole: Figure
    groups: dict[str, Figure] = Field(default_factory=dict)
    baseline: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """As Task.baselines, where that is known."""


class Contamination(Record):
    """What the training documents of a corpus have of a task's items."""

    corpus: str = Field(pattern=SHA256)
    """The fingerprint of its manifest."""
    items: int = Field(gt=0)
    found: int = Field(ge=0)
    """Items that share a passage with a training document."""
    short: int = Field(ge=0)
    """Items that are too short to tell."""
    without: dict[str, Figure] = Field(default_factory=dict)
    """Each metric over the items that were not found; empty where none or all were."""


class TaskResult(Record):
    """A task's metrics, and the file with the numbers of its items."""

    metrics: dict[str, Metric] = Field(min_length=1)
    contamination: Contamination | None = None
    """None where no corpus was looked through."""
    items: str = Field(pattern=r"^items/[A-Za-z0-9][A-Za-z0-9_.-]*\.parquet$")
    size: int = Field(gt=0)
    sha256: str = Field(pattern=SHA256)


class Model(Record):
    """What was evaluated. `digest` is the SHA-256 of its checkpoint's commit, or its export's list."""

    name: str
    digest: str = Field(pattern=SHA256)


class Bootstrap(Record):
    """How the intervals were found."""

    replicates: int = REPLICATES
    seed: int = SEED


class Average(Record):
    """A mean over parts that count alike, in points."""

    value: float = Field(allow_inf_nan=False)
    of: str
    """Which parts, for people."""


class Results(Record):
    """An evaluation in full. `settings` is whatever else decided the answers."""

    format: Literal[1] = 1
    model: Model
    written: datetime
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    bootstrap: Bootstrap = Bootstrap()
    tasks: dict[str, TaskResult] = Field(min_length=1)
    averages: dict[str, Average] = Field(default_factory=dict)
    """Over several tasks, or over the groups of one."""
    cut: Annotated[int, Field(ge=0)] | None = None
    """Requests whose context or prompt was read in part, where that was counted."""


def scores(
    metrics: Mapping[str, str],
    items: Iterable[tuple[str, str, Mapping[str, Numbers]]],
    baselines: Mapping[str, float] | None = None,
) -> Scores:
    """From the id, the group, and for each of `metrics` the numbers of every item.

    Raises PanthalassaError for an item that is there twice, whose numbers are not finite, or are not as
    many as another's.
    """
    ids: dict[str, None] = {}
    groups: list[str] = []
    rows: dict[str, list[Numbers]] = {metric: [] for metric in metrics}
    for name, group, numbers in items:
        if name in ids:
            raise PanthalassaError(f"two items have the id {name!r}. Correct the task's data.")
        ids[name] = None
        groups.append(group)
        for metric, row in rows.items():
            if not np.isfinite(numbers[metric]).all() or len(numbers[metric]) != len(
                (row or [numbers[metric]])[0]
            ):
                raise PanthalassaError(
                    f"item {name!r}: {metric} has the numbers {numbers[metric]}, which nothing can be "
                    "summed up from. Does the model give finite probabilities?"
                )
            row.append(numbers[metric])
    arrays = {metric: np.array(row, np.float64) for metric, row in rows.items()}
    return Scores(dict(metrics), list(ids), groups, arrays, baselines or {})


def write_results(
    storage: Storage,
    model: Model,
    settings: Mapping[str, JsonValue],
    tasks: Mapping[str, Scores],
    contaminations: Mapping[str, Contamination] | None = None,
    averages: Mapping[str, Average] | None = None,
    cut: int | None = None,
) -> Results:
    """Write an evaluation whole: the items of each task, then `results.json`.

    Raises PanthalassaError for a task without items, or with a name that is no file name, and OSError.
    """
    results = Results(
        model=model,
        written=datetime.now(UTC),
        settings=dict(settings),
        tasks={
            name: _write_task(storage, name, found, (contaminations or {}).get(name))
            for name, found in tasks.items()
        },
        averages=dict(averages or {}),
        cut=cut,
    )
    storage.write(RESULTS, (results.model_dump_json(indent=1) + "\n").encode())
    return results


def read_results(storage: Storage) -> Results:
    """The evaluation at `storage`. Raises PanthalassaError when there is none, or it is damaged."""
    place = f"{storage.uri}/{RESULTS}"
    try:
        return Results.model_validate_json(storage.read(RESULTS))
    except FileNotFoundError:
        raise PanthalassaError(
            f"no evaluation at {storage.uri}: {RESULTS} is missing. Make one with "
            "`panthalassa evaluate`."
        ) from None
    except OSError as error:
        raise PanthalassaError(f"{place} can not be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise PanthalassaError(
            f"{place} is not an evaluation: {key}: {first['msg']}. Evaluate anew."
        ) from error


def read_scores(storage: Storage, results: Results, task: str) -> Scores:
    """The numbers of a task's items, verified. Raises PanthalassaError for what is missing or rotten."""
    found = results.tasks[task]
    place = f"{storage.uri}/{found.items}"
    try:
        if storage.size(found.items) > MOST_BYTES:
            raise PanthalassaError(f"{place} has more than {MOST_BYTES >> 30} GiB. Evaluate anew.")
        data = storage.read(found.items, found.sha256)
    except OSError as error:
        raise PanthalassaError(f"{place} can not be read: {error}. Evaluate anew.") from error
    if hashlib.sha256(data).hexdigest() != found.sha256:
        raise PanthalassaError(
            f"{place} is not what was written: its SHA-256 differs from the one in {RESULTS}. "
            "Evaluate anew."
        )
    try:
        table = pq.read_table(pa.BufferReader(data))
        ids, groups = table["id"].to_pylist(), table["group"].to_pylist()
        numbers = {}
        for metric in found.metrics:
            column = table[metric].combine_chunks()
            numbers[metric] = column.flatten().to_numpy().reshape(len(column), -1)
    except (pa.ArrowException, AttributeError, LookupError, ValueError) as error:
        raise PanthalassaError(
            f"{place} does not have the numbers of {RESULTS}: {error}. Evaluate anew."
        ) from error
    return Scores(
        {metric: kept.aggregate for metric, kept in found.metrics.items()},
        ids,
        groups,
        numbers,
        {
            metric: kept.baseline
            for metric, kept in found.metrics.items()
            if kept.baseline is not None
        },
    )


def _write_task(
    storage: Storage, name: str, found: Scores, contamination: Contamination | None
) -> TaskResult:
    if not TASK_NAME.fullmatch(name):
        raise PanthalassaError(
            f"task {name!r}: a name has letters, digits, '_', '.' and '-', and begins with one of the "
            "first two"
        )
    if not len(found.ids):
        raise PanthalassaError(f"task {name} has no items. Correct its data, or its limit.")
    columns = {
        "id": pa.array(found.ids, pa.string()),
        "group": pa.array(found.groups, pa.string()),
    }
    for metric, numbers in found.numbers.items():
        columns[metric] = pa.array(list(numbers), pa.list_(pa.float64()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    data, path = sink.getvalue().to_pybytes(), f"items/{name}.parquet"
    if not (metrics := figures(found)):
        raise PanthalassaError(
            f"task {name}: {', '.join(found.metrics)} are infinite. Does the model give probabilities?"
        )
    storage.write(path, data)
    return TaskResult(
        metrics=metrics,
        contamination=contamination,
        items=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def figures(found: Scores) -> dict[str, Metric]:
    """Every metric that is finite over all items and over each group's, with intervals."""
    groups = found.groups_of()
    return {
        metric: Metric(
            aggregate=aggregate,
            whole=whole,
            groups={
                name: part
                for name, places in groups.items()
                if (part := figure(aggregate, found.numbers[metric][places]))
            },
            baseline=found.baselines.get(metric),
        )
        for metric, aggregate in found.metrics.items()
        if (whole := figure(aggregate, found.numbers[metric]))
    }


def figure(aggregate: str, numbers: Floats) -> Figure | None:
    """Of the numbers of items [n, k]; None where it, or an end of its interval, is infinite."""
    with np.errstate(invalid="ignore"):  # between two infinite figures of the bootstrap
        low, high = interval(aggregate, numbers)
    if not np.isfinite((low, high, AGGREGATES[aggregate](numbers))).all():
        return None
    return Figure(value=AGGREGATES[aggregate](numbers), low=low, high=high, n=len(numbers))
