"""Ranking: a workload and a cluster come in, every layout with its memory and its speed goes out.

Each feasible layout gets the footprint that is traced (`memory`) and the speed that is computed
(`speed`). What fits is ranked by tokens/s/GPU; what does not fit, or is slower, says why.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from panthalassa.errors import ConfigError
from panthalassa.planner.calibration import factors
from panthalassa.planner.counts import Arrangement, Counts, Shape, count
from panthalassa.planner.hardware import GPU, Cluster, cluster
from panthalassa.planner.images import on_the_fullest
from panthalassa.planner.layout import CHECKPOINTING, TP_SIZES, Layout, Workload, feasible, obstacle
from panthalassa.planner.memory import Footprint, Progress, footprints
from panthalassa.planner.speed import Factors, Speed, speed

LEAST_SHARE = 1e-4
"""Of a step: what takes less longer than that is not told."""
LARGEST = 65_536
"""GPUs up to which a cluster is looked for on which a workload fits."""


@dataclass(frozen=True)
class Reserve:
    """What of a GPU's memory tensors do not get."""

    reserved_gb: float = 4.0
    """CUDA's context and NCCL's buffers."""
    fragments: float = 0.05
    """Share of the memory that the allocator can not use."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what can not be."""
        if not self.reserved_gb >= 0:
            raise ConfigError(f"reserved_gb={self.reserved_gb:g}: expected 0 or more")
        if not 0 <= self.fragments < 1:
            raise ConfigError(f"fragments={self.fragments:g}: expected a share from 0 to below 1")

    def usable(self, gpu: GPU) -> float:
        """Bytes of that GPU that tensors may take. A CPU has neither context nor buffers."""
        if gpu.generation == "cpu":
            return gpu.memory * (1 - self.fragments)
        return gpu.memory * (1 - self.fragments) - self.reserved_gb * 1e9


@dataclass(frozen=True)
class Candidate:
    """A layout, what a rank of it needs, and how fast it is."""

    layout: Layout
    compiled: bool
    """Whether its blocks run under torch.compile."""
    footprint: Footprint
    speed: Speed
    usable: float
    """Bytes of a GPU that tensors may take."""

    @property
    def fits(self) -> bool:
        return self.footprint.peak <= self.usable

    @property
    def rate(self) -> float:
        """Tokens/s/GPU."""
        return self.speed.tokens_per_second_per_gpu

    def overrides(self) -> list[str]:
        """The keys of a configuration that ask for it."""
        return [*self.layout.overrides(), f"parallel.compile={str(self.compiled).lower()}"]

    def worse_than(self, best: "Candidate") -> str:
        """Why it is not the best: by how much it does not fit, and when; or what takes it longer."""
        if not self.fits:
            over = (self.footprint.peak - self.usable) / 1e9
            return f"does not fit: {over:.1f} GB too much in the {self.footprint.when}"
        return f"{self.rate / best.rate - 1:+.1%}: {', '.join(self.slower(best)[:1]) or 'a tie'}"

    def slower(self, best: "Candidate") -> list[str]:
        """The parts of a step that take it longer than the best, the largest first."""
        longer = {
            name: part.seconds - best.speed.parts[name].seconds
            for name, part in self.speed.parts.items()
        }
        order = sorted(longer, key=lambda name: -longer[name])
        least = LEAST_SHARE * best.speed.step_seconds
        return [f"{_seconds(longer[name])} more {name}" for name in order if longer[name] > least]


def rank(
    workload: Workload,
    place: Cluster,
    compiled: bool,
    known: Factors | None = None,
    reserve: Reserve | None = None,
    progress: Progress | None = None,
    traced: int | None = None,
) -> list[Candidate]:
    """All feasible layouts: those that fit, the fastest first, then the others, the leanest first.

    compiled: whether blocks run under torch.compile where they can. known: factors of the speed,
    those of published runs if not given. traced: another number of GPUs, whose traces serve; a
    layout that shards nothing is left out then, because it is another program. Raises ConfigError
    when there is no layout, and for fp32 on a GPU, of which nothing is known.
    """
    layouts = feasible(workload, place.gpus, place.gpus_per_node)
    if traced is not None:
        layouts = [layout for layout in layouts if layout.shards > 1] or layouts
    known, usable = known or factors(), (reserve or Reserve()).usable(place.gpu)
    if workload.precision == "fp32" and place.gpu.generation != "cpu":
        raise ConfigError(
            f"parallel.precision=fp32 on {place.gpu.name}: peaks and published runs are of bf16; add "
            "parallel.precision=bf16"
        )
    found = []
    for layout, need in footprints(workload, layouts, progress=progress, gpus=traced).items():
        # torch.compile and full checkpointing exclude each other: config.Parallel
        fused = compiled and layout.activation_checkpointing != "full"
        takes = speed(counted(workload, layout, place.gpus_per_node, fused), place, known)
        found.append(Candidate(layout, fused, need, takes, usable))
    return sorted(
        found,
        key=lambda one: (
            not one.fits,
            -one.rate if one.fits else one.footprint.peak,
            one.footprint.peak,
            one.layout,
        ),
    )


