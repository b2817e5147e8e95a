"""What a run's command could not send to MLflow is sent later: `panthalassa track replay`."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.journal import unread
from panthalassa.redact import without_secrets
from panthalassa.run_config import kept
from panthalassa.storage import Storage
from panthalassa.tracking.mlflow_store import first_line, store_uri
from panthalassa.tracking.sender import ELSEWHERE, POINTER, Acknowledged, Sender
from panthalassa.tracking.spool import DRIVER, RANKS

PAUSES = 0.5, 1.0, 2.0, 4.0, 8.0
"""Seconds between tries without progress."""
AnyConfig = TypeVar("AnyConfig", bound=Config)


def configuration(run: Storage, overrides: list[str]) -> Config:
    """The configuration of a run, with the MLflow store that it was tracked in, or that of `overrides`.

    Raises PanthalassaError when there is no run, or when its store is known only without credentials.
    """
    return in_its_store(kept(run, overrides), run, overrides)


def in_its_store(config: AnyConfig, run: Storage, overrides: list[str]) -> AnyConfig:
    """The same for a configuration that is already read."""
    if any(override.startswith("tracking.uri=") for override in overrides):
        return config
    if not (known := acknowledged(run).uri or config.tracking.uri):
        return config
    for uri in (config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI"), known):
        if uri and without_secrets(uri) == known and "***" not in uri:
            tracking = config.tracking.model_copy(update={"uri": uri})
            return config.model_copy(update={"tracking": tracking})
    raise PanthalassaError(
        f"the run at {run.uri} was tracked at {known}, and its credentials are not kept: set "
        "MLFLOW_TRACKING_URI to it, or add tracking.uri=…"
    )


def acknowledged(run: Storage) -> Acknowledged:
    """What MLflow has of a run; nothing, nowhere, when that is not known."""
    try:
        return Acknowledged.model_validate_json(run.read(POINTER))
    except (OSError, ValidationError):
        return Acknowledged(uri="")


def incomplete(run: Storage, known: Acknowledged) -> bool:
    """Whether a store that has what is `known` does not have all of a run's spool. Raises OSError."""
    return any(
        piece
        for name in (RANKS, DRIVER)
        for *_, piece in unread(run.below(name), known.read.get(name, {}))
    )


def replay(config: Config, run: Storage, show: Callable[[int, int], None]) -> list[str]:
    """Send what MLflow does not have of a run; `show` gets the bytes sent and to be sent.

    It can be repeated, and goes on where it was. Returns what was left out, line by line. Raises
    PanthalassaError when the run has no spool, or MLflow does not take it.
    """
    try:
        sizes = [size for name in (RANKS, DRIVER) for size in _sizes(run.below(name))]
    except OSError as error:
        raise PanthalassaError(f"the run at {run.uri} can not be read: {error}") from error
    if not sizes:
        raise PanthalassaError(f"no run with metrics at {run.uri}")
    sent = 0

    def tell(now: int) -> None:
        nonlocal sent
        sent = now
        show(sent, sum(sizes))

    own = acknowledged(run).uri or without_secrets(store_uri(kept(run, [])))
    pointer = POINTER if without_secrets(store_uri(config)) == own else ELSEWHERE
    sender, tries = Sender(config, run, tell=tell, pointer=pointer), iter(PAUSES)
    while True:
        before = sent
        try:
            sender.send()
            return sender.damaged
        except Exception as error:
            tries = iter(PAUSES) if sent > before else tries
            if (pause := next(tries, None)) is None:
                reason = without_secrets(first_line(error))
                raise PanthalassaError(
                    f"MLflow at {sender.uri} does not take the metrics: {reason}. When it is back, the "
                    "same command goes on where this one was; tracking.uri=… names another store."
                ) from error
            time.sleep(pause)


def _sizes(folder: Storage) -> list[int]:
    return [size for _, size in folder.files()] if folder.exists("") else []
