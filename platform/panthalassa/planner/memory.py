"""Bytes, FLOPs and collectives of a step on one rank, for any layout, from a few small traces.

`footprints(workload, layouts)` is the whole interface. A trace takes a second, and a model has 36
layers and hundreds of layouts; so few are traced, and the others follow from them:

- Layers are alike, those of the decoder and those of the tower. Models of 2 to 4 of them are traced,
  and the bytes at each allocation extended to the whole model (`extend`). The peak is searched after
  that, so that what few layers hide (the activations, behind the logits) comes out.
- Micro-batches are alike, from the one on whose loss has four pieces of `loss_chunk` positions.
- Sharding over fewer ranks (HSDP) changes the bytes of shards alone, which are counted apart.
- A step of one micro-batch differs from one of several by the gradients that are there before.
- Of a workload with images, every sample of the traced micro-batches has them: such there will be.

What is counted are tensors, with the kernels of a CPU and without torch.compile. An allocator's
fragments, the buffers of NCCL and CUDA's context come on top; compiled blocks need less.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panthalassa.config_model import Model
from panthalassa.planner.cache import TraceCache
from panthalassa.planner.extend import extend
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.recording import IN_TOWER, Column, Job, Recording, Segment

TRACED_LAYERS = (2, 3)
LEAST_PIECES = 4
"""Pieces of the loss in the smaller traced micro-batch, so that each half holds a whole one."""

PAUSE = 0.5
"""Seconds between two looks at how far the traces are."""
INPUT_BYTES = 24
"""Of a position: token, document and label as int64."""

MOMENTS = {
    "forward": "embedding",
    "projector": "forward pass of the projector",
    "head": "forward pass of the head",
    "backward": "backward pass of the head",
    "clip": "clipping",
    "optimizer": "optimizer",
}
"""Of segments without a block."""

Events = NDArray[np.int64]
"""[allocations, columns]: bytes."""
Progress = Callable[[int, int], None]
"""Told how many of how many traces are done, now and then while they are made."""


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind over one group, of a rank in a step."""

    kind: str
    """`all_gather`, `reduce_scatter`, `all_reduce`, `all_to_all`."""
    group: str
    """`tp`: inside a tensor-parallel group. `shard`: over the ranks that a copy of the model is
    sharded over. `replicas`: over copies. `all`: none of these."""
    ranks: int
    """In such a group."""
    calls: int
    bytes: int
    """Of the whole tensors: gathered, or before they are reduced and scattered. A ring moves
    (ranks - 1) / ranks of them in and out of a rank; an all-reduce twice that."""


@dataclass(frozen=True)
class Footprint:
    """What a rank of a layout needs. Bytes are those at the moment of the peak, and sum up to
    it."""

    parameters: int
    gradients: int
    """Shards of them, and whole ones that wait for the last micro-batch."""
    optimizer: int
    gathered: int
    """Weights that are whole at that moment, and the buffers that they come in."""
    activations: int
    """What forward passes left for the backward pass, or are working on."""
    temporaries: int
    """Gradients of activations, what is computed again, buffers of reductions."""
    inputs: int
    """All micro-batches of the step."""
    when: str
    """Where in the step the peak is."""
    micro_batches: int
    flops: int
    """Executed in a step, with what is computed again: of the hardware (HFU), not of the model
    (MFU)."""
    traffic: tuple[Traffic, ...]

    @property
    def peak(self) -> int:
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.gathered
            + self.activations
            + self.temporaries
            + self.inputs
        )


def footprints(
    workload: Workload,
    layouts: Iterable[Layout],
    cache: TraceCache | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
    gpus: int | None = None,
) -> dict[Layout, Footprint]:
    """The footprint of every layout, in their order.

    cache: where traces are kept; the user's folder if not given. processes: that trace at a time,
    one a CPU if not given. progress: not called when all traces are in the cache. gpus: whose ranks
    are traced, and the layouts of other numbers follow from them; a layout's own if not given. A
    rank is the first one, whose shards are the largest. Raises RuntimeError when a tracing process
    fails.
    """
    cache = cache or TraceCache()
    jobs = {layout: traces(workload, layout, gpus) for layout in layouts}
    wanted = dict.fromkeys(job for grid in jobs.values() for row in grid for job in row)
    recordings = {job: recording for job in wanted if (recording := cache.read(job))}
    missing = [job for job in wanted if job not in recordings]
    recordings |= trace_all(missing, cache, processes or os.cpu_count() or 1, progress)
    found = {}
    extended: dict[Any, Recording] = {}
    for layout, grid in jobs.items():
        key = layout.micro_batch, tuple(map(tuple, grid))
        if key not in extended:
            rows = [[recordings[job] for job in row] for row in grid]
            extended[key] = _extended(workload, layout, rows)
        shards = grid[0][0].dp // grid[0][0].replicas
        found[layout] = _footprint(workload, layout, shards, extended[key])
    return found


