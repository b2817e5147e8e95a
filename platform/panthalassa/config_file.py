"""Configurations from outside: YAML and dotted overrides, checked at the door.

`load(path, ["train.steps=50"])` gives a `Config` or raises a ConfigError that lists every wrong key
with its value, what is allowed and the nearest right key, or, when each is right by itself, every
combination that is impossible. Nothing else in the platform reads YAML or the command line.
"""

import difflib
import reprlib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from panthalassa.config import Cluster, Config, Corpus
from panthalassa.config_model import Vision
from panthalassa.config_values import Section
from panthalassa.errors import ConfigError
from panthalassa.storage import open_storage


class Preparation(Section):
    """The part of a configuration that `panthalassa prepare` reads."""

    corpus: Corpus
    cluster: Cluster = Cluster()
    vision: Vision | None = None
    """The model's: with it, sources may have images."""


AXIS = "sweep.space."
"""How the overrides of a search space begin; what follows is one key, of what is searched."""
Tree = TypeVar("Tree", bound=Section)


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check the whole.

    Raises ConfigError with every mistake at once.
    """
    tree = read(path)
    if isinstance(tree, dict) and "sweep" in tree:
        raise ConfigError(f"{path} is a sweep, of many runs: `panthalassa sweep {path}`")
    if isinstance(tree, dict) and tree.get("finetune"):
        raise ConfigError(
            f"{path} is a fine-tuning, which `panthalassa finetune {path}` prepares and runs; it has no "
            "plan yet: plan the model that it begins with"
        )
    return build(tree, overrides or [], str(path), Config)


def read(path: str | Path) -> Any:
    """What a YAML file holds, unchecked. Raises ConfigError."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} can not be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or no date like 2024-13-45
        raise ConfigError(f"configuration {path} is not YAML: {error}") from error


def load_preparation(source: str, overrides: list[str]) -> Preparation:
    """What preparing needs of a configuration file, or defaults for a folder of texts.

    A folder `texts/mine`, or `s3://bucket/texts/mine`, becomes the corpus `data/mine`. Raises
    ConfigError.
    """
    if "://" in source:
        storage = open_storage(source)
        place, name = storage.uri, storage.root.rpartition("/")[2]
    elif Path(source).is_dir():
        place, name = source, Path(source).resolve().name
    elif not Path(source).exists():
        raise ConfigError(f"{source}: there is no such folder or configuration")
    else:
        config = load(source, overrides)
        return Preparation(corpus=config.corpus, cluster=config.cluster, vision=config.model.vision)
    data: dict[str, Any] = {"corpus": {"directory": f"data/{name}", "sources": [place]}}
    return build(data, overrides, place, Preparation)


def build(data: Any, overrides: list[str], origin: str, kind: type[Tree]) -> Tree:
    """Check a tree that is already read, after its overrides; `origin` names it in messages."""
    if not isinstance(data, dict):
        found = reprlib.repr(data)
        raise ConfigError(f"{origin}: expected sections such as `train:`, found {found}")
    apply(data, overrides)
    try:
        # A section of which nothing is left but its name (`stream:`) holds the defaults; one that a
        # run may be without (`finetune: null`) is not there.
        optional = {key for key, field in kind.model_fields.items() if field.default is None}
        return kind.model_validate(
            {k: {} if v is None and k not in optional else v for k, v in data.items()}
        )
    except ValidationError as error:
        lines = dict.fromkeys(_explain(detail, kind) for detail in error.errors())
        raise ConfigError(f"{origin} can not be run:\n" + "\n".join(lines)) from error


def apply(data: dict[str, Any], overrides: list[str]) -> None:
    """Put the values of `key.path=value` overrides into a tree. Raises ConfigError."""
    for override in overrides:
        _apply(data, override)


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key=value, e.g. train.steps=50")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    if key.startswith(AXIS):
        parents, last = ["sweep", "space"], key.removeprefix(AXIS)
    else:
        *parents, last = key.split(".")
    for parent in parents:
        node = data.get(parent)
        if node is None:
            node = data[parent] = {}
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {parent} holds a value, not further keys")
        data = node
    data[last] = value


def _explain(detail: Any, kind: type[BaseModel]) -> str:
    keys = [str(part) for part in detail["loc"] if not str(part).startswith("(")]  # kinds of values
    key, value = ".".join(keys), reprlib.repr(detail["input"])
    if detail["type"] == "extra_forbidden":
        return f"  {key}={value}: there is no such key; {_nearest(keys, kind)}"
    if detail["type"] == "missing":
        return f"  {key}: missing; it has no default"
    if detail["type"] == "model_type":
        return f"  {key}={value}: expected keys below it; {_nearest([*keys, ''], kind)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":
        where = key if isinstance(detail["input"], dict) else f"{key}={value}"
        prefix = f"{where}: " if key else ""
        return "\n".join(f"  {prefix}{line}" for line in message.split("\n"))
    return f"  {key}={value}: {message}"


def _nearest(keys: list[str], kind: type[BaseModel]) -> str:
    """The right key most like a wrong one: in its own section first, then anywhere."""
    *parents, last = keys
    paths, section_of = _paths(kind), [key for key in parents if not key.isdigit()]
    every = {path.rsplit(".", 1)[-1]: path for path in reversed(paths)}
    section = [p for p in paths if p.split(".")[:-1] == section_of]
    here = difflib.get_close_matches(last, [p.rsplit(".", 1)[-1] for p in section], n=1)
    if here:
        return f"did you mean {'.'.join([*parents, *here])}?"
    anywhere = difflib.get_close_matches(last, every, n=1)
    if anywhere:
        return f"did you mean {every[anywhere[0]]}?"
    return f"allowed are {', '.join(section)}" if section else "leave it out"


def _paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        found.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _paths(kind, f"{prefix}{name}.")
    return found


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as a flat one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
