"""Strong scaling: a plan comes in, the plans of the same run on other numbers of GPUs go out.

The global batch stays, so that all of them train the same model. The one idea: what a rank needs on
another number of GPUs follows from the traces for the asked one, with smaller or larger shards. So
all layouts are ranked for each number, and hardly anything is traced for it.
"""

from dataclasses import dataclass, replace

from panthalassa.errors import ConfigError
from panthalassa.planner import hardware
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.memory import Progress
from panthalassa.planner.plan import Plan, planned
from panthalassa.planner.rank import rank

BEYOND = 4
"""Times the asked GPUs, up to which others are planned."""


@dataclass(frozen=True)
class Scaling:
    """A run on powers of two of GPUs, and on the asked number."""

    plans: list[Plan]
    """The fewest GPUs first: the smallest power of two on which the run fits."""
    below: str
    """Why there are none on fewer GPUs."""
    above: str
    """Why there are none on more."""

    @property
    def best_rate(self) -> float:
        """The highest tokens/s/GPU of all."""
        return max(plan.best.rate for plan in self.plans)


def scale(asked: Plan, progress: Progress | None = None) -> Scaling:
    """Plan the run of `asked` on fewer GPUs, down to where it fits no more, and on more."""
    gpus = asked.cluster.gpus
    powers = [1 << exponent for exponent in range((BEYOND * gpus).bit_length())]
    plans, below, above = [asked], "there are none", f"not looked at beyond {BEYOND} times {gpus:,}"
    for number in (power for power in reversed(powers) if power < gpus):
        try:
            plans.insert(0, _on(number, asked, progress))
        except ConfigError as error:
            below = _why(number, error)
            break
    for number in (power for power in powers if power > gpus):
        try:
            plans.append(_on(number, asked, progress))
        except ConfigError as error:
            above = _why(number, error)
            break
    return Scaling(plans, below, above)


def _why(gpus: int, error: ConfigError) -> str:
    """Of several reasons, the one without tensor parallelism, which comes first."""
    return f"on {gpus:,}, " + str(error).splitlines()[0].removeprefix("no layout: ")


def _on(gpus: int, asked: Plan, progress: Progress | None) -> Plan:
    """Raises ConfigError when nothing fits there, or no layout is possible."""
    place, assumed, known = _cluster(gpus, asked.cluster), asked.assumed, asked.factors
    compiled, traced = asked.config.parallel.compile, asked.cluster.gpus
    ranking = rank(asked.workload, place, compiled, known, assumed.reserve, progress, traced)
    if not ranking[0].fits:
        peak, usable = ranking[0].footprint.peak / 1e9, ranking[0].usable / 1e9
        raise ConfigError(f"the leanest layout needs {peak:.1f} GB of the {usable:.1f} for tensors")
    return planned(asked.config, place, ranking, asked.tokens, assumed, known, asked.fitted)


def _cluster(gpus: int, asked: Cluster) -> Cluster:
    """As many of the same GPUs, in nodes of the same kind, the first of which is filled first."""
    if asked.gpu.generation == "cpu":  # each a rank of one machine
        return replace(asked, gpus=gpus, gpus_per_node=gpus)
    usual = hardware.cluster(asked.gpu, gpus)
    return replace(usual, network=asked.network, node_watts=asked.node_watts)
