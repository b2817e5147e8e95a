"""The account of a run's energy as a table for people, each figure with its convention."""

from collections.abc import Iterator

from panthalassa.energy.account import Account
from panthalassa.energy.devices import Devices
from panthalassa.line_ledger import told_missing

NODES = 8
"""That are listed one by one."""


def explain(account: Account) -> Iterator[tuple[str, str]]:
    """A table for people: names and what stands beside them."""
    if account.source is None:
        why = "no rank had a power source (NVML, RAPL), or energy.source is none"
        yield "energy", f"not measured: {why}"
        return
    of = f"{account.devices} device{'s' * (account.devices != 1)} ({account.source})"
    if account.joules:
        total = f"{account.joules:,.1f} J = {account.kwh:.4g} kWh of {of}"
        of = (
            "all attempts and commands" if not account.missing else "without those that are missing"
        )
        yield "energy", f"{total}, {of}"
        yield from _measured(account)
        yield from _beyond(account)
    else:
        yield "energy", f"not known: nothing was read of {of} so far"
    if account.uncovered_seconds > 0:
        yield "not covered", f"{account.uncovered_seconds:.1f} s, in which energy is not known"
    if account.unmetered_seconds > 0:
        yield (
            "not metered",
            f"{account.unmetered_seconds:.1f} s, until commands had started their ranks",
        )
    if account.unwritten_steps:
        yield "not written", f"{account.unwritten_steps:,} steps: their command was killed before"
    if account.missing:
        yield "missing", told_missing(account.missing)
    for reason, count in account.marked.items():
        yield "marked", f"{count} window{'s' * (count > 1)}: {reason}"


def _measured(account: Account) -> Iterator[tuple[str, str]]:
    for phase, joules in sorted(account.joules_by_phase.items(), key=lambda item: -item[1]):
        if joules > 0:
            share = joules / account.joules
            yield f"  {phase.replace('_', ' ')}", f"{joules:12,.1f} J {share:6.1%}"
    if account.j_per_iteration is not None and account.j_per_token is not None:
        yield (
            "J/iteration",
            f"{account.j_per_iteration:,.2f} ± {account.bound:.1%} over {account.steps:,} steps; "
            f"{account.j_per_token:.4g} J a token",
        )
    if account.mean_watts is not None:
        peak = f", {account.peak_watts:,.1f} W at most over a second" if account.peak_watts else ""
        yield "power", f"{account.mean_watts:,.1f} W on average while it trained{peak}"


def _beyond(account: Account) -> Iterator[tuple[str, str]]:
    """What the meters do not see, with the convention."""
    if account.pue is None:
        yield "facility", "not counted: hosts, network and cooling (energy.pue is not set)"
    else:
        yield (
            "facility",
            f"{account.facility_kwh:.4g} kWh = devices' kWh x energy.pue {account.pue:g}",
        )
    if account.carbon_kg is not None:
        of = "facility's" if account.pue is not None else "devices'"
        yield (
            "carbon",
            f"{account.carbon_kg:.4g} kg CO₂ = {of} kWh x energy.grid_kg_per_kwh "
            f"{account.grid_kg_per_kwh:g}",
        )


def explain_nodes(devices: Devices) -> Iterator[tuple[str, str]]:
    """What the devices of each node took in reporting windows, when there are several nodes."""
    nodes = list(devices.by_node().items())
    if len(nodes) < 2:
        return
    for node, (count, joules) in nodes[:NODES]:
        yield "node", f"{joules:12,.1f} J of {count} device{'s' * (count != 1)} in {node}"
    if rest := nodes[NODES:]:
        joules = sum(spent for _, (_, spent) in rest)
        yield (
            "nodes",
            f"{joules:12,.1f} J in {len(rest)} others (energy/devices.csv has each device)",
        )
