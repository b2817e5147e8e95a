"""What a report says of a run's energy: its account, or why there is none."""

from dataclasses import dataclass

from panthalassa.energy.account import KWH, account, so_far
from panthalassa.energy.ledger import read
from panthalassa.energy.table import explain
from panthalassa.errors import PanthalassaError
from panthalassa.report.series import Series
from panthalassa.storage import Storage


@dataclass(frozen=True)
class Energy:
    """The energy of a run, of all devices that were measured."""

    j_per_iteration: float | None
    """Over the steps that stand; None as long as nothing is known of any."""
    bound: float | None
    """Relative bound of its error."""
    refresh: float
    """Seconds between two values of the slowest device."""
    kwh: float
    """Of the whole run, what was lost included."""
    source: str
    so_far: Series
    """kWh of the whole run, after each step that ends a line of the ledger."""
    uncovered_seconds: float
    """In which energy is not known."""
    explained: list[tuple[str, str]]
    """The account, for people."""


def energy_of(run: Storage, asked: str | None) -> Energy | str:
    """The energy of a run that was to be measured at the source `asked`, or why it is not known."""
    try:
        lines = read(run)
    except PanthalassaError as error:
        return f"The account of energy can not be read: {error}"
    found = account(lines)
    explained = list(explain(found))
    if found.source is None and asked == "none":
        return "Energy was not measured: energy.source is none."
    if found.source is None or not found.joules:
        return f"Energy is {'; '.join(text for _, text in explained)}."
    kwh = [(step, at, joules / KWH) for step, at, joules in so_far(lines)]
    return Energy(
        found.j_per_iteration,
        found.bound,
        found.refresh,
        found.kwh,
        found.source,
        Series.of(kwh),
        found.uncovered_seconds,
        explained,
    )