def trace_all(
    jobs: Sequence[Job], cache: TraceCache, processes: int, progress: Progress | None = None
) -> dict[Job, Recording]:
    """Trace `jobs` in processes of their own, and keep what they give."""
    if not jobs:
        return {}
    # Neighbours share what torch has worked out about their shapes.
    order = sorted(jobs, key=lambda job: (job.mesh, job.activation_checkpointing, job.micro_batch))
    with tempfile.TemporaryDirectory(prefix="panthalassa-trace-") as name:
        folder = Path(name)
        (folder / "jobs.json").write_text(json.dumps([job.dump() for job in order]))
        tell = progress or (lambda done, all: None)
        recordings = {}
        try:
            _run(folder, min(processes, len(order)), lambda: tell(_traced(folder), len(order)))
        finally:  # what is done is kept, however it ends
            for number, job in enumerate(order):
                if (file := folder / f"{number}.npz").exists():
                    payload = file.read_bytes()
                    recordings[job] = Recording.load(payload)
                    cache.write(job, payload)
    return recordings


def _traced(folder: Path) -> int:
    return len(list(folder.glob("*.npz")))


def _run(folder: Path, processes: int, tell: Callable[[], None]) -> None:
    """All jobs of a folder, with `tell` now and then; no process is left behind, whatever happens."""
    command = [sys.executable, "-m", "panthalassa.planner.trace", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    errors = [folder / f"errors-{first}" for first in range(processes)]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for first, file in enumerate(errors):
            with file.open("wb") as stream:
                running.append(
                    subprocess.Popen(
                        [*command, str(first), str(processes)],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=stream,
                        stderr=stream,
                    )
                )
        for process, file in zip(running, errors, strict=True):
            while process.poll() is None:
                tell()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=PAUSE)
            if process.returncode:
                tail = file.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"tracing failed with code {process.returncode}:\n{tail}")
    finally:
        for process in running:
            process.kill()
            process.wait()


def traces(workload: Workload, layout: Layout, gpus: int | None = None) -> list[list[Job]]:
    """The traces, of `gpus` ranks or as many as it has, that a layout follows from: by
    micro-batch, by layers."""
    n = layout.micro_batches(workload.global_batch)
    # A shard that is the whole is another program: FSDP gathers nothing then.
    replicas = layout.replicas if layout.shards == 1 else 1
    others = (gpus or 0) // layout.tp
    base = Job(
        model=workload.model,
        sequence_length=workload.sequence_length,
        loss_chunk=workload.loss_chunk,
        precision=workload.precision,
        dp=others if others > 1 and layout.shards > 1 else layout.dp,
        tp=layout.tp,
        replicas=replicas,
        micro_batch=1,
        images=_most_images(workload),
        activation_checkpointing=layout.activation_checkpointing,
        keep_gathered=layout.keep_gathered,
        # Weights that stay gathered make the first and the last micro-batch different ones.
        micro_batches=2 if n > 1 and layout.keep_gathered else 1,
        begins_with_gradients=not layout.keep_gathered,
    )
    return [
        [
            replace(base, micro_batch=micro_batch, model=model)
            for model, _ in _small_models(workload.model)
        ]
        for micro_batch in _traced_micro_batches(workload, layout.micro_batch)
    ]


def _small_models(model: Model) -> Iterator[tuple[Model, int]]:
    """The traced models: one of few layers, and with each how many times what it has more than that is
    in the whole model.

    In the backward pass of a block, FSDP gathers the one that comes two blocks later. So with a tower
    there are three blocks of the decoder at least, that this is one of them behind the last.
    """
    few, more = TRACED_LAYERS
    vision, small = model.vision, model.model_copy(update={"preset": None})
    deep_tower = vision is not None and vision.layers > more
    if vision and deep_tower:
        small = small.model_copy(update={"vision": vision.model_copy(update={"layers": few})})
    least = few + 1 if vision else few
    deep_decoder = model.layers > least + 1
    if deep_decoder:
        small = small.model_copy(update={"layers": least})
    yield small, 0
    if deep_decoder:
        yield small.model_copy(update={"layers": least + 1}), model.layers - least
    if vision and deep_tower:
        deeper = vision.model_copy(update={"layers": more})
        yield small.model_copy(update={"vision": deeper}), vision.layers - few


def _most_images(workload: Workload) -> int:
    """In a sample."""
    return math.ceil(workload.images_per_sample) if workload.image_samples else 0