def counted(workload: Workload, layout: Layout, gpus_per_node: int, compiled: bool) -> Counts:
    """What a rank of that layout does in a step.

    As the model and the step are: a mask of documents in every attention, gradients reduced in
    fp32, a loss in pieces that the backward pass computes again when there is more than one. Weights
    that stay gathered are one FSDP group, beside whose exchange nothing is computed. Selective
    checkpointing repeats elementwise work alone, which is not counted.
    """
    share, each = workload.image_samples, workload.images_per_sample
    samples = workload.global_batch / layout.dp
    return count(
        Shape.of(workload.model),
        Arrangement(
            gpus=layout.gpus,
            gpus_per_node=gpus_per_node,
            sequence=workload.sequence_length,
            global_batch=workload.global_batch,
            micro_batch=layout.micro_batch,
            tp=layout.tp,
            replicas=layout.replicas,
            keep_gathered=layout.keep_gathered,
            one_group=layout.keep_gathered,
            recompute="full" if layout.activation_checkpointing == "full" else "none",
            fused=compiled,
            attention="masked",
            reduce_bytes=4,
            head_again=layout.micro_batch * workload.sequence_length > workload.loss_chunk,
            images=share * each,
            most_images=each * on_the_fullest(samples, share, layout.dp),
        ),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def best_of_each(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Of each tensor-parallel size the best, in the order of the ranking."""
    seen: set[int] = set()
    for one in candidates:
        if one.layout.tp not in seen:
            seen.add(one.layout.tp)
            yield one


def verdict(candidates: Sequence[Candidate], workload: Workload, place: Cluster) -> str:
    """Whether the widest tensor parallelism, inside the node, gives more than it costs."""
    best, widest = candidates[0], max(TP_SIZES)
    why = obstacle(workload, place.gpus, place.gpus_per_node, widest)
    if why:
        return f"TP {widest} is impossible: {why}"
    wide = next((one for one in candidates if one.layout.tp == widest), None)
    narrow = next((one for one in candidates if one.layout.tp != widest), None)
    if wide is None:
        return f"TP {widest} shards nothing on {place.gpus} GPUs, and was not looked at"
    if narrow is None:
        return f"only TP {widest} is possible: {obstacle(workload, place.gpus, place.gpus_per_node, 1)}"
    if not wide.fits:
        return f"TP {widest} fits in no layout; its leanest {wide.worse_than(best)}"
    if wide is best and not narrow.fits:
        return f"TP {widest} is needed: without it, the leanest {narrow.worse_than(best)}"
    if wide is best:
        gain = wide.rate / narrow.rate - 1
        return f"TP {widest} gives {gain:.1%}: without it {', '.join(narrow.slower(wide)[:3])}"
    return (
        f"TP {widest} costs more than it gives: {wide.rate:,.0f} tokens/s/GPU at its best, "
        f"{wide.rate / best.rate - 1:.1%} beside TP {best.layout.tp}: "
        f"{', '.join(wide.slower(best)[:3])}"
    )


def smallest_that_fits(
    workload: Workload,
    gpu: GPU,
    above: int,
    reserve: Reserve | None = None,
    progress: Progress | None = None,
) -> int | None:
    """The smallest power of two of GPUs above `above` on which some layout fits.

    None when there is none up to LARGEST, or the global batch has too few samples for more ranks.
    """
    usable, gpus = (reserve or Reserve()).usable(gpu), 1 << above.bit_length()
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
        needs = footprints(workload, leanest, progress=progress)
        if any(need.peak <= usable for need in needs.values()):
            return gpus
        gpus *= 2
    return None
