"""The spool of metrics below `metrics/` of a run: what was measured at each step, one JSON line each."""

import json
from dataclasses import dataclass
from typing import Any

from panthalassa.errors import PanthalassaError
from panthalassa.journal import journals
from panthalassa.storage import Storage

FOLDER = "metrics"


@dataclass(frozen=True)
class Record:
    """Metrics of one step."""

    step: int
    at: float
    """In seconds since 1970."""
    metrics: dict[str, float]


def read(run: Storage) -> list[Record]:
    """The records of a run, in the order in which they were written. Raises PanthalassaError."""
    found: list[Record] = []
    try:
        for where, lines in journals(run.below(FOLDER)):
            for number, line in enumerate(lines, 1):
                try:
                    data: dict[str, Any] = json.loads(line)
                    found.append(Record(data["step"], data["at"], data["metrics"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise PanthalassaError(f"{where}: line {number} holds no metrics") from error
    except OSError as error:
        raise PanthalassaError(f"{run.uri}/{FOLDER} can not be read: {error}") from error
    return found


def series(run: Storage) -> dict[str, list[tuple[int, float, float]]]:
    """Metric name -> (step, seconds since 1970, value) by step; of a repeated step the last."""
    found: dict[str, dict[int, tuple[int, float, float]]] = {}
    for record in read(run):
        for name, value in record.metrics.items():
            found.setdefault(name, {})[record.step] = record.step, record.at, value
    return {name: [points[step] for step in sorted(points)] for name, points in found.items()}
