"""One rank of a cluster that does not exist: what a training step allocates, computes and sends.

A `Job` names a model of a few layers and a layout. The real model and the real `parallelize` become
rank 0 of a fake process group of any size, on tensors without memory; one step runs on them, and a
dispatch mode sees every operation. Out comes a `Recording`: the bytes alive at each allocation, by
kind, in segments that `memory` can line up between models of different depth; FLOPs by torch's own
formulas; and the bytes of every collective. Process groups are global to a process, so this runs as
one of its own: `python -m panthalassa.planner.trace FOLDER FIRST STRIDE` does every STRIDE-th job
of FOLDER/jobs.json.

The step is that of `train.step`, which this package may not import; a test holds the two together.
"""

import gc
import json
import logging
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from panthalassa.config import Parallel
from panthalassa.model.transformer import Transformer
from panthalassa.parallel.mesh import build_mesh
from panthalassa.parallel.parallelize import parallelize
from panthalassa.planner.recorder import Recorder
from panthalassa.planner.recording import IN_TOWER, Column, Job, Recording


def record(job: Job) -> Recording:
    """Run one step of `job`, on the first rank of a fake process group that ends with it."""
    gc.collect()  # not in the middle of a step, where it would free at random
    gc.disable()
    dist.init_process_group("fake", rank=0, world_size=job.dp * job.tp, store=FakeStore())
    try:
        return _record(job)
    finally:
        gc.enable()
        dist.destroy_process_group()


def _record(job: Job) -> Recording:
    mesh = build_mesh("cpu", job.tp, job.replicas)
    settings = Parallel(
        tp_size=job.tp,
        replicas=job.replicas,
        activation_checkpointing=job.activation_checkpointing,
        keep_gathered=job.keep_gathered,
        precision=job.precision,
    )
    with torch.device("meta"):
        model = Transformer(job.model)
    parallelize(model, mesh, settings)
    recorder = Recorder(group_names(mesh))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        # The kernel that is fused asks for no number, which a tensor without memory does not have.
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        _set_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        for parameter in model.parameters():
            recorder.mark(local(parameter), Column.PARAMETER)
        for moments in optimizer.state.values():
            for tensor in moments.values():
                recorder.mark(local(tensor), Column.OPTIMIZER)
        if job.begins_with_gradients:
            _set_gradients(model)
            for parameter in model.parameters():
                assert parameter.grad is not None
                recorder.mark(local(parameter.grad), Column.OLD_GRADIENT)
        _step(job, model, optimizer, mesh, recorder)
    return Recording(
        segments=recorder.segments,
        flops=recorder.flops,
        sent=list(recorder.sent.values()),
        rows=Counter(_rows(parameter) for parameter in model.parameters()),
    )


def _step(
    job: Job,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    mesh: DeviceMesh,
    recorder: Recorder,
) -> None:
    """A step of `train.step.train_step`, with its segments told to the recorder."""
    assert isinstance(model, FSDPModule)
    batches = [_inputs(job) for _ in range(job.micro_batches)]
    for texts, images in batches:
        for tensor in (*texts, *images.values()):
            recorder.mark(tensor, Column.INPUT)
    part = ""
    _watch_blocks(model, lambda phase, block: recorder.begin(part, phase, block))
    with recorder.recording():
        for number, (texts, images) in enumerate(batches):
            last = number == job.micro_batches - 1
            part = "last" if last else "first"
            if job.keep_gathered:
                model.set_requires_gradient_sync(last)
                model.set_reshard_after_backward(last)
            recorder.kind = Column.ACTIVATION
            recorder.begin(part, "forward")
            with loss_parallel() if job.tp > 1 else nullcontext():
                loss = model(*texts, job.loss_chunk, **images)
                recorder.kind = Column.TEMPORARY
                recorder.begin(part, "backward")
                (loss / job.sequence_length).backward()
            del loss
            if not last:
                recorder.turn(Column.TEMPORARY, Column.WHOLE_GRADIENT)
        recorder.begin("update", "clip")
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        recorder.begin("update", "optimizer")
        optimizer.step()
        optimizer.zero_grad()


def _inputs(job: Job) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of a micro-batch: tokens, documents and labels, and its images if there are any."""
    shape = (job.micro_batch, job.sequence_length)
    texts = [torch.zeros(shape, dtype=torch.int64) for _ in range(3)]
    if not (job.model.vision and job.images):
        return texts, {}
    size = job.model.vision.image_size
    number = job.micro_batch * job.images
    return texts, {"images": torch.zeros((number, size, size, 3), dtype=torch.uint8)}


def _watch_blocks(model: Transformer, begin: Callable[[str, int | None], None]) -> None:
    """Call `begin` before the forward and before the backward pass of each block, before the
    projector and before the head."""

    def watch(block: nn.Module, index: int, forward: str, backward: str) -> None:
        def before_backward(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            output.register_hook(lambda _gradient: begin(backward, index))  # type: ignore[no-untyped-call]

        block.register_forward_pre_hook(lambda *_: begin(forward, index), prepend=True)
        block.register_forward_hook(before_backward)

    for index, block in enumerate(model.blocks):
        watch(block, index, "forward", "backward")
    if model.vision is not None and model.projector is not None:
        for index, block in enumerate(model.vision.blocks):
            watch(block, index, *IN_TOWER)
        model.projector.register_forward_pre_hook(lambda *_: begin("projector", None), prepend=True)
    model.head.register_forward_pre_hook(lambda *_: begin("head", None), prepend=True)


def _set_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _rows(parameter: Tensor) -> tuple[int, int]:
    """Rows of a parameter that FSDP shards, and bytes of one: after tensor parallelism, before
    FSDP."""
    assert isinstance(parameter, DTensor)
    rows, size = parameter.shape[0], parameter.numel() * parameter.element_size()
    names = parameter.device_mesh.mesh_dim_names or ()
    if "tp" in names:
        placement = parameter.placements[names.index("tp")]
        if placement.is_shard() or type(placement).__name__ == "_StridedShard":
            tp = parameter.device_mesh["tp"].size()
            size //= tp
            if placement.dim == 0:  # type: ignore[attr-defined]
                rows //= tp
    return rows, size // rows


def group_names(mesh: DeviceMesh) -> dict[str, str]:
    names = mesh.mesh_dim_names or ()
    known = {"dp": "shard", "shard": "shard", "replicate": "replicas", "tp": "tp"}
    return {mesh.get_group(name).group_name: known[name] for name in names}


def main() -> None:
    folder, first, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    gc.freeze()
    numbered = list(enumerate(map(Job.load, json.loads((folder / "jobs.json").read_text()))))
    asker = os.getppid()
    for _, jobs in groupby(numbered[first::stride], key=lambda entry: entry[1].mesh):
        _in_a_fork(folder, list(jobs), asker)
        if os.getppid() != asker:
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit("who asked for the traces is gone")


def _in_a_fork(folder: Path, jobs: list[tuple[int, Job]], asker: int) -> None:
    """Do jobs of one mesh. Torch remembers groups by names, which come again with other sizes on
    the next mesh; so that has a process that knows nothing yet but the imports."""
    tracer, child = psutil.Process(), os.fork()
    if child == 0:
        try:
            for number, job in jobs:
                if os.getppid() != tracer.pid or tracer.ppid() != asker:
                    os._exit(0)
                temporary = folder / f"{number}.new"
                temporary.write_bytes(record(job).dump())
                temporary.rename(folder / f"{number}.npz")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a trace of {jobs[0][1].mesh} failed: {status=}")


if __name__ == "__main__":
    main()
