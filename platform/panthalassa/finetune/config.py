"""The configuration of a fine-tuning: a run's, of which the model is told by where it starts."""

from pathlib import Path
from typing import Any

from panthalassa.config import Config, Run
from panthalassa.config_file import apply, build, read
from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.exchange.base import shape_of
from panthalassa.storage import open_storage
from panthalassa.train.base import BASE, has_base


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """As `config_file.load`, with the section `model` from `finetune.start` where it is left out.

    Raises PanthalassaError, also when there is no model at `finetune.start`.
    """
    tree = read(path)
    if isinstance(tree, dict):
        apply(tree, overrides or [])
        section = tree.get("finetune")
        start = section.get("start") if isinstance(section, dict) else None
        if not section:
            raise ConfigError(
                f"{path} has no section `finetune`, with `start: RUN`: to train from scratch, "
                f"`panthalassa train {path}`"
            )
        if isinstance(start, str) and "model" not in tree:
            tree["model"] = _shape(start, tree.get("run")).model_dump(exclude={"preset"})
    return build(tree, [], str(path), Config)


def _shape(start: str, run: Any) -> Model:
    """That of the run's own copy, if it has begun, else of the model at `start`."""
    if isinstance(run, dict) and isinstance(run.get("name"), str):
        directory = run.get("directory", Run.model_fields["directory"].default)
        kept = open_storage(str(directory)).below(run["name"])
        if has_base(kept):
            return shape_of(kept.below(BASE))
    return shape_of(open_storage(start))
