"""What a plan rests on beside the configuration and the hardware, to be changed one by one.

`NAME=VALUE` comes in, from the command line; `Assumed` goes out. Every number that no data sheet and
no trace tells is a field of one of its parts, and its name is that field's.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.planner.goodput import Assumption, Reliability
from panthalassa.planner.power import Assumptions
from panthalassa.planner.rank import Reserve


@dataclass(frozen=True)
class Repairs:
    """What becomes of nodes that fail, and which wait for that."""

    repair_hours: float = 24.0
    """On average until a node is back."""
    repair_share: float = 0.78
    """Of the failures, those that take a node away."""
    spare_share: float = 0.02
    """Of the nodes, those that stand by in a run of fixed size; one at least."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what can not be."""
        if not self.repair_hours > 0:
            raise ConfigError(f"repair_hours={self.repair_hours:g}: expected hours above 0")
        for name in ("repair_share", "spare_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name):g}: expected a share from 0 to 1")


@dataclass(frozen=True)
class Assumed:
    """All of it."""

    reserve: Reserve = field(default_factory=Reserve)
    reliability: Reliability = field(default_factory=Reliability)
    repairs: Repairs = field(default_factory=Repairs)
    power: Assumptions = field(default_factory=Assumptions)

    def changed(self, texts: Iterable[str]) -> "Assumed":
        """With `NAME=VALUE` in place of what was there.

        Raises PanthalassaError for a name that there is not, a value that is no number or can not be,
        and one that is given twice.
        """
        found, given = self, set[str]()
        for text in texts:
            name, _, value = (part.strip() for part in text.partition("="))
            if name in given:
                raise ConfigError(f"--assume {text}: {name} is given twice; leave one out")
            given.add(name)
            part = _part_of(name, text)
            new = replace(getattr(found, part), **{name: _number(name, value, text)})
            found = replace(found, **{part: new})
        return found

    def told(self) -> list[Assumption]:
        """Each by the name that changes it, with its value, and whether somebody gave it."""
        return [
            Assumption(name, f"{value:.4g}", "default" if value == usual else "given")
            for part, name in _names()
            for value in [getattr(getattr(self, part), name)]
            for usual in [getattr(getattr(Assumed(), part), name)]
            if value is not None
        ]


def _names() -> list[tuple[str, str]]:
    """The part and the name of each assumption."""
    whole: Any = Assumed()
    return [
        (part.name, one.name) for part in fields(whole) for one in fields(getattr(whole, part.name))
    ]


def _part_of(name: str, text: str) -> str:
    known = {one: part for part, one in _names()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise ConfigError(f"--assume {text}: unknown assumption {name!r}; {hint} {', '.join(known)}")


def _number(name: str, value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise PanthalassaError(
            f"--assume {text}: expected NAME=NUMBER without a unit, such as {name}=1.2"
        ) from None
    if not math.isfinite(number):
        raise PanthalassaError(f"--assume {text}: expected a finite number")
    return number
