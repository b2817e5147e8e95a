"""Ranking: a workload and a cluster come in, every layout with its speed and its memory goes out.

Each feasible layout gets the footprint that is traced (`memory`) and the speed that is computed
(`speed`). What fits is ranked by tokens a second and GPU; what does not fit, or is slower, says why.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from panthalassa.errors import ConfigError
from panthalassa.planner.calibration import factors
from panthalassa.planner.counts import Arrangement, Counts, Shape, count
from panthalassa.planner.hardware import GPU, Cluster, cluster
from panthalassa.planner.layout import CHECKPOINTING, Layout, Workload, feasible
from panthalassa.planner.memory import Footprint, footprints
from panthalassa.planner.speed import Factors, Speed, speed

RESERVED = 4e9
"""Bytes of a GPU that no tensor gets: CUDA's context and NCCL's buffers; an assumption."""
FRAGMENTS = 0.05
"""Share of its memory that an allocator's fragments take; an assumption."""
LARGEST = 65_536
"""GPUs up to which a cluster is looked for on which a workload fits."""


@dataclass(frozen=True)
class Candidate:
    """A layout, what a rank of it needs, and how fast it is."""

    layout: Layout
    footprint: Footprint
    speed: Speed
    usable: float
    """Bytes of a GPU that tensors may take."""

    @property
    def fits(self) -> bool:
        return self.footprint.peak <= self.usable

    def worse_than(self, best: "Candidate") -> str:
        """Why it is not the best."""
        if not self.fits:
            peak, usable = self.footprint.peak / 1e9, self.usable / 1e9
            return f"needs {peak:.1f} GB of {usable:.1f}: {self.footprint.when}"
        rates = [one.speed.tokens_per_second_per_gpu for one in (self, best)]
        parts = {
            name: part.seconds - best.speed.parts[name].seconds
            for name, part in self.speed.parts.items()
        }
        most = max(parts, key=lambda name: parts[name])
        return f"{rates[0] / rates[1] - 1:+.1%}: {parts[most]:.2f} s more of {most}"


def rank(
    workload: Workload, place: Cluster, compiled: bool, known: Factors | None = None
) -> list[Candidate]:
    """All feasible layouts: those that fit, the fastest first, then the others, the leanest first.

    compiled: whether blocks run under torch.compile. Raises ConfigError when there is no layout.
    """
    layouts = feasible(workload, place.gpus, place.gpus_per_node)
    known = known or factors()
    usable = usable_memory(place.gpu)
    found = [
        Candidate(
            layout, need, speed(_counts(workload, layout, place, compiled), place, known), usable
        )
        for layout, need in footprints(workload, layouts).items()
    ]
    return sorted(
        found,
        key=lambda one: (
            not one.fits,
            -one.speed.tokens_per_second_per_gpu if one.fits else one.footprint.peak,
            one.layout,
        ),
    )


def usable_memory(gpu: GPU) -> float:
    return gpu.memory * (1 - FRAGMENTS) - RESERVED


def best_of_each(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Of each tensor-parallel size the best, in the order of the ranking."""
    seen: set[int] = set()
    for one in candidates:
        if one.layout.tp not in seen:
            seen.add(one.layout.tp)
            yield one


def smallest_that_fits(workload: Workload, gpu: GPU, above: int) -> int | None:
    """The smallest power-of-two number of GPUs above `above` on which some layout fits; None up to
    LARGEST, or when the global batch has too few samples for it."""
    gpus = 1 << above.bit_length()
    usable = usable_memory(gpu)
    while gpus <= LARGEST:
        try:
            layouts = feasible(workload, gpus, cluster(gpu, gpus).gpus_per_node)
        except ConfigError:
            return None
        leanest = [
            layout
            for layout in layouts
            if layout.micro_batch == layout.replicas == 1
            and layout.activation_checkpointing == CHECKPOINTING[-1]
            and not layout.keep_gathered
        ]
        if any(need.peak <= usable for need in footprints(workload, leanest).values()):
            return gpus
        gpus *= 2
    return None


def _counts(workload: Workload, layout: Layout, place: Cluster, compiled: bool) -> Counts:
    return count(
        Shape.of(workload.model),
        Arrangement(
            gpus=place.gpus,
            gpus_per_node=place.gpus_per_node,
            sequence=workload.sequence_length,
            global_batch=workload.global_batch,
            micro_batch=layout.micro_batch,
            tp=layout.tp,
            replicas=layout.replicas,
            keep_gathered=layout.keep_gathered,
            recompute="full" if layout.activation_checkpointing == "full" else "none",
            fused=compiled,
            attention="masked",
            head_again=layout.micro_batch * workload.sequence_length > workload.loss_chunk,
        ),
    )
