"""Energy, money and carbon of a run that has not been made.

In come the parts of a step (`Speed`), a cluster, the GPU-hours and `Assumptions`; out comes a
`Bill`. What a GPU draws follows what it does: products draw nearly all that it may, waiting
draws little. Beside it stands the convention of most papers, TDP x PUE x GPU-hours (Touvron et al.
2023, arXiv:2302.13971, section 6), because their figures can only be compared with that. Nothing
here is measured; every assumption has a name, and `explain` prints it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.planner.hardware import Cluster, cluster, gpu
from panthalassa.planner.published import rows
from panthalassa.planner.speed import Speed
from panthalassa.planner.units import dollars, energy, mass

ARITHMETIC = ("matrix products", "attention")
MEMORY = ("elementwise", "optimizer")


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says. The draws are shares of the way from idle to the power limit."""

    arithmetic_draw: float = 0.95
    """While matrix products and attention run: large ones bring an A100 or H100 to its limit."""
    memory_draw: float = 0.65
    """While elementwise kernels run."""
    waiting_draw: float = 0.3
    """While the GPU waits: for collectives, in pipeline bubbles, between kernels."""
    node_watts: float | None = None
    """Of a node besides its GPUs; None takes the cluster's (hardware.yaml)."""
    pue: float = 1.1
    """Power usage effectiveness: what the building draws for each watt of its machines."""
    price_per_gpu_hour: float = 2.0
    """In US dollars."""
    kg_co2_per_kwh: float = 0.385
    """Of the electricity: the mean of the United States that LLaMA's authors take."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what can not be."""
        for name in ("arithmetic_draw", "memory_draw", "waiting_draw"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: a share of the power, from 0 to 1"
                )
        if self.pue < 1:
            raise ConfigError(f"pue={self.pue}: a building draws at least what its machines do (1)")
        for name in ("node_watts", "price_per_gpu_hour", "kg_co2_per_kwh"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is negative")


@dataclass(frozen=True)
class Bill:
    """What a run takes. Watts are of one GPU, energies of all of it, in MWh."""

    gpu_watts: float
    gpu_hours: float
    gpus: float
    """MWh."""
    nodes: float
    """MWh of what nodes draw besides their GPUs."""
    building: float
    """MWh that the building adds."""
    dollars: float
    tonnes_co2: float
    by_convention: float
    """MWh: TDP x PUE x GPU-hours."""
    tonnes_by_convention: float

    @property
    def mwh(self) -> float:
        return self.gpus + self.nodes + self.building


def draw(parts: Speed, assumed: Assumptions) -> float:
    """The mean share of the way from idle to the limit that a GPU draws in a step."""
    joules = 0.0
    for name, part in parts.parts.items():
        share = assumed.waiting_draw
        if name in ARITHMETIC:
            share = assumed.arithmetic_draw
        elif name in MEMORY:
            share = assumed.memory_draw
        joules += part.seconds * share
    return joules / parts.step_seconds


def footprint(
    found: Speed, cluster: Cluster, gpu_hours: float, assumed: Assumptions | None = None
) -> Bill:
    """What `gpu_hours` of such steps take on that cluster. Raises ConfigError for negative
    hours."""
    assumed = assumed or Assumptions()
    if gpu_hours < 0:
        raise ConfigError(f"{gpu_hours} GPU-hours: they can not be negative")
    return _footprint(draw(found, assumed), cluster, gpu_hours, assumed)


def _footprint(share: float, cluster: Cluster, hours: float, assumed: Assumptions) -> Bill:
    chip = cluster.gpu
    watts = chip.idle + share * (chip.watts - chip.idle)
    per_node = cluster.node_watts if assumed.node_watts is None else assumed.node_watts
    gpus = watts * hours / 1e6
    nodes = per_node / cluster.gpus_per_node * hours / 1e6
    convention = chip.tdp * assumed.pue * hours / 1e6
    total = (gpus + nodes) * assumed.pue
    return Bill(
        gpu_watts=watts,
        gpu_hours=hours,
        gpus=gpus,
        nodes=nodes,
        building=(gpus + nodes) * (assumed.pue - 1),
        dollars=hours * assumed.price_per_gpu_hour,
        tonnes_co2=total * assumed.kg_co2_per_kwh,
        by_convention=convention,
        tonnes_by_convention=convention * assumed.kg_co2_per_kwh,
    )


def explain(found: Bill, cluster: Cluster, assumed: Assumptions) -> Iterator[tuple[str, str]]:
    """The bill, then every assumption by its name."""
    yield (
        "energy",
        f"{energy(found.mwh)}: GPUs {energy(found.gpus)} ({found.gpu_watts:.0f} W each), nodes "
        f"{energy(found.nodes)}, building {energy(found.building)}",
    )
    yield "carbon", f"{mass(found.tonnes_co2)} CO2"
    hours = f"{found.gpu_hours:,.0f}" if found.gpu_hours >= 100 else f"{found.gpu_hours:.2g}"
    yield "cost", f"{dollars(found.dollars)} for {hours} GPU-hours"
    yield (
        "as papers count",
        f"{energy(found.by_convention)}, {mass(found.tonnes_by_convention)} CO2 (TDP x PUE x "
        "GPU-hours, without nodes)",
    )
    for field in fields(Assumptions):
        value = getattr(assumed, field.name)
        if field.name == "node_watts" and value is None:
            value = cluster.node_watts
        yield f"  assumed: {field.name}", f"{value:g}"
    yield "  assumed: idle", f"{cluster.gpu.idle:g} W"


def calibrated(
    found: Speed, cluster: Cluster, watts: Sequence[float], assumed: Assumptions | None = None
) -> Assumptions:
    """The assumptions with draws that give what GPUs of such steps were measured to draw on
    average.

    watts: of one GPU, each of a stretch of steps. All three draws change by the same factor. Raises
    PanthalassaError without a measurement, and for one that this GPU can not have drawn.
    """
    assumed = assumed or Assumptions()
    chip = cluster.gpu
    if not watts:
        raise PanthalassaError("no power was measured: the draws stay assumptions")
    mean = sum(watts) / len(watts)
    if not chip.idle <= mean <= chip.watts:
        raise PanthalassaError(
            f"{mean:.0f} W measured of a {chip.name}, which draws {chip.idle:g} to {chip.watts:g} W: "
            "name the GPU that was measured, or its power limit"
        )
    factor = (mean - chip.idle) / (chip.watts - chip.idle) / draw(found, assumed)
    names = ("arithmetic_draw", "memory_draw", "waiting_draw")
    return replace(assumed, **{name: min(1.0, getattr(assumed, name) * factor) for name in names})


TYPICAL = 0.81
"""The draw of published runs of which only GPU-hours are known: that of a step with 70 %
arithmetic, 15 % elementwise work and 15 % waiting, by the draws above."""


@dataclass(frozen=True)
class Comparison:
    """A published run's energy and carbon beside what is computed from its GPU-hours; errors as
    shares."""

    id: str
    mwh: float
    by_convention: float
    ours: float
    tonnes: float
    tonnes_by_convention: float

    @property
    def convention_error(self) -> float:
        return self.by_convention / self.mwh - 1

    @property
    def error(self) -> float:
        return self.ours / self.mwh - 1

    @property
    def tonnes_error(self) -> float:
        return self.tonnes_by_convention / self.tonnes - 1


def published() -> Iterator[Comparison]:
    """The rows that tell GPU-hours and energy, by the default assumptions.

    Their own energies are nearly all TDP x PUE x GPU-hours, without nodes, so that the convention
    has to give them again, and ours differs by what the convention leaves out.
    """
    assumed = Assumptions()
    for row in rows():
        if not (row["gpu_hours"] and row["mwh"]):
            continue
        place = cluster(gpu(row["gpu"]), 8)
        found = _footprint(TYPICAL, place, float(row["gpu_hours"]), assumed)
        yield Comparison(
            id=row["id"],
            mwh=float(row["mwh"]),
            by_convention=found.by_convention,
            ours=found.mwh,
            tonnes=float(row["tonnes_co2"]),
            tonnes_by_convention=found.tonnes_by_convention,
        )
