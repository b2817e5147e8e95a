"""What a trace of few layers says is what the whole model does: traced in full, and on real
ranks."""

import ctypes
import gc
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import images
import pytest
from images import MixedRun, seeing
from ranks import TinyRun, tiny
from torch import distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from panthalassa.config import Config
from panthalassa.config_file import load
from panthalassa.config_model import Model, Vision
from panthalassa.planner.cache import TraceCache
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.memory import TRACED_LAYERS, Footprint, footprints, trace_all, traces
from panthalassa.planner.recorder import Recorder
from panthalassa.planner.recording import Column, Job, Recording
from panthalassa.planner.trace import group_names, local
from panthalassa.train.micro_batch import MicroBatch
from panthalassa.train.step import train_step
from panthalassa.train.worker import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD

LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "laptop.yaml"

SMALL = Model(
    vocabulary_size=64, hidden_size=32, layers=5, heads=4, kv_heads=2, head_size=8, ffn_size=48
)
TIED = SMALL.model_copy(update={"tied_embeddings": True})
TOWER = Vision(image_size=32, patch_size=8, hidden_size=16, layers=4, heads=2, ffn_size=32)
SIGHTED = SMALL.model_copy(update={"vision": TOWER})

BYTES = [column for column in Column if column not in (Column.REDUCED, Column.OPERATION)]


def workload(model: Model, global_batch: int, precision: Any = "bf16") -> Workload:
    share, images = (0.5, 2.0) if model.vision else (0.0, 0.0)
    return Workload(model, 32, global_batch, precision, 16, share, images)


CASES = [
    (workload(SMALL, 64), Layout(4, 2, 1, 16, "selective", False)),
    (workload(SMALL, 32), Layout(4, 2, 1, 8, "full", True)),
    (workload(SMALL, 32), Layout(4, 2, 1, 16, "none", False)),
    (workload(SMALL, 32), Layout(4, 2, 1, 16, "full", True)),
    (workload(TIED, 16, "fp32"), Layout(8, 1, 2, 2, "none", False)),
    (workload(TIED, 24, "fp32"), Layout(8, 1, 2, 1, "selective", True)),
    (workload(SMALL, 12, "fp32"), Layout(1, 1, 1, 6, "none", False)),
    (workload(SMALL, 8, "fp32"), Layout(2, 1, 2, 2, "none", True)),
    (workload(SIGHTED, 64), Layout(4, 2, 1, 16, "selective", False)),
    (workload(SIGHTED, 16, "fp32"), Layout(4, 1, 1, 1, "none", True)),
]
"""Each way of scaling, and all of them together: layers, those of a tower, micro-batches, copies,
accumulation."""


def in_full(workload: Workload, layout: Layout) -> Job:
    """The whole step of the whole model."""
    return Job(
        model=workload.model,
        sequence_length=workload.sequence_length,
        loss_chunk=workload.loss_chunk,
        precision=workload.precision,
        dp=layout.dp,
        tp=layout.tp,
        replicas=layout.replicas,
        micro_batch=layout.micro_batch,
        images=int(workload.images_per_sample),
        activation_checkpointing=layout.activation_checkpointing,
        keep_gathered=layout.keep_gathered,
        micro_batches=layout.micro_batches(workload.global_batch),
        begins_with_gradients=False,
    )


