"""What a trace of few layers says is what the whole model does: traced in full, and on real ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TinyRun, tiny
from torch import distributed as dist

from panthalassa.config import Config, Model
from panthalassa.planner.cache import TraceCache
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.memory import Footprint, footprints, trace_all
from panthalassa.planner.recording import Column, Job, Recording

SMALL = Model(
    vocabulary_size=64, hidden_size=32, layers=7, heads=4, kv_heads=2, head_size=8, ffn_size=48
)
TIED = SMALL.model_copy(update={"tied_embeddings": True})


def workload(model: Model, global_batch: int, precision: Any = "bf16") -> Workload:
    return Workload(model, 32, global_batch, precision, loss_chunk=16)


CASES = [
    (workload(SMALL, 64), Layout(4, 2, 1, 16, "selective", False)),
    (workload(SMALL, 32), Layout(4, 2, 1, 8, "full", True)),
    (workload(SMALL, 32), Layout(4, 2, 1, 16, "none", False)),
    (workload(SMALL, 32), Layout(4, 2, 1, 16, "full", True)),
    (workload(TIED, 16, "fp32"), Layout(8, 1, 2, 2, "none", False)),
    (workload(TIED, 24, "fp32"), Layout(8, 1, 2, 1, "selective", True)),
    (workload(SMALL, 12, "fp32"), Layout(1, 1, 1, 6, "none", False)),
    (workload(SMALL, 8, "fp32"), Layout(2, 1, 2, 2, "none", True)),
]
"""Each way of scaling, and all of them together: layers, micro-batches, copies, accumulation."""


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


def test_few_layers_and_small_batches_scale_to_the_full_trace(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path)
    jobs = [in_full(*case) for case in CASES]
    full = trace_all(jobs, cache, processes=2)
    for case, job in zip(CASES, jobs, strict=True):
        setting, layout = case
        found = footprints(setting, [layout], cache, processes=2)[layout]
        segments = full[job].segments
        peaks = [(s.events.sum(1) - s.events[:, Column.REDUCED]).max() for s in segments]
        assert found.peak == max(peaks), layout
        assert found.parameters == segments[0].events[0, Column.PARAMETER], layout
        assert found.optimizer == segments[0].events[0, Column.OPTIMIZER], layout
        assert found.flops == sum(full[job].flops.values()), layout
        assert predicted(found) == sent(full[job]), layout
    assert not dist.is_initialized()
