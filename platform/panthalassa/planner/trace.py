"""One rank of a cluster that does not exist: what a training step allocates, computes and sends.

A `Job` names a model of a few layers and a layout. The real model and the real `parallelize` become rank 0 of
a fake process group of any size, on tensors without memory; one step runs on them, and a dispatch mode sees
every operation. Out comes a `Recording`: the bytes alive at each allocation, by kind, in segments that
`memory` can line up between models of different depth; FLOPs by torch's own formulas; and the bytes of
every collective. Process groups are global to a process, so this runs as one of its own:
`python -m panthalassa.planner.trace FOLDER FIRST STRIDE` does every STRIDE-th job of FOLDER/jobs.json.

The step is that of `train.step`, which this package may not import; a test holds the two together.
"""

import gc
import json
import logging
import os
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from panthalassa.config import Parallel
from panthalassa.model.transformer import Transformer
from panthalassa.parallel.mesh import build_mesh
from panthalassa.parallel.parallelize import parallelize
from panthalassa.planner.recording import Column, Job, Recording, Segment, Sent

_aten, _c10d, _functional, _fsdp = (
    torch.ops.aten,
    torch.ops.c10d,
    torch.ops._c10d_functional,
    torch.ops.fsdp,
)

# op -> kind of collective, and which argument or result is the whole tensor
_COLLECTIVES: dict[Any, tuple[str, Callable[[Any, Any], Tensor]]] = {
    _c10d._allgather_base_.default: ("all_gather", lambda args, out: args[0]),
    _c10d._reduce_scatter_base_.default: ("reduce_scatter", lambda args, out: args[1]),
    _c10d.allreduce_.default: ("all_reduce", lambda args, out: args[0][0]),
    _functional.all_gather_into_tensor.default: ("all_gather", lambda args, out: out),
    _functional.reduce_scatter_tensor.default: ("reduce_scatter", lambda args, out: args[0]),
    _functional.all_reduce.default: ("all_reduce", lambda args, out: args[0]),
    _functional.all_reduce_.default: ("all_reduce", lambda args, out: args[0]),
    _functional.all_to_all_single.default: ("all_to_all", lambda args, out: args[0]),
}


