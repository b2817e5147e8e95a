"""Sees every operation of a rank: what is alive after it, its FLOPs, and what it sends.

A dispatch mode below DTensor, above fake tensors. Torch's own tracker of memory keeps totals by
module; to tell what a model with more layers would hold, the bytes at each allocation are needed,
and so this one keeps those, by kind.
"""

import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch._guards import active_fake_mode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from panthalassa.planner.recording import Column, Segment, Sent

_forward_flops: Callable[..., int] = sdpa_flop_count
_backward_flops: Callable[..., int] = sdpa_backward_flop_count
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
        return int(_forward_flops(query.shape, *shapes))
    if function is _aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        gradient, query, key, value = args[:4]
        shapes = _whole_heads(query, key), _whole_heads(query, value)
        return int(_backward_flops(gradient.shape, query.shape, *shapes))
    formula = flop_registry.get(function.overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


@cache
def _number(function: Any) -> int:
    return zlib.crc32(str(function).encode())


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a rank; keeps the bytes of each storage that is alive, by column."""

    def __init__(self, groups: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        self._bytes[Column.OPERATION] = 0
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

        DTensor finds out shapes by running operations on whole tensors in the same fake mode, under
        a lock: these are nobody's memory.
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
        self._bytes[Column.OPERATION] = _number(func)
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