def _traced_micro_batches(workload: Workload, micro_batch: int) -> tuple[int, ...]:
    """Two small ones with whole pieces of the loss, from which `micro_batch` follows; else itself.

    A batch of one sample is another program, in which less has to be copied.
    """
    sequence, chunk = workload.sequence_length, workload.loss_chunk
    unit = chunk // math.gcd(sequence, chunk)
    least = max(unit * -(-LEAST_PIECES * chunk // (sequence * unit)), 2 * unit)
    if micro_batch > least + unit and micro_batch % unit == 0:
        return least, least + unit
    return (micro_batch,)


def _extended(workload: Workload, layout: Layout, grid: list[list[Recording]]) -> Recording:
    """The recording of the whole model and of the layout's micro-batch."""
    times = [number for _, number in _small_models(workload.model)]
    small, *large = (extend(row[0], *zip(row[1:], times[1:], strict=True)) for row in grid)
    return extend(small, (large[0], _beyond(workload, layout.micro_batch))) if large else small


def _beyond(workload: Workload, micro_batch: int) -> int:
    small, large = _traced_micro_batches(workload, micro_batch)
    return (micro_batch - small) // (large - small)


def _footprint(
    workload: Workload, layout: Layout, traced_shards: int, recording: Recording
) -> Footprint:
    n = layout.micro_batches(workload.global_batch)
    events = np.concatenate([segment.events for segment in recording.segments])
    parts = _by_part(events, recording, layout, traced_shards, n > 1)
    parts["inputs"] += n * layout.micro_batch * _input_bytes(workload)
    total = np.sum(list(parts.values()), axis=0)
    peak = int(total.argmax())
    return Footprint(
        **{name: int(values[peak]) for name, values in parts.items()},
        when=_moment(recording.segments, peak),
        micro_batches=n,
        flops=sum(
            recording.flops.get(part, 0) * times for part, times in _times(layout, n).items()
        ),
        traffic=tuple(_traffic(recording, layout, n)),
    )


def _input_bytes(workload: Workload) -> int:
    """Of a sample."""
    vision, positions = workload.model.vision, INPUT_BYTES * workload.sequence_length
    image = 3 * vision.image_size**2 if vision else 0
    return positions + _most_images(workload) * image


def _by_part(
    events: Events, recording: Recording, layout: Layout, traced_shards: int, accumulates: bool
) -> dict[str, Events]:
    """The fields of a Footprint, each [allocations]."""
    column = {kind: events[:, kind] for kind in Column}
    shard, traced = recording.shard_bytes(layout.shards), recording.shard_bytes(traced_shards)

    def resharded(values: Events) -> Events:
        return values if shard == traced else np.rint(values * (shard / traced)).astype(np.int64)

    old_and_new = column[Column.OLD_GRADIENT] + column[Column.NEW_GRADIENT]
    several = accumulates and not layout.keep_gathered
    return {
        "parameters": column[Column.PARAMETER] + (shard - traced),
        "optimizer": column[Column.OPTIMIZER] + 2 * (shard - traced),
        "gradients": resharded(old_and_new if several else column[Column.REDUCED])
        + column[Column.WHOLE_GRADIENT],
        "gathered": resharded(column[Column.CAST]) + column[Column.GATHERED],
        "activations": column[Column.ACTIVATION],
        "temporaries": column[Column.TEMPORARY],
        "inputs": np.zeros_like(column[Column.INPUT]),
    }


def _moment(segments: Sequence[Segment], event: int) -> str:
    for segment in segments:
        if event < len(segment.events):
            break
        event -= len(segment.events)
    if segment.block is None:
        return MOMENTS[segment.phase]
    if segment.phase in IN_TOWER:
        return (
            f"{segment.phase.removeprefix('tower ')} pass of block {segment.block + 1} of the tower"
        )
    return f"{segment.phase} pass of block {segment.block + 1}"


def _times(layout: Layout, n: int) -> dict[str, int]:
    """How often each traced part comes in a step of `n` micro-batches."""
    if layout.keep_gathered and n > 1:
        return {"first": n - 1, "last": 1, "update": 1}
    return {"last": 1 if layout.keep_gathered else n, "update": 1}


def _traffic(recording: Recording, layout: Layout, n: int) -> Iterator[Traffic]:
    calls: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for sent in recording.sent:
        times = _times(layout, n)[sent.part]
        if sent.part == "first" and sent.group == "shard":
            times = 1  # what is gathered stays
        calls[sent.kind, sent.group] += times * sent.calls
        size[sent.kind, sent.group] += times * sent.bytes
    if layout.replicas > 1 and layout.shards > 1:  # then the trace has one copy of the model
        scattered = "reduce_scatter", "shard"
        calls["all_reduce", "replicas"] = calls[scattered]
        size["all_reduce", "replicas"] = size[scattered] // layout.shards
    ranks = {"tp": layout.tp, "shard": layout.shards, "replicas": layout.replicas}
    for kind, group in sorted(calls):
        yield Traffic(
            kind, group, ranks.get(group, layout.gpus), calls[kind, group], size[kind, group]
        )
