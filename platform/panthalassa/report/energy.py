"""What a report says of a run's energy: its account, or why there is none."""

from dataclasses import dataclass

from panthalassa.energy.account import account, explain
from panthalassa.energy.ledger import read
from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage


@dataclass(frozen=True)
class Energy:
    """The energy of a run, of all devices that were measured."""

    j_per_iteration: float
    """Over the steps that stand."""
    bound: float | None
    """Relative bound of its error."""
    kwh: float
    """Of the whole run, what was lost included."""
    source: str
    explained: list[tuple[str, str]]
    """The account, for people."""


def energy_of(run: Storage) -> Energy | str:
    """The energy of a run, or why it is not known."""
    try:
        found = account(read(run))
    except PanthalassaError as error:
        return f"Energy was not measured: {error}"
    if found.source is None or found.j_per_iteration is None:
        return (
            "Energy was not measured: no rank had a power source that it could read (NVML, RAPL), or "
            "energy.source is none."
        )
    explained = list(explain(found))
    return Energy(found.j_per_iteration, found.bound, found.kwh, found.source, explained)