def sent(recording: Recording) -> dict[tuple[str, str], tuple[int, int]]:
    """Calls and bytes by kind and group."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in recording.sent:
        calls, size = found.get((entry.kind, entry.group), (0, 0))
        found[entry.kind, entry.group] = calls + entry.calls, size + entry.bytes
    return found


def predicted(footprint: Footprint) -> dict[tuple[str, str], tuple[int, int]]:
    return {(t.kind, t.group): (t.calls, t.bytes) for t in footprint.traffic}


def layout_of(config: Config, gpus: int) -> Layout:
    parallel = config.parallel
    return Layout(
        gpus=gpus,
        tp=parallel.tp_size,
        replicas=parallel.replicas,
        micro_batch=config.train.micro_batch,
        activation_checkpointing=parallel.activation_checkpointing,
        keep_gathered=parallel.keep_gathered,
    )


def test_few_layers_and_small_batches_scale_to_the_full_trace(tmp_path: Path) -> None:
    cache, jobs = TraceCache(tmp_path), [in_full(*case) for case in CASES]
    small = [job for case in CASES for row in traces(*case) for job in row]
    assert {job.model.layers for job in small} == {*TRACED_LAYERS, 4}
    towers = {job.model.vision.layers for job in small if job.model.vision}
    assert towers == set(TRACED_LAYERS)
    full = trace_all(list(dict.fromkeys(jobs + small)), cache, processes=2)
    for case, job in zip(CASES, jobs, strict=True):
        setting, layout = case
        found = footprints(setting, [layout], cache)[layout]
        segments = full[job].segments
        peaks = [s.events[:, BYTES].sum(1).max() for s in segments]
        assert found.peak == max(peaks), layout
        assert found.parameters == segments[0].events[0, Column.PARAMETER], layout
        assert found.optimizer == segments[0].events[0, Column.OPTIMIZER], layout
        assert found.flops == sum(full[job].flops.values()), layout
        assert predicted(found) == sent(full[job]), layout
    assert not dist.is_initialized()


REAL: list[tuple[str, ...]] = [
    (),
    ("train.micro_batch=1", "parallel.activation_checkpointing=selective"),
    ("parallel.tp_size=2", "train.micro_batch=1", "parallel.precision=bf16"),
    ("parallel.tp_size=2", "parallel.keep_gathered=true", "train.micro_batch=1"),
    ("parallel.replicas=2", "parallel.activation_checkpointing=full", "train.loss_chunk=16"),
]
"""On four ranks; a vocabulary of 258 and a feed-forward of 50 fill no shard evenly."""


REAL_WITH_IMAGES: list[tuple[str, ...]] = [
    ("train.micro_batch=1", "parallel.activation_checkpointing=full"),
    ("parallel.tp_size=2", "train.micro_batch=1"),
]
EACH = 3
"""Images in every sample of these."""


class FullOfImages(MixedRun):
    """Every rank has as many images as a plan is for."""

    def batches(self, step: int) -> list[MicroBatch]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "ROWS", ((EACH,) * 4,))
            return super().batches(step)


def planned(config: Config) -> Workload:
    found = Workload.of(config)
    seen = replace(found, image_samples=1.0, images_per_sample=float(EACH))
    return seen if config.model.vision else found


def watched(configs: list[Config]) -> list[tuple[int, int, int, int, Any]]:
    """Of a real step by `train_step`: bytes of parameters, of moments, at the peak; FLOPs;
    collectives."""
    found, names = [], {}
    for config in configs:
        run = FullOfImages(config) if config.model.vision else TinyRun(config)
        run.step(0)
        names |= group_names(run.mesh)  # DTensor may go on with the groups of an equal mesh
        recorder = Recorder(names)
        sizes = []
        moments = [tensor for state in run.optimizer.state.values() for tensor in state.values()]
        for tensors, column in (
            (list(run.model.parameters()), Column.PARAMETER),
            (moments, Column.OPTIMIZER),
        ):
            shards = [local(tensor) for tensor in tensors]
            sizes.append(sum(shard.numel() * shard.element_size() for shard in shards))
            for shard in shards:
                recorder.mark(shard, column)
        batches = run.batches(1)
        for batch in batches:
            inputs = batch.tokens, batch.documents, batch.labels, batch.images
            for tensor in (one for one in inputs if one is not None):
                recorder.mark(tensor, Column.INPUT)
        recorder.begin("step", "forward")
        with recorder.recording():
            train_step(
                run.model,
                run.optimizer,
                batches,
                run.mesh,
                config.train,
                run.objective,
                100,
                0.01,
                config.parallel.keep_gathered,
                run.guard,
                config.guard,
            )
        (segment,) = recorder.segments
        recording = Recording([segment], recorder.flops, list(recorder.sent.values()), Counter())
        peak = int(segment.events[:, BYTES].sum(1).max())
        found.append((*sizes, peak, sum(recorder.flops.values()), sent(recording)))
    return found


def test_a_trace_is_what_a_real_rank_has_and_does(ranks: Any, tmp_path: Path) -> None:
    uneven = ("model.vocabulary_size=258", "model.ffn_size=50", "train.global_batch=8")
    configs = [tiny(*uneven, *overrides) for overrides in REAL]
    configs += [seeing(*uneven, *overrides) for overrides in REAL_WITH_IMAGES]
    cache = TraceCache(tmp_path)
    cases = [(planned(config), layout_of(config, 4)) for config in configs]
    trace_all([job for case in cases for row in traces(*case) for job in row], cache, 2)
    first = ranks(4, watched, configs)[0]
    for (setting, layout), (parameters, moments, peak, flops, collectives) in zip(
        cases, first, strict=True
    ):
        found = footprints(setting, [layout], cache)[layout]
        assert found.parameters == parameters, layout
        assert found.optimizer == moments, layout
        assert found.flops == flops, layout
        calls = {key: count for key, (count, _) in collectives.items()}
        assert {key: count for key, (count, _) in predicted(found).items()} == calls, layout
        for key, (_, size) in predicted(found).items():
            # Copies of the model are derived from one, whose uneven rows are padded otherwise.
            tolerance = 0.02 if layout.replicas > 1 else 0
            assert size == pytest.approx(collectives[key][1], rel=tolerance), (layout, key)
        assert found.peak == pytest.approx(peak, rel=0.02), layout


def allocated(config: Config, folder: Path) -> list[int]:
    """The most bytes that torch's CPU allocator has given out in each of three steps of a real rank, by
    its own account since before the model was built."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run = TinyRun(config)
        for step in range(3):
            with record_function("one step"):
                run.step(step)
    file = folder / f"{dist.get_rank()}.json"
    profiler.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    sizes = [(e["ts"], e["args"]["Total Allocated"]) for e in events if e["name"] == "[memory]"]
    steps = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "one step"]
    return [max(size for at, size in sizes if begin <= at <= end) for begin, end in steps]


def resident(config: Config) -> list[int]:
    """By how much a real rank has grown in each of three steps, in the eyes of the system, since before
    the model was built. What torch loads with the first step of any model comes before that."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 16)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back to the system
    TinyRun(tiny("train.global_batch=8")).step(0)
    gc.collect()
    before = status("VmRSS")
    run, peaks = TinyRun(config), []
    for step in range(3):
        Path("/proc/self/clear_refs").write_text("5")  # the highest that it was begins anew
        run.step(step)
        peaks.append(status("VmHWM") - before)
    return peaks


def status(key: str) -> int:
    """Bytes, from what the kernel says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def test_the_laptop_model_needs_what_its_plan_says(ranks: Any, tmp_path: Path) -> None:
    config = load(LAPTOP, [])
    layout = layout_of(config, config.cluster.workers)
    plan = footprints(Workload.of(config), [layout], TraceCache(tmp_path), processes=1)[layout]
    # A thread of gloo that the system lets wait keeps buffers for longer than need be: the least counts.
    for measure, arguments in ((allocated, (config, tmp_path)), (resident, (config,))):
        by_rank = ranks(config.cluster.workers, measure, *arguments)
        peaks = [peak for steps in by_rank for peak in steps]
        assert plan.peak == pytest.approx(min(peaks), rel=0.1), peaks
