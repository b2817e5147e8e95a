"""A sweep's file: a whole configuration and its section `sweep` come in, the plan of its trials goes
out.

`load` reads it, lays it over the file that `base` names, and applies overrides as `config_file` does.
The one idea: a trial is nothing but the same tree with some more overrides. So the space is checked by
building the configurations that it leads to, with the types and messages of every other door, before
anything runs; and any key can be searched, a section such as `model` included.
"""

import copy
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from panthalassa.config import Config
from panthalassa.config_file import build, flatten, read
from panthalassa.errors import ConfigError
from panthalassa.storage import open_storage
from panthalassa.sweep.config import Range, Sweep, SweptConfig

RESERVED = ("run.name", "run.directory", "tracking.", "cluster.address", "cluster.dashboard_port")
"""Keys, or how they begin, that are the sweep's own."""
BETWEEN_CHECKPOINTS = ("train.optimizer.", "train.schedule.", "guard.")
"""Keys that a run may change when it goes on from a checkpoint, which PBT does."""
LOOKED_AT = 256
"""Points of a space that are checked when it is not known which of them will be tried."""

Values = dict[str, Any]
"""Overrides by dotted key."""


@dataclass(frozen=True)
class Plan:
    """A checked sweep."""

    config: SweptConfig
    origin: str
    """The name of its file, for messages."""
    tree: dict[str, Any] = field(repr=False)
    """What it says, without `sweep`."""

    @property
    def sweep(self) -> Sweep:
        return self.config.sweep

    @property
    def space(self) -> dict[str, list[Any] | Range]:
        return self.sweep.space

    @property
    def count(self) -> int:
        """Of trials; PBT adds branches to them."""
        return self.sweep.trials or math.prod(
            len(values) for values in self.space.values() if isinstance(values, list)
        )

    def anchored(self) -> "Plan":
        """The same, from whatever directory it is looked at: trials have others than this process."""
        tree, space = copy.deepcopy(self.tree), dict(self.space)
        for section in ("run", "corpus"):
            tree[section]["directory"] = open_storage(getattr(self.config, section).directory).uri
        if isinstance(places := space.get("corpus.directory"), list):
            space["corpus.directory"] = [open_storage(place).uri for place in places]
        swept = {"sweep": self.sweep.model_dump(exclude={"space"}) | {"space": space}}
        return Plan(build(tree | swept, [], self.origin, SweptConfig), self.origin, tree)

    def build(self, values: Values) -> Config:
        """The configuration with overrides. Raises ConfigError."""
        # YAML has dates, which no key takes; JSON has none.
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
        return build(copy.deepcopy(self.tree), overrides, self.origin, Config)

    def trial(self, run: str, values: Values, store: str, parent: str | None) -> Config:
        """That of a trial in the run `run`: its MLflow run is a child of `parent` in `store`."""
        config = self.config
        own = {
            "run.name": run,
            "run.directory": f"{config.run.directory}/{config.run.name}",
            "tracking.uri": store,
            "tracking.parent": parent,
        }
        return self.build(values | own)

    def draw(self, number: int) -> Values:
        """A random point of the space: always the same for the same seed and number."""
        chance = random.Random(f"{self.config.run.seed} {number}")
        return {key: _draw(values, chance) for key, values in self.space.items()}

    def grid(self) -> Iterator[Values]:
        for values in itertools.product(*self.space.values()):
            yield dict(zip(self.space, values, strict=True))


def load(path: Path, overrides: list[str]) -> Plan:
    """Read a sweep's file. Raises ConfigError for whatever can not be run, before anything is."""
    tree = read(path)
    if isinstance(tree, dict):
        below = base(path)
        tree.pop("base", None)
        if below and base(below):
            raise ConfigError(
                f"{path}: base={below.name} has a base itself: name that, or merge them"
            )
        tree = _over(read(below), tree) if below else tree
        if "sweep" not in tree:
            raise ConfigError(
                f"{path} has no section `sweep`: add its space, or `panthalassa train {path}`"
            )
    config = build(tree, overrides, str(path), SweptConfig)  # which applies the overrides to `tree`
    plan = Plan(config, str(path), {key: value for key, value in tree.items() if key != "sweep"})
    _check(plan)
    space = {
        key: [_typed(plan, key, value) for value in values] if isinstance(values, list) else values
        for key, values in plan.space.items()
    }
    sweep = plan.sweep.model_copy(update={"space": space})
    return Plan(config.model_copy(update={"sweep": sweep}), plan.origin, plan.tree)


