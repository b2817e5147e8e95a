"""What is known of a sweep's trials: a small file for each, below `trials/` of the sweep's folder.

A trial is written when it is proposed, before its run begins; at each evaluation; and when it is over.
So a sweep that is killed at any moment finds all that it had decided and measured, and needs nothing of
what Ray Tune keeps in memory: searches and schedulers are pure functions of these records. Only one
process writes a record at a time: the sweep proposes it, and judges it while the trial waits for that;
else the trial has it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.run_config import CONFIG, kept_tree
from panthalassa.storage import Storage

FOLDER = "trials"


@dataclass(frozen=True)
class Trial:
    """One point of the space, and what its run came to so far."""

    number: int
    """From 0, in the order of proposal."""
    run: str
    """The folder of its run, below the sweep's."""
    values: dict[str, Any]
    """The overrides that make it, by dotted key."""
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    """stopped: by the scheduler, before its last step. Who is running is taken up again."""
    step: int = 0
    """Steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """loss (held-out, nats a token), tokens, tokens_per_second, j_per_token, joules, parameters: those
    that are known."""
    problem: str | None = None
    """Why it failed; one that diverged failed."""
    looks: dict[int, dict[str, float]] = field(default_factory=dict)
    """The metrics at each evaluation, by step."""
    parent: str | None = None
    """PBT: the run of which this one is a branch."""
    branched: int | None = None
    """PBT: the step after which it is one; None as long as that is not known."""

    @property
    def over(self) -> bool:
        return self.state != "running"


_TRIAL = TypeAdapter(Trial)


def _object(number: int) -> str:
    return f"{FOLDER}/{number:05d}.json"


def record(folder: Storage, trial: Trial) -> None:
    """Write what is known of a trial. Raises OSError."""
    folder.write(_object(trial.number), json.dumps(asdict(trial), indent=1).encode())


def read(folder: Storage, number: int) -> Trial:
    """Raises OSError, and PanthalassaError when it is missing or not what was written."""
    path = _object(number)
    try:
        return _TRIAL.validate_json(folder.read(path))
    except (FileNotFoundError, ValidationError) as error:
        raise PanthalassaError(
            f"{folder.uri}/{path} is missing, or no record of a trial. Restore it from a copy, or "
            "choose another run.name"
        ) from error


def asked(folder: Storage) -> dict[str, Any]:
    """The section `sweep` that was asked for, unchecked. Raises PanthalassaError when there is none."""
    found = kept_tree(folder).get("sweep")
    if not isinstance(found, dict):
        raise PanthalassaError(f"{folder.uri} is no sweep: its {CONFIG} has no section `sweep`")
    return found


def trials(folder: Storage) -> list[Trial]:
    """What is on record, in order of number. Raises as `read`."""
    files = folder.below(FOLDER).files() if folder.exists(FOLDER) else []
    count = sum(name.endswith(".json") for name, _ in files)
    return [read(folder, number) for number in range(count)]


def all_failed(known: Sequence[Trial]) -> bool:
    """Whether there are trials, and none of them is good for anything."""
    return bool(known) and all(trial.state == "failed" for trial in known)


def ancestry(trial: Trial, known: Sequence[Trial]) -> Iterator[str]:
    """Whose steps a branch begins with, the nearest first, in words; nothing for a trial of its own."""
    runs = {other.run: other for other in known}
    while trial.parent:
        step, trial = trial.branched, runs[trial.parent]
        until = "its first steps" if step is None else f"its steps to {step}"
        yield f"{until} are those of trial {trial.number}, with {told(trial.values)}"


def told(named: Mapping[str, Any]) -> str:
    """Values or metrics for people."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in named.items()
    )
