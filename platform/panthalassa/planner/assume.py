"""What a plan rests on beside the configuration and the hardware, to be changed one by one.

`NAME=VALUE` comes in, from the command line; `Assumed` goes out. Every number that no data sheet and
no trace tells is a field of one of its parts, and its name is that field's.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.planner.goodput import LLAMA3, Assumption, Reliability
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.images import Images
from panthalassa.planner.layout import Workload
from panthalassa.planner.power import Assumptions
from panthalassa.planner.rank import Reserve


@dataclass(frozen=True)
class Fabric:
    """What lies between nodes."""

    network_gb_per_second: float | None = None
    """Of a GPU, in one direction; None takes the cluster's (hardware.yaml)."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what can not be."""
        given = self.network_gb_per_second
        if given is not None and not given > 0:
            raise ConfigError(f"network_gb_per_second={given:g}: expected a number above 0")

    def on(self, place: Cluster) -> Cluster:
        """The cluster with it."""
        given = self.network_gb_per_second
        return place if given is None else replace(place, network=given * 1e9)


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

    fabric: Fabric = field(default_factory=Fabric)
    reserve: Reserve = field(default_factory=Reserve)
    reliability: Reliability = field(default_factory=Reliability)
    repairs: Repairs = field(default_factory=Repairs)
    power: Assumptions = field(default_factory=Assumptions)
    images: Images = field(default_factory=Images)
    given: frozenset[str] = frozenset()
    """The names of those that somebody gave."""

    def changed(self, texts: Iterable[str]) -> "Assumed":
        """With `NAME=VALUE` in place of what was there.

        Raises PanthalassaError for a name that there is not, a value that is no number or can not be,
        and one that is given twice.
        """
        found = self
        for text in texts:
            name, _, value = (part.strip() for part in text.partition("="))
            if name in found.given:
                raise ConfigError(f"--assume {text}: {name} is given twice; leave one out")
            part = _part_of(name, text)
            new = replace(getattr(found, part), **{name: _number(name, value, text)})
            found = replace(found, **{part: new}, given=found.given | {name})
        return found

    def on(self, workload: Workload) -> Workload:
        """The workload with the images that are assumed.

        Raises ConfigError when these do not fit, or are given for a model of text alone.
        """
        of_images = sorted(name for name in self.given if PARTS[name] == "images")
        if of_images and workload.model.vision is None:
            raise ConfigError(
                f"--assume {of_images[0]}: the model reads no images; leave it out, or give model.vision"
            )
        return self.images.on(workload)

    def told(self, place: Cluster, workload: Workload) -> list[Assumption]:
        """Each by the name that changes it, with its value and where that is from."""
        known = {
            "network_gb_per_second": (place.network / 1e9, "hardware.yaml"),
            "node_watts": (place.node_watts, "hardware.yaml"),
            "images_per_sample": (workload.images_per_sample, "as many as fit"),
        }
        on_cpus = place.gpu.generation == "cpu"
        found = []
        for name, part in PARTS.items():
            if on_cpus and name == "reserved_gb":  # of which they need none
                continue
            if part == "images" and workload.model.vision is None:
                continue
            value, usual = (getattr(getattr(one, part), name) for one in (self, Assumed()))
            source = SOURCES.get(name, "assumed") if value == usual else "measured"
            if name in self.given:
                source = "given"
            elif value is None:
                value, source = known[name]
                if on_cpus and source == "hardware.yaml":
                    source = "this machine"
            found.append(Assumption(name, f"{value:.4g}", source))
        return found


PARTS = {
    name.name: part.name
    for part in fields(Assumed)
    if part.name != "given"
    for name in fields(part.default_factory)  # type: ignore[arg-type]
}
"""The name of each assumption, and which part of `Assumed` it is in."""
SOURCES = {
    "failures_per_gpu_hour": LLAMA3,
    "repair_share": "hardware's share of those interruptions",
    "kg_co2_per_kwh": "mean of the United States, as LLaMA's authors take it",
}
"""Of the others, nothing is known but what is usual."""


def _part_of(name: str, text: str) -> str:
    if name in PARTS:
        return PARTS[name]
    near = difflib.get_close_matches(name, PARTS, n=1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise ConfigError(f"--assume {text}: unknown assumption {name!r}; {hint} {', '.join(PARTS)}")


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
