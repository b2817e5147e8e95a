"""How long it takes to simulate 100,000 GPUs for 90 days, and what a run costs among many.

`make bench-simulation`. Both policies, a hundred runs together and one run alone, in one process.
Prints the seconds (target: 30 for both policies together), and what a run costs among the hundred as a
share of what it costs alone.
"""

import sys
import time

from rich.console import Console
from rich.table import Table

from panthalassa.planner.goodput import Reliability
from panthalassa.planner.simulation import Fleet, Policy, fixed_size, shrink_and_grow, simulate

GPUS, DAYS, RUNS = 100_000, 90.0, 100
MOST_SECONDS = 30.0


def measure(fleet: Fleet, policy: Policy, runs: int) -> tuple[float, float, int]:
    """Seconds, the median of the days to finish, and failures of one run."""
    start = time.perf_counter()
    played = simulate(DAYS, fleet, policy, Reliability(), runs=runs)
    took = time.perf_counter() - start
    return took, float(played.quantiles([0.5])[0]), int(played.failures.mean())


def main() -> int:
    fleet = Fleet(GPUS)
    table = Table(
        *("", "seconds", "one run alone", "a run among them", "failures", "days, median"),
        title=f"{GPUS:,} GPUs, {DAYS:g} days of training, {RUNS} runs",
    )
    whole = 0.0
    for policy in (fixed_size(fleet, fleet.nodes // 100), shrink_and_grow(fleet)):
        alone, *_ = measure(fleet, policy, 1)
        took, days, failures = measure(fleet, policy, RUNS)
        whole += took
        share = f"{took / RUNS / alone:.1%} of that"
        table.add_row(
            policy.name, f"{took:.1f}", f"{alone:.1f}", share, f"{failures:,}", f"{days:.1f}"
        )
    Console(width=110).print(table)
    return int(whole > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