def base(path: Path) -> Path | None:
    """The file over which another one is laid, if any. Raises ConfigError."""
    tree = read(path)
    name = tree.get("base") if isinstance(tree, dict) else None
    if name is not None and (not isinstance(name, str) or Path(name).name != name):
        raise ConfigError(f"{path}: base={name!r}: expected the name of a file beside it")
    return path.with_name(name) if name else None


def _over(below: Any, above: dict[str, Any]) -> dict[str, Any]:
    """One tree laid over another."""
    if not isinstance(below, dict):
        return above
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def _draw(values: list[Any] | Range, chance: random.Random) -> Any:
    if isinstance(values, list):
        return chance.choice(values)
    low, high = values.low, values.high
    if values.log:
        found = math.exp(chance.uniform(math.log(low), math.log(high)))
        return min(high, max(low, round(found) if values.whole else found))
    return chance.randint(int(low), int(high)) if values.whole else chance.uniform(low, high)


def _check(plan: Plan) -> None:
    """Raises ConfigError for a space that leads to a configuration which can not be run."""
    problems: dict[str, str] = {}  # one for each key
    for key, values in plan.space.items():
        own = {name for value in _listed(values) for name in flatten({key: value})}
        if reserved := sorted(name for name in own if name.startswith(RESERVED)):
            problems[key] = (
                f"  {', '.join(reserved)}: the sweep sets it for each trial; leave it out of the space"
            )
        elif plan.sweep.search == "pbt" and not key.startswith(BETWEEN_CHECKPOINTS):
            allowed = ", ".join(f"{prefix}*" for prefix in BETWEEN_CHECKPOINTS)
            problems[key] = f"  {key}: search=pbt changes runs under way, and so only {allowed}"
    for point in points(plan):
        try:
            found = plan.build(point)
        except ConfigError as error:
            first, *lines = str(error).splitlines()
            for line in lines or [f"  {first}"]:
                problems.setdefault(line.partition("=")[0].strip(), line)
            continue
        evaluation, train, saved = found.evaluation, found.train, found.checkpoint.every
        if (plan.sweep.asha or plan.sweep.search == "pbt") and evaluation.every >= train.steps:
            problems["evaluation.every"] = (
                f"  evaluation.every={evaluation.every} shows nothing before the end of "
                f"train.steps={train.steps}, so no trial can be stopped early: lower it"
            )
        if plan.sweep.search == "pbt" and not (saved and saved <= evaluation.every):
            problems["checkpoint.every"] = (
                f"  checkpoint.every={saved}: search=pbt branches off from checkpoints at an "
                f"evaluation; set it to evaluation.every={evaluation.every}, or lower"
            )
    if problems:
        listed = "\n".join(problems.values())
        raise ConfigError(f"{plan.origin}: sweep.space has what can not be run:\n{listed}")
    if set(plan.sweep.objective) & {"j_per_token"} and plan.config.energy.source == "none":
        raise ConfigError(
            "sweep.objective=j_per_token: energy.source=none measures no energy. Set auto, nvml or rapl."
        )


def _listed(values: list[Any] | Range) -> list[Any]:
    return values if isinstance(values, list) else [values.low, values.high]


def points(plan: Plan) -> Iterator[Values]:
    """The points that will be tried, as far as they are known, and else as many."""
    if plan.sweep.search == "grid":
        yield from plan.grid()
        return
    for number in range(plan.count):
        yield plan.draw(number)
    if plan.sweep.search == "random":
        return
    middle = plan.draw(0)
    for key, values in plan.space.items():
        for value in _listed(values):
            yield middle | {key: value}
    for number in range(plan.count, LOOKED_AT):
        yield plan.draw(number)


def _typed(plan: Plan, key: str, value: Any) -> Any:
    """A value as the configuration holds it: YAML takes 1e-3 for a text."""
    try:
        found: Any = plan.build({key: value})
    except ConfigError:  # it can not stand alone
        return value
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return value if isinstance(found, BaseModel | tuple | list | dict) else found
