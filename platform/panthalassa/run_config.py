"""The configuration in a run's folder: as its last command had it, without secrets."""

from typing import Any

import yaml

from panthalassa.config import Config
from panthalassa.config_file import build, flatten
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.redact import without_secrets
from panthalassa.storage import Storage, open_storage

CONFIG = "config.yaml"


def keep(config: Config, run: Storage) -> list[str]:
    """Write it; returns what differs from the one that was there, each key with both values.

    Raises ConfigError when the folder can not be written.
    """
    uri = config.tracking.uri and without_secrets(config.tracking.uri)
    tracking = config.tracking.model_copy(update={"uri": uri})
    config = config.model_copy(update={"tracking": tracking})
    try:
        before = run.read(CONFIG) if run.exists(CONFIG) else b""
        run.write(CONFIG, config.dump().encode())
    except OSError as error:
        raise ConfigError(
            f"run.directory={config.run.directory} is not writable: {error}"
        ) from error
    try:
        tree = yaml.safe_load(before)
    except (yaml.YAMLError, ValueError):
        tree = None
    old = flatten(tree) if isinstance(tree, dict) else {}
    new = flatten(config.model_dump(mode="json"))
    return [f"{key} {old[key]} -> {new[key]}" for key in new if key in old and old[key] != new[key]]


def kept_tree(run: Storage) -> dict[str, Any]:
    """What it holds, unchecked. Raises PanthalassaError when there is no run, or it is no YAML."""
    place = f"{run.uri}/{CONFIG}"
    try:
        tree = yaml.safe_load(run.read(CONFIG))
    except FileNotFoundError:
        raise PanthalassaError(
            f"no run at {run.uri}: {CONFIG} is missing. A run is a folder such as runs/laptop."
        ) from None
    except OSError as error:
        raise PanthalassaError(f"the run at {run.uri} can not be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise PanthalassaError(
            f"{place} is not YAML: {' '.join(str(error).split())}. Restore it from a copy; the next "
            "`panthalassa train` of this run writes it, too."
        ) from error
    if not isinstance(tree, dict):
        raise PanthalassaError(f"{place} is no configuration of a run")
    return tree


def folder_of(config: Config) -> Storage:
    """Where the run, or the sweep, of a configuration is."""
    return open_storage(config.run.directory).below(config.run.name)


def is_sweep(folder: Storage) -> bool:
    """Whether it is the folder of a sweep; one whose configuration can not be read counts as a run."""
    try:
        return "sweep" in kept_tree(folder)
    except PanthalassaError:
        return False


def run_at(place: str) -> Storage:
    """The folder of a run. Raises PanthalassaError for that of a sweep, of which there are many."""
    folder = open_storage(place)
    if is_sweep(folder):
        name = folder.uri.rstrip("/").rpartition("/")[2]
        raise PanthalassaError(
            f"{folder.uri} is a sweep: name the run of a trial, such as {folder.uri}/{name}-000. What "
            f"all of them came to is in {folder.uri}/sweep.html."
        )
    return folder


def kept(run: Storage, overrides: list[str] | None = None) -> Config:
    """The configuration, checked, with `overrides`. Raises PanthalassaError as `kept_tree`, and when
    another version wrote it."""
    return build(kept_tree(run), overrides or [], f"{run.uri}/{CONFIG}", Config)