def _whole_heads(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """The shape of keys or values with as many heads as the queries, which share them."""
    return (*query.shape[:2], *key.shape[2:])


def _flops(function: Any, args: Any, kwargs: Any, result: Any) -> int:
    """FLOPs of one operation by torch's formulas, which leave out the attention of CPUs."""
    if function is _aten._scaled_dot_product_flash_attention_for_cpu.default:
        query, key, value = args[:3]
        shapes = _whole_heads(query, key), _whole_heads(query, value)
        return int(sdpa_flop_count(query.shape, *shapes))
    if function is _aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        gradient, query, key, value = args[:4]
        shapes = _whole_heads(query, key), _whole_heads(query, value)
        return int(sdpa_backward_flop_count(gradient.shape, query.shape, *shapes))
    formula = flop_registry.get(function.overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


class Recorder(TorchDispatchMode):
    """Sees every operation of a rank; keeps the bytes of each storage that is alive, by column."""

    def __init__(self, groups: dict[str, str]) -> None:
        super().__init__()
        self._segments: list[tuple[str, str, int | None, list[tuple[int, ...]]]] = []
        self.flops: dict[str, int] = {}
        self.sent: dict[tuple[str, str, str], Sent] = {}
        """By part of the step, kind and group."""
        self.kind = Column.ACTIVATION
        """What a new storage is, unless its operation says otherwise."""
        self._groups = groups
        self._live: dict[int, list[Any]] = {}
        self._bytes = [0] * len(Column)
        self._paused = False
        self._reduces = False
        self._part = ""

    def begin(self, part: str, phase: str, block: int | None = None) -> None:
        """A new segment: of which part of the step, and with which block first."""
        self._part = part
        self._segments.append((part, phase, block, [tuple(self._bytes)]))

    @property
    def segments(self) -> list[Segment]:
        return [
            Segment(part, phase, block, np.array(events, np.int64))
            for part, phase, block, events in self._segments
        ]

    def mark(self, tensor: Tensor, column: Column) -> None:
        """Count a storage, that may be known already, in `column`."""
        storage = tensor.untyped_storage()
        record = self._live.get(storage._cdata)
        if record is None:
            self._add(storage, column)
        else:
            self._change(record, record[0], column)

    def turn(self, before: Column, after: Column) -> None:
        """What is alive in one column goes over to another."""
        for record in self._live.values():
            if record[1] is before:
                self._change(record, record[0], after)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Until the end, operations and changes of size are seen.

        DTensor finds out shapes by running operations on whole tensors in the same fake mode, under a
        lock: these are nobody's memory.
        """
        resize, lock = torch.UntypedStorage.resize_, ShardingPropagator._fake_mode_lock

        def seen(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if (record := self._live.get(storage._cdata)) is not None:
                self._change(record, size, Column.GATHERED)

        torch.UntypedStorage.resize_ = seen  # type: ignore[method-assign, assignment]
        ShardingPropagator._fake_mode_lock = self._Pause(self)  # type: ignore[assignment]
        try:
            with self:
                yield
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
            ShardingPropagator._fake_mode_lock = lock

    class _Pause:
        def __init__(self, recorder: "Recorder") -> None:
            self._recorder = recorder

        def __enter__(self) -> None:
            self._recorder._paused = True

        def __exit__(self, *_: object) -> None:
            self._recorder._paused = False

    def _add(self, storage: torch.UntypedStorage, column: Column) -> None:
        size, key = storage.nbytes(), storage._cdata
        record: list[Any] = [size, column, None]

        def gone(_: object) -> None:
            self._bytes[record[1]] -= record[0]
            if self._live.get(key) is record:
                del self._live[key]

        record[2] = weakref.ref(storage, gone)
        self._live[key] = record
        self._bytes[column] += size
        if size:
            self._note()

    def _change(self, record: list[Any], size: int, column: Column) -> None:
        grows = size > record[0]
        self._bytes[record[1]] -= record[0]
        record[0], record[1] = size, column
        self._bytes[column] += size
        if grows:
            self._note()

    def _note(self) -> None:
        if self._segments:
            self._segments[-1][3].append(tuple(self._bytes))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented  # its operations on local tensors are those to see
        kwargs = kwargs or {}
        if func is _functional.wait_tensor.default and active_fake_mode() is not None:
            return args[0]  # the fake one copies
        result = func(*args, **kwargs)
        if self._paused:
            return result
        if flops := _flops(func, args, kwargs, result):
            self.flops[self._part] = self.flops.get(self._part, 0) + flops
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self._see_sharding(func, args, kwargs, result)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return
        column = self.kind
        if self._reduces:  # behind chunk_cat, FSDP allocates what the reduction gives
            self._reduces, column = False, Column.NEW_GRADIENT
            self._bytes[Column.REDUCED] += storage.nbytes()
        self._add(storage, column)

    def _see_sharding(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """FSDP's buffers and everybody's collectives."""
        if func is _fsdp.all_gather_copy_in.default:
            for tensor in args[0]:
                record = self._live.get(tensor.untyped_storage()._cdata)
                if record is not None and record[1] is self.kind:
                    self._change(record, record[0], Column.CAST)
            self.mark(args[1], Column.GATHERED)
        elif func is _fsdp.split_with_sizes_copy.default:
            for tensor in kwargs["out"]:
                self.mark(tensor, Column.GATHERED)
        elif func is _fsdp.chunk_cat.default:
            self._reduces = True
        elif func in _COLLECTIVES:
            kind, whole = _COLLECTIVES[func]
            tensor, group = whole(args, result), self._group(args)
            sent = self.sent.setdefault(
                (self._part, kind, group), Sent(self._part, kind, group, 0, 0)
            )
            sent.calls += 1
            sent.bytes += tensor.numel() * tensor.element_size()

    def _group(self, args: Any) -> str:
        for value in args:
            if isinstance(value, str) and value in self._groups:
                return self._groups[value]
            if isinstance(value, torch.ScriptObject):
                try:
                    name = dist.ProcessGroup.unbox(value).group_name
                except RuntimeError:
                    continue  # not a group: the operation of a reduction
                return self._groups.get(name, "all")
        return "all"


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
    recorder = Recorder(_group_names(mesh))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        # The kernel that is fused asks for no number, which a tensor without memory does not have.
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        _set_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        for parameter in model.parameters():
            recorder.mark(_local(parameter), Column.PARAMETER)
        for moments in optimizer.state.values():
            for tensor in moments.values():
                recorder.mark(_local(tensor), Column.OPTIMIZER)
        if job.begins_with_gradients:
            _set_gradients(model)
            for parameter in model.parameters():
                assert parameter.grad is not None
                recorder.mark(_local(parameter.grad), Column.OLD_GRADIENT)
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
    shape = (job.micro_batch, job.sequence_length)
    batches = [
        [torch.zeros(shape, dtype=torch.int64) for _ in range(3)] for _ in range(job.micro_batches)
    ]
    for batch in batches:
        for tensor in batch:
            recorder.mark(tensor, Column.INPUT)
    part = ""
    _watch_blocks(model, lambda phase, block: recorder.begin(part, phase, block))
    with recorder.recording():
        for number, batch in enumerate(batches):
            last = number == job.micro_batches - 1
            part = "last" if last else "first"
            if job.keep_gathered:
                model.set_requires_gradient_sync(last)
                model.set_reshard_after_backward(last)
            recorder.kind = Column.ACTIVATION
            recorder.begin(part, "forward")
            with loss_parallel() if job.tp > 1 else nullcontext():
                loss = model(*batch, job.loss_chunk)
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


def _watch_blocks(model: Transformer, begin: Callable[[str, int | None], None]) -> None:
    """Call `begin` before the forward and before the backward pass of each block, and before the head."""

    def watch(block: nn.Module, index: int) -> None:
        def before_backward(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            output.register_hook(lambda _gradient: begin("backward", index))

        block.register_forward_pre_hook(lambda *_: begin("forward", index), prepend=True)
        block.register_forward_hook(before_backward)

    for index, block in enumerate(model.blocks):
        watch(block, index)
    model.head.register_forward_pre_hook(lambda *_: begin("head", None), prepend=True)


def _set_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _rows(parameter: Tensor) -> tuple[int, int]:
    """Rows of a parameter that FSDP shards, and bytes of one: after tensor parallelism, before FSDP."""
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


def _group_names(mesh: DeviceMesh) -> dict[str, str]:
    names = mesh.mesh_dim_names or ()
    known = {"dp": "shard", "shard": "shard", "replicate": "replicas", "tp": "tp"}
    return {mesh.get_group(name).group_name: known[name] for name in names}


def main() -> None:
    folder, first, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    gc.freeze()
    numbered = list(enumerate(map(Job.load, json.loads((folder / "jobs.json").read_text()))))
    for _, jobs in groupby(numbered[first::stride], key=lambda entry: entry[1].mesh):
        _in_a_fork(folder, list(jobs))


def _in_a_fork(folder: Path, jobs: list[tuple[int, Job]]) -> None:
    """Do jobs of one mesh. Torch remembers groups by names, which come again with other sizes on the
    next mesh; so that has a process that knows nothing yet but the imports."""
    child = os.fork()
    if child == 0:
        try:
            for number, job in jobs:
                (folder / f"{number}.npz").write_bytes(record(job).dump())
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
