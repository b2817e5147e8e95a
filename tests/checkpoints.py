"""Checkpoints of the run in small of ranks.py, and ways to damage them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranks import TinyRun

from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Phase, planned
from panthalassa.train import checkpoint, snapshot
from panthalassa.train.checkpoint import COMMIT, Commit, State
from panthalassa.train.events import Evaluated
from panthalassa.train.snapshot import Place

EVALUATIONS = [Evaluated(step=0, loss=5.5, tokens=100)]


def phases_of(config: Config) -> list[Phase]:
    """Whatever the seed: some runs start from other weights, to see them replaced."""
    return [p.model_copy(update={"seed": 5}) for p in planned(config, "a fingerprint")]


def commit_of(run: TinyRun, step: int) -> Commit:
    return Commit(
        model=run.config.model.identity(),
        phases=phases_of(run.config),
        step=step,
        samples=step * run.config.train.global_batch,
        evaluations=EVALUATIONS,
        healthy=True,
        files={},
    )


def save(run: TinyRun, storage: Storage, step: int, staging: str | None = None) -> Commit:
    state, commit = State(run.model, run.optimizer), commit_of(run, step)
    return snapshot.save(Place(storage, staging), state.tensors(), commit)[0]


def refusal(action: Callable[..., Any], *arguments: Any) -> str | None:
    """The text of the PanthalassaError that an action raises."""
    try:
        action(*arguments)
    except PanthalassaError as error:
        return str(error)
    return None


def commit_by_hand(run: Storage, step: int, healthy: bool = True, attempt: int = 0) -> None:
    """A checkpoint of one file, without tensors."""
    commit = Commit(
        model={},
        phases=[],
        attempt=attempt,
        step=step,
        samples=0,
        evaluations=[],
        healthy=healthy,
        files={},
    )
    run.write(f"{checkpoint.folder(step)}/__0_0.distcp", b"weights")
    run.write(f"{checkpoint.folder(step)}/{COMMIT}", commit.sealed().model_dump_json().encode())


def flip(position: float) -> Callable[[Path], None]:
    """Turns one bit at a share of the file's length."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first bit flipped": flip(0),
    "bit flipped": flip(0.5),
    "last bit flipped": flip(1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
}
